"""ONNX files by ONNX Runtime on the CPU."""

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from qmimic.errors import InputError
from qmimic.files import LARGE, read_bytes
from qmimic.runtime.formats import Arrays, Input, Session, cannot_run

TYPES = {"float": "float32", "double": "float64"}  # where ONNX and numpy have different names for a type
# Fields of a ModelProto: graph, operator sets, functions. Its description and its author are in other fields.
COMPUTED = {7, 8, 25}


def open_file(path: Path, threads: int, spin: bool) -> Session:
    """See `qmimic.runtime.formats`."""
    return open_model(path, str(path), threads, spin)


def open_model(path: Path, model: str | bytes, threads: int, spin: bool, folder: Path | None = None) -> Session:
    """A session for a model, given by its file name or bytes; errors call it `path`.

    Args:
        path: name of the model.
        model: its file or bytes.
        threads, spin: see `qmimic.runtime.formats`.
        folder: where a model that is given by bytes may have weights in files of their own; None: nowhere.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX Runtime is not installed: pip install 'qmimic[runtime]'.") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    options.log_severity_level = 4  # what it warns of is for people who build graphs; errors are raised besides
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions have no narrower common type
        raise cannot_run(path, f"ONNX Runtime {onnxruntime.__version__}", "onnxruntime", error) from error
    names = [value.name for value in session.get_outputs()]

    def run(feeds: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    inputs = {value.name: Input(_sides(value.shape), _numpy_type(value.type)) for value in session.get_inputs()}
    shapes = {value.name: _sides(value.shape) for value in session.get_outputs()}
    engine = f"ONNX Runtime {onnxruntime.__version__}"
    return Session(run, inputs, session.get_modelmeta().custom_metadata_map, engine, shapes)


def _sides(shape: Sequence[int | str | None]) -> tuple[int | None, ...]:
    """Of a shape whose open sides may have names."""
    return tuple(side if isinstance(side, int) else None for side in shape)


def _numpy_type(kind: str) -> "np.dtype[np.generic] | None":
    """The numpy type of `tensor(float)` and the like; None if numpy lacks it."""
    name = kind.removeprefix("tensor(").removesuffix(")")
    try:
        own: np.dtype[np.generic] = np.dtype(TYPES.get(name, name))
    except TypeError:
        return None
    return own if own.kind in "biuf" else None


def checksum(path: Path) -> str:
    """See `qmimic.runtime.formats`."""
    return checksum_of(read_bytes(path, LARGE))


def checksum_of(model: bytes) -> str:
    """`checksum` for a file's bytes."""
    digest = hashlib.sha256()
    for number, content in sorted(_fields(model), key=lambda field: field[0]):
        if number in COMPUTED:
            digest.update(number.to_bytes(4, "big") + len(content).to_bytes(8, "big"))
            digest.update(content)
    return digest.hexdigest()


def _fields(content: bytes) -> Iterator[tuple[int, memoryview]]:
    """Numbers and contents of a protobuf message's fields, read without its library."""
    view, place = memoryview(content), 0
    while place < len(view):
        key, place = _varint(view, place)
        start = place
        match key & 7:
            case 0:
                _, place = _varint(view, place)
            case 1:
                place += 8
            case 2:
                length, start = _varint(view, place)
                place = start + length
            case 5:
                place += 4
            case _:  # graphs that an engine loads have no others
                place = len(view)
        yield key >> 3, view[start:place]


def _varint(view: memoryview, place: int) -> tuple[int, int]:
    """A number of variable length, and the position after it."""
    value = shift = 0
    while place < len(view):
        byte = view[place]
        place += 1
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            break
    return value, place
