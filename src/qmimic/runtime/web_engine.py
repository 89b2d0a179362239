"""Pages for browsers, `.web.html`, whose model ONNX Runtime runs here; in a browser onnxruntime-web does."""

import base64
import binascii
import re
from pathlib import Path

from qmimic.errors import InputError
from qmimic.files import LARGE, read_bytes
from qmimic.runtime import onnx_engine
from qmimic.runtime.formats import Session

MODEL = re.compile(rb'(<script id="model" type="text/plain">)([^<]*)(</script>)')


def open_file(path: Path, threads: int, spin: bool) -> Session:
    """See `qmimic.runtime.formats`."""
    return onnx_engine.open_model(path, model_of(read_bytes(path, LARGE), path), threads, spin)


def checksum(path: Path) -> str:
    """See `qmimic.runtime.formats`."""
    return onnx_engine.checksum_of(model_of(read_bytes(path, LARGE), path))


def model_of(page: bytes, path: Path) -> bytes:
    """The ONNX model in a page. Raises InputError: there is none."""
    found = MODEL.search(page)
    try:
        return base64.b64decode(found[2] if found else b"", validate=True) or _none(path)
    except binascii.Error as error:
        raise InputError(f"The model in {path} is damaged; export the page again.") from error


def _none(path: Path) -> bytes:
    raise InputError(f"{path} holds no model; name a page that `qmimic export --to web` wrote.")
