"""Files and folders that are either whole or absent: write beside, then rename."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from qmimic.errors import InputError

BEGINNINGS = (  # of files that are taken for others: from which byte, which bytes, what they tell
    (0, b"PK\x03\x04", "a zip archive, such as PyTorch's .pt files (Ultralytics' are these too)"),
    (0, b"\x80\x02", "a pickle, such as PyTorch's older .pth files"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"BM", "a BMP picture"),
    (8, b"WEBP", "a WebP picture"),
    (4, b"ftyp", "a video, or a HEIC or AVIF picture"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"%PDF", "a PDF document"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (4, b"ET", "an ExecuTorch program"),
    (0, b"\x89HDF", "an HDF5 file, such as Keras models"),
    (8, b'{"', "a safetensors file"),
    (0, b"<", "an XML file"),
    (0, b"{", "a JSON file"),
    (0, b"[", "a JSON file"),
    (0, b"\x08", "an ONNX model"),
)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; on success it takes the place of `path`.

    Whatever stood at `path` stays untouched if the body fails or the process dies. Parent folders are made.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(path)  # named before it is made: Ctrl-C between the two leaves nothing behind
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"Cannot write {path}: {reason}; free some space or choose another folder.") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path`, wholly or not at all.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def what_is(path: Path) -> str:
    """What a file is by its first bytes, in a person's words, for the message that refuses it."""
    if path.is_dir():
        return "a folder"
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError:
        return "a file that cannot be read" if path.exists() else "not there"
    if not head:
        return "an empty file"
    return next((what for place, start, what in BEGINNINGS if head[place:].startswith(start)), "a file of another kind")


@contextlib.contextmanager
def building(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `target`; on success it becomes `target`, else it goes.

    Args:
        target: the folder.
        replace: a folder that is there gives way.

    Raises:
        InputError: `target` exists, is not an empty folder and is not to be replaced, or the disk is full.
    """
    target = target.parent.resolve() / target.name if replace else target.resolve()
    if not replace and target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise InputError(f"{target} exists and is not empty; name a new folder.")
    temporary: Path | None = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(target)
        temporary.mkdir(0o700)
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        if replace and target.exists():
            old = _beside(target)
            target.replace(old)
            temporary.replace(target)
            shutil.rmtree(old, ignore_errors=True)
        else:
            temporary.replace(target)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"Cannot write {target}: {reason}; free some space or choose another folder.") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A hidden name in the folder of `path` that nobody else has.

    The suffix is kept at the end: writers such as Pillow choose their format by it. The stem is not all kept: the
    longest names that a disk takes would become too long.
    """
    return path.with_name(f".{path.stem[:16]}-{secrets.token_hex(8)}{path.suffix}")
