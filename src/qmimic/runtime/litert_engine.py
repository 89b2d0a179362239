"""LiteRT's files, `.tflite`, by its interpreter on the CPU: what phones, small boards and microcontrollers run."""

import hashlib
from collections import deque
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmimic.errors import InputError
from qmimic.files import LARGE, read_bytes
from qmimic.runtime.formats import Arrays, Input, Session, cannot_run, refuse_other_kinds, require_survival
from qmimic.runtime.metadata import INPUT, KEY, REGIONS, Metadata, from_properties
from qmimic.runtime.places import LOGIT_STEP, decode, place_count

# Loads the model that comes on its standard input, and runs it once.
TRIAL = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
model = Interpreter(model_content=sys.stdin.buffer.read(), num_threads=1)
model.allocate_tensors()
taken = model.get_input_details()[0]
model.set_tensor(taken["index"], np.zeros(taken["shape"], taken["dtype"]))
model.invoke()
"""


def open_file(path: Path, threads: int, spin: bool) -> Session:
    """See `qmimic.runtime.formats`. Its threads sleep between runs in any case."""
    return open_model(path, read_bytes(path, LARGE), threads)


def open_model(path: Path, content: bytes, threads: int) -> Session:
    """A session of a model's bytes; `path` is how an error calls it.

    The interpreter ends the process over some damaged models, so another process runs the model first.
    """
    litert, _ = _imported()
    properties = properties_of(content, path)
    if KEY not in properties:
        raise InputError(
            f"{path} is not a qmimic detector but another TensorFlow Lite model, which takes "
            f"{_taken(content, path)}; name a file that `qmimic export` wrote."
        )
    metadata = from_properties(properties, path)
    require_survival(path, "LiteRT", TRIAL, [], content)

    def interpreter() -> Any:
        made = litert.Interpreter(model_content=content, num_threads=threads)
        made.allocate_tensors()
        return made

    try:
        first = interpreter()
        (taken,), (given,) = first.get_input_details(), first.get_output_details()
        wanted = 1, place_count(metadata), len(metadata.classes) + 4
        if tuple(given["shape"]) != wanted or given["dtype"] not in (np.float32, np.int8):
            raise ValueError(f"its output should have the shape {wanted}")
    except Exception as error:  # its exceptions have no common type but this
        raise cannot_run(path, "LiteRT", "ai-edge-litert", error) from error
    # An interpreter holds the results of its last run, so no two threads may have the same one.
    free: deque[Any] = deque([first])

    def run(feeds: Arrays) -> Arrays:
        try:
            own = free.pop()
        except IndexError:
            own = interpreter()
        try:
            pixels = feeds[INPUT]
            if taken["dtype"] == np.int8:
                pixels = (pixels ^ 128).view(np.int8)
            own.set_tensor(taken["index"], pixels.astype(taken["dtype"], copy=False))
            own.invoke()
            outputs = own.get_tensor(given["index"])
        finally:
            free.append(own)
        return regions(outputs, metadata)

    inputs = {INPUT: Input(tuple(map(int, taken["shape"])), np.dtype(np.uint8))}
    return Session(run, inputs, properties, f"LiteRT {version('ai-edge-litert')}")


def regions(outputs: NDArray[Any], metadata: Metadata) -> Arrays:
    """Boxes and scores of a graph's outputs [1, N, K + 4]: floats, integers, or integers that were made floats."""
    if outputs.dtype == np.float32 and metadata.precision == "int8":
        outputs = np.rint(outputs / np.float32(LOGIT_STEP)).astype(np.int8)
    return dict(zip(REGIONS, decode(outputs, metadata), strict=True))


def is_model(content: bytes) -> bool:
    """Whether bytes say that they are a model of LiteRT."""
    return content[4:8] == b"TFL3"


def properties_of(content: bytes, path: Path) -> dict[str, str]:
    """What a file says of itself.

    Raises:
        InputError: LiteRT is not installed, or the bytes are not a model of LiteRT.
    """
    model = parse(content, path)
    found = {}
    for entry in model.metadata or []:
        data = model.buffers[entry.buffer].data
        found[_text(entry.name)] = b"" if data is None else bytes(data)
    return {name: value.decode("utf-8", "replace") for name, value in found.items()}


def checksum(path: Path) -> str:
    """See `qmimic.runtime.formats`."""
    return checksum_of(read_bytes(path, LARGE), path)


def checksum_of(content: bytes, path: Path) -> str:
    """The checksum of every value of a model but its metadata, however the bytes lie in the file."""
    model = parse(content, path)
    for entry in model.metadata or []:
        model.buffers[entry.buffer].data = None
    while model.buffers and model.buffers[-1].data is None:
        model.buffers.pop()  # those of the metadata stand last
    model.metadata = model.description = None
    digest = hashlib.sha256()
    _add(digest, model)
    return digest.hexdigest()


def _taken(content: bytes, path: Path) -> str:
    """The inputs of a model, as a person reads them."""
    _, schema = _imported()
    graph = parse(content, path).subgraphs[0]
    kinds = {number: name.lower() for name, number in vars(schema.TensorType).items() if isinstance(number, int)}
    try:
        tensors = [graph.tensors[place] for place in graph.inputs]
        said = [f"{_text(one.name)} {kinds.get(one.type, 'other')} {[*map(int, one.shape)]}" for one in tensors]
    except (IndexError, TypeError, ValueError):
        said = []
    return ", ".join(said) or "nothing that can be read"


def parse(content: bytes, path: Path) -> Any:
    """The model (`ModelT`) in a file's bytes. Raises: as `properties_of`."""
    _, schema = _imported()
    if not is_model(content):
        refuse_other_kinds(path)
        raise InputError(f"{path} is not a model of LiteRT; name a file that `qmimic export --to litert` wrote.")
    try:
        model = schema.ModelT.InitFromPackedBuf(content, 0)
        names = [entry.buffer for entry in model.metadata or []]
        if any(not 0 <= place < len(model.buffers) for place in names) or not model.subgraphs:
            raise IndexError("its tables point outside")
    except Exception as error:  # a damaged table fails in any of Python's ways
        raise InputError(f"{path} is damaged ({error}); copy or export it again.") from error
    return model


def _add(digest: Any, value: Any) -> None:
    """Every field of every object, in order of name."""
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
    elif isinstance(value, list):
        digest.update(f"[{len(value)}".encode())
        for one in value:
            _add(digest, one)
    elif hasattr(value, "__dict__"):
        for name, own in sorted(vars(value).items()):
            if own is not None:
                digest.update(name.encode())
                _add(digest, own)
    else:
        digest.update(repr(value).encode())


def _text(value: bytes | str | None) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value or ""


def _imported() -> tuple[Any, Any]:
    """The interpreter's module and the one that reads the format."""
    try:
        from ai_edge_litert import interpreter, schema_py_generated
    except ImportError as error:
        raise InputError("LiteRT is not installed: pip install 'qmimic[litert]'.") from error
    return interpreter, schema_py_generated
