"""The way in: strangers' files are opened, read and parsed only here.

A file is opened once; it must be a regular file, lie inside its root after following links, and is read up to a limit.
"""

import errno
import functools
import json
import math
import os
import re
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

from qmimic.errors import InputError

BEGINNINGS = (  # of files often mistaken for others: offset, bytes, and what they identify
    (0, b"PK\x03\x04", "a zip archive, such as PyTorch's .pt files (Ultralytics' are these too)"),
    *((0, bytes([0x80, number]), "a pickle, such as PyTorch's older .pth files") for number in range(2, 6)),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (0, b"BM", "a BMP picture"),
    (0, b"II*\0", "a TIFF picture"),
    (0, b"MM\0*", "a TIFF picture"),
    (8, b"WEBP", "a WebP picture"),
    *((4, b"ftyp" + brand, "a HEIC picture") for brand in (b"heic", b"heix", b"hevc", b"heim", b"mif1", b"msf1")),
    *((4, b"ftyp" + brand, "an AVIF picture") for brand in (b"avif", b"avis")),
    (4, b"ftyp", "a video"),
    (4, b"jP  ", "a JPEG 2000 picture"),
    (0, b"8BPS", "a Photoshop picture"),
    (128, b"DICM", "a DICOM picture"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"%PDF", "a PDF document"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (4, b"ET", "an ExecuTorch program"),
    (0, b"\x89HDF", "an HDF5 file, such as Keras models"),
    (0, b"\x93NUMPY", "an array of numpy"),
    (0, b"version https://git-lfs", "a note in place of a file that Git LFS keeps (`git lfs pull` fetches it)"),
    (8, b'{"', "a safetensors file"),
    (0, b"\x08", "an ONNX model"),
)
TEXTS = (  # the same for texts, after white space, in lower case
    (re.compile(rb"<!doctype html|<html"), "a web page"),
    (re.compile(rb"(<[?!][^>]*>\s*)*<net\b"), "an OpenVINO model"),
    (re.compile(rb"(<[?!][^>]*>\s*)*<annotation\b"), "a VOC label file"),
    (re.compile(rb"(<[?!][^>]*>\s*)*<svg\b"), "an SVG picture"),
    (re.compile(rb"<"), "an XML file"),
    (re.compile(rb"[{\[]"), "a JSON file"),
)
OTHER_KIND = "a file of another kind"
MIB = 1 << 20
SMALL = 16 * MIB  # bytes; for qmimic's own files: a result, a description, a log
LARGE = 1 << 30  # bytes; for labels
MAX_DEPTH = 64  # of nested values; no sensible file is deeper
MAX_SHOWN = 100  # characters of faulty input shown in a message
SHAPES = bytes.maketrans(
    b"123456789E", b"000000000e"
)  # maps numbers to their shape, so that a plain search finds long ones
KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISLNK, "a link"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class MissingError(InputError):
    """There is no file of that name. For a file that exists but cannot be read, InputError is raised."""


def is_there(path: Path) -> bool:
    """Whether a folder has an entry of this name, of any kind; False for names that no disk can hold.

    Optional files are checked with this and not with `Path.is_file`, which is False for named pipes and broken links: a
    spoilt file would count as missing.
    """
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # a NUL in the name
        return False
    except OSError as error:
        return error.errno != errno.ENAMETOOLONG
    return True


def inside(root: Path, path: Path) -> Path:
    """The path, if it stays within a folder after following links.

    Raises:
        InputError: it leads out of the folder, or is not a valid path.
    """
    _real(path, root)
    return path


def open_file(path: Path, root: Path | None = None, limit: int | None = None) -> BufferedReader:
    """Open a stranger's file for reading. This never blocks, and the file opened is the one that was checked.

    Args:
        path: of the file.
        root: the folder in which it must lie after following links; None: the user named it, and it may lie anywhere.
        limit: most bytes that it may have; None: any number, for files that are read piece by piece.

    Raises:
        MissingError: there is no such file.
        InputError: it is not a regular file, lies elsewhere, is too large or cannot be opened.
    """
    handle = -1
    try:
        # A plain open would wait on a named pipe.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path} is {kind_of(status.st_mode)}, not a file; replace or remove it.")
        if root is not None:
            _check_inside(handle, path, root)
        if limit is not None and status.st_size > limit:
            raise _too_large(path, limit)
        file, handle = os.fdopen(handle, "rb"), -1
        return file
    except (OSError, ValueError) as error:
        raise unreadable(path, error) from error
    finally:
        if handle >= 0:
            os.close(handle)


def read_bytes(path: Path, limit: int = SMALL, root: Path | None = None) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        limit: bytes; counted while reading, since a file may grow meanwhile.
        root: as in `open_file`.

    Raises:
        MissingError, InputError: as `open_file`.
    """
    with open_file(path, root, limit) as file:
        try:
            parts = [file.read(os.fstat(file.fileno()).st_size + 1)]
            while parts[-1] and (left := limit - sum(map(len, parts))) >= 0:
                parts.append(file.read(min(left + 1, MIB)))
        except OSError as error:
            raise unreadable(path, error) from error
    if sum(map(len, parts)) > limit:
        raise _too_large(path, limit)
    return b"".join(parts)


def read_text(path: Path, limit: int = SMALL, root: Path | None = None) -> str:
    """The content of a text file, without a byte order mark. Args: as `read_bytes`.

    Raises:
        MissingError, InputError: as `open_file`; or the file is not UTF-8.
    """
    try:
        text = read_bytes(path, limit, root).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    # Line ends as in Python's own text files; two scans cost less than a decoder that looks for them.
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def read_json(path: Path, limit: int = SMALL, root: Path | None = None) -> Any:
    """The value of a JSON file. Args: as `read_bytes`.

    Raises:
        MissingError, InputError: as `read_text` and `parse_json`.
    """
    return parse_json(read_text(path, limit, root), str(path))


def parse_json(text: str, source: str, strict: bool = True) -> Any:
    """The plain values of a JSON text without duplicate keys and with integers of at most 64 bits.

    Args:
        text: JSON.
        source: its name in errors.
        strict: refuse NaN, Infinity, numbers that overflow to it, text that is not valid Unicode, and values nested
            more than `MAX_DEPTH` deep. False for labels, whose reader checks each entry and says which one is wrong;
            then an integer of more than 64 bits becomes a float.

    Raises:
        InputError: it is not such JSON.
    """

    def number(digits: str) -> float:
        value = float(digits)
        if strict and not math.isfinite(value):
            raise ValueError(f"{digits[:MAX_SHOWN]} is not a number that can be computed with")
        return value

    def integer(digits: str) -> int | float:
        if len(digits) <= 20 and -(1 << 63) <= int(digits) < 1 << 63:
            return int(digits)
        if strict:
            raise ValueError(f"the integer {digits[:MAX_SHOWN]} has more than 64 bits")
        return number(digits)

    shapes = text.encode("utf-8", "surrogatepass").translate(SHAPES, b"+")
    # Most texts need no check of each number, which costs as much as everything else.
    each: dict[str, Any] = {}
    if b"0" * 18 in shapes or b"e000" in shapes:
        each = {"parse_int": integer, "parse_float": number}
    del shapes
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=number, **each)
        if strict:
            check_depth(value)
        if strict and "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is not text
    except (ValueError, RecursionError) as error:
        reason = "it nests too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{source} is not a whole JSON file ({reason}); correct it or copy it again.") from error
    return value


def check_depth(value: Any) -> None:
    """Check that plain values are not nested so deeply that walking them would exhaust the stack.

    Raises:
        ValueError: they are.
    """
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [
            own
            for one in level
            if isinstance(one, dict | list)
            for own in (one.values() if isinstance(one, dict) else one)
            if isinstance(own, dict | list)
        ]
        if not level:
            return
    raise ValueError(f"it nests values more than {MAX_DEPTH} deep")


def what_is(path: Path) -> str:
    """What a file is, judged by its first bytes, in words for the message that refuses it."""
    try:
        with open_file(path) as file:
            head = file.read(512)
    except MissingError:
        return "not there"
    except (InputError, OSError):
        return "a folder" if path.is_dir() else "a file that cannot be read"
    if not head:
        return "an empty file"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    found = [what for place, start, what in BEGINNINGS if head[place:].startswith(start)]
    return next(iter(found + [what for start, what in TEXTS if start.match(text)]), OTHER_KIND)


def _check_inside(handle: int, path: Path, root: Path) -> None:
    """Check that an opened file lies in a folder, by the system's own name for it if available."""
    try:
        real = os.readlink(f"/proc/self/fd/{handle}")  # noqa: PTH115 (a Path costs more than the call)
    except OSError:  # not Linux
        if not os.path.samestat(_real(path, root).stat(), os.fstat(handle)):
            raise InputError(f"{path} changes while it is read; try again.") from None
        return
    if not real.startswith(f"{str(_root(root)).rstrip('/')}/"):
        _real(path, root)  # raises if it leads out; a mount may have other names
        if not os.path.samestat(path.stat(), os.fstat(handle)):
            raise InputError(f"{path} changes while it is read; try again.")


def _root(root: Path) -> Path:
    return _resolved(root.absolute())  # after a chdir, a relative name would mean another folder


@functools.lru_cache(maxsize=16)
def _resolved(root: Path) -> Path:
    return root.resolve()


def _real(path: Path, root: Path) -> Path:
    """Where a path leads after following links."""
    try:
        real = path.resolve()
        if not real.is_relative_to(_root(root)):
            raise InputError(
                f"{path} leads out of {root}, and nothing outside that folder is read; copy the file there."
            )
    except (OSError, ValueError, RuntimeError) as error:  # the last: a link to itself, until Python 3.12
        raise unreadable(path, error) from error
    return real


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise ValueError(f"the key {twice[:MAX_SHOWN]!r} is given twice")
    return made


def kind_of(mode: int) -> str:
    """What is at a path, by its mode, in words: "a folder"."""
    return next((name for test, name in KINDS if test(mode)), "something else")


def _too_large(path: Path, limit: int) -> InputError:
    size = f"{limit >> 30} GiB" if limit >= 1 << 30 else f"{limit / MIB:.3g} MiB"
    return InputError(f"{path} is over {size}; shorten or split it.")


def unreadable(path: Path, error: BaseException) -> InputError:
    """The error for a path that cannot be read."""
    if isinstance(error, ValueError):  # a NUL in the name
        return InputError(f"{str(path)!r} is not a path; rename the file.")
    if isinstance(error, RuntimeError) or (isinstance(error, OSError) and error.errno == errno.ELOOP):
        return InputError(f"{path} is a link that leads back to itself; replace or remove it.")
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if is_there(path):
            return InputError(f"{path} is a link that leads nowhere; replace or remove it.")
        return MissingError(f"Cannot read {path}: there is no such file; check its name.")
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return InputError(f"Cannot read {path}: {reason}; check its name and permissions.")
