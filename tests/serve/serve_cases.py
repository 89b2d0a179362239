"""Pictures for the tests of the server, and the server itself."""

import contextlib
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Width and height in pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises width x height pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@contextlib.contextmanager
def served(*arguments: object, code: str = "") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`qmimic serve` on a free port: the process and its address; `code` runs before it, in the same process."""
    run = f"{code}\nimport sys\nfrom qmimic.cli import main\nsys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", run, "serve", *map(str, arguments), "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = [process.stdout.readline(), process.stdout.readline()]
        found = re.search(r"http://\S+", said[1])
        if found is None:
            process.kill()
            raise AssertionError(f"{said} {process.communicate()}")
        yield process, found[0]
    finally:
        process.kill()
        process.communicate()
