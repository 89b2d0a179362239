"""Pages for browsers, `.web.html`: by the page's own engine where Node.js is installed, else by its native kin.

A page holds its engine as WebAssembly, which Node.js runs as a browser does. Without it, the native library that the
page's engine is built of runs the model: LiteRT or ONNX Runtime.
"""

import base64
import binascii
import json
import math
import os
import re
import shutil
import struct
import subprocess
import threading
import weakref
from pathlib import Path

import numpy as np

from qmimic.errors import InputError
from qmimic.files import LARGE, read_bytes
from qmimic.runtime import litert_engine, onnx_engine
from qmimic.runtime.formats import Arrays, Session
from qmimic.runtime.metadata import INPUT, from_properties

MODEL = re.compile(rb'(<script id="model" type="text/plain">)([^<]*)(</script>)')
DRIVER = Path(__file__).with_name("page_in_node.mjs")
PLACES = "places"  # what a detector says that leaves decoding to the runtime
TYPES = {"boxes": np.float32, "scores": np.float32, "labels": np.int64, PLACES: np.float32}
LENGTH = struct.Struct("<I")  # before what Node.js says


def open_file(path: Path, threads: int, spin: bool) -> Session:
    """See `qmimic.runtime.formats`. In Node.js a page has one thread, as in a browser."""
    model = model_of(read_bytes(path, LARGE), path)
    if litert_engine.is_model(model):
        own = litert_engine.open_model(path, model, threads)
    else:
        own = onnx_engine.open_model(path, model, threads, spin)
    return _in_node(path, own) or own


def checksum(path: Path) -> str:
    """See `qmimic.runtime.formats`."""
    model = model_of(read_bytes(path, LARGE), path)
    return litert_engine.checksum_of(model, path) if litert_engine.is_model(model) else onnx_engine.checksum_of(model)


def model_of(page: bytes, path: Path) -> bytes:
    """The model in a page, of ONNX or LiteRT. Raises InputError: there is none."""
    found = MODEL.search(page)
    try:
        return base64.b64decode(found[2] if found else b"", validate=True) or _none(path)
    except binascii.Error as error:
        raise InputError(f"The model in {path} is damaged; export the page again.") from error


def _none(path: Path) -> bytes:
    raise InputError(f"{path} holds no model; name a page that `qmimic export --to web` wrote.")


def _in_node(path: Path, kin: Session) -> Session | None:
    """A page run by its own engine; None where Node.js is missing or cannot.

    Args:
        path: of the page.
        kin: the model as another engine has loaded it.
    """
    node = shutil.which("node")
    if node is None or INPUT not in kin.inputs or None in kin.inputs[INPUT].shape:
        return None
    size = math.prod(side or 0 for side in kin.inputs[INPUT].shape)
    process = subprocess.Popen(
        [node, str(DRIVER), str(path), str(size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    send, receive, turn = process.stdin, process.stdout, threading.Lock()

    def read() -> bytes:
        length = receive.read(LENGTH.size)
        content = receive.read(*LENGTH.unpack(length)) if len(length) == LENGTH.size else b""
        if not content:
            raise InputError(f"Node.js cannot run {path}: it ended; export the page again.")
        return content

    def run(feeds: Arrays) -> Arrays:
        with turn:
            try:
                send.write(np.ascontiguousarray(feeds[INPUT], np.uint8).tobytes())
                send.flush()
            except BrokenPipeError:
                read()  # which says that it ended
            shapes = json.loads(read())
            found = {name: np.frombuffer(read(), TYPES[name]).reshape(shape) for name, shape in shapes.items()}
        if PLACES in found:
            return litert_engine.regions(found[PLACES], metadata)
        return {name: values.copy() for name, values in found.items()}

    weakref.finalize(run, _end, process, os.getpid())
    metadata = from_properties(kin.properties, path)
    try:
        return Session(run, kin.inputs, kin.properties, read().decode())
    except InputError:
        return None


def _end(process: "subprocess.Popen[bytes]", owner: int) -> None:
    """End a process of Node.js, unless it is that of a fork's parent."""
    if os.getpid() == owner:
        process.kill()
        process.communicate()
