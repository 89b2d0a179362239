"""Pages for browsers, `.web.html`: LiteRT or ONNX Runtime runs the model here, whichever the page's engine is built of.

The engine that a page holds is a program, and a page may be a stranger's: browsers alone run it, which lock it in.
"""

import base64
import binascii
import re
from pathlib import Path

from qmimic.errors import InputError
from qmimic.files import LARGE, read_bytes
from qmimic.runtime import litert_engine, onnx_engine
from qmimic.runtime.formats import Session

MODEL = re.compile(rb'(<script id="model" type="text/plain">)([^<]*)(</script>)')


def open_file(path: Path, threads: int, spin: bool) -> Session:
    """See `qmimic.runtime.formats`."""
    model = model_of(read_bytes(path, LARGE), path)
    if litert_engine.is_model(model):
        return litert_engine.open_model(path, model, threads)
    return onnx_engine.open_model(path, model, threads, spin)


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
