"""Maps inside an ONNX detector: what its graph computes on the way can be named like an output.

Detectors are exported with their boxes alone, so the map that a student could imitate is seldom an output. The graph
in memory gets it as one; the file stays as it is.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from numpy.typing import NDArray

from qmimic.errors import InputError
from qmimic.files import open_file as open_there
from qmimic.files import read_bytes
from qmimic.runtime.formats import Session
from qmimic.runtime.onnx_engine import open_file, open_model

MOST_BYTES = (1 << 31) - 1  # of a protobuf message


def open_giving(path: Path, names: Sequence[str] | None, threads: int) -> Session:
    """A session of a file that gives, beside its outputs, values that its graph computes on the way.

    Args:
        path: of the file; weights that lie in other files of its folder are read too.
        names: of the values; those that it does not compute are passed over. None: all.
        threads: of the session.

    Raises:
        InputError: the file cannot be read or run, lacks its weights, or is too large for this.
    """
    model = _model(path)
    outputs = {value.name for value in model.graph.output}
    computed = [name for node in model.graph.node for name in node.output if name and name not in outputs]
    inside = [name for name in computed if names is None or name in names]
    if not inside:
        return open_file(path, threads, spin=False)
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inside)
    try:
        content = model.SerializeToString()
    except (ValueError, EncodeError) as error:
        raise InputError(
            f"{path} is too large to look inside; export it with {inside[0]!r} as an output, or with its weights in a "
            "file beside it."
        ) from error
    return open_model(path, content, threads, spin=False, folder=path.parent)


def _model(path: Path) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(read_bytes(path, MOST_BYTES))
    except DecodeError as error:
        raise _no_model(path) from error
    if not model.graph.node:
        raise _no_model(path)
    for own in _weights_beside(model):
        _require_weights(path, path.parent / own["location"], own)
    return model


def files_beside(path: Path) -> tuple[Path, ...]:
    """The files in which an ONNX file's weights lie, where these are not within it, in order of their names.

    Raises:
        InputError: it is not an ONNX file, or one of them is not there.
    """
    return tuple(path.parent / name for name in sorted({own["location"] for own in _weights_beside(_model(path))}))


def _weights_beside(model: onnx.ModelProto) -> list[dict[str, str]]:
    """Where weights lie that are not within a model: location, offset and length, as far as they are said."""
    known = ({entry.key: entry.value for entry in value.external_data} for value in _tensors(model.graph))
    return [own for own in known if "location" in own]


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """All constants of a graph: its own, those that stand in its nodes, and those of its branches and loops."""
    yield from graph.initializer
    for attribute in (own for node in graph.node for own in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _no_model(path: Path) -> InputError:
    return InputError(f"{path} is not an ONNX file, or is cut short; name a detector's .onnx file.")


def _require_weights(path: Path, beside: Path, own: Mapping[str, str]) -> None:
    """Weights in a file of their own: it must be there, in the model's folder, and as long as the model says."""
    try:
        with open_there(beside, path.parent) as file:
            size = os.fstat(file.fileno()).st_size
        needed = int(own.get("offset", 0)) + int(own.get("length", 0))
    except InputError as error:
        raise InputError(f"{path} needs its weights in {beside}: {error} Copy both files into one folder.") from error
    except ValueError as error:
        raise _no_model(path) from error
    if size < needed:
        raise InputError(f"{path} needs {needed:,} bytes of weights in {beside}, which has {size:,}; copy it again.")


def lies_in_a_branch(path: Path, name: str) -> bool:
    """Whether a value is computed in a branch or a loop of the graph, from where it cannot be given."""

    def within(nodes: Iterable[onnx.NodeProto]) -> bool:
        graphs = [own.g for node in nodes for own in node.attribute if own.HasField("g")]
        return any(any(name in node.output for node in one.node) or within(one.node) for one in graphs)

    return within(_model(path).graph.node)


def branching_maps(
    path: Path, values: Mapping[str, NDArray[np.generic]], size: tuple[int, int], batch: int
) -> dict[int, tuple[str, int]]:
    """Maps inside a file that a student could imitate: of each stride the last one that several convolutions read.

    From such maps a detector's heads branch off. A stride without one has its last map. What is pooled to one place is
    no map.

    Args:
        path: of the file.
        values: all that it computes on some pictures, by name.
        size: height and width of the pictures, pixels.
        batch: how many there are.

    Returns:
        Name and channels by stride, pixels, in growing order.
    """
    nodes = _model(path).graph.node
    readers = Counter(name for node in nodes if node.op_type == "Conv" for name in node.input[:1])
    found: dict[int, tuple[int, str, int]] = {}
    for name in (name for node in nodes for name in node.output):
        value = values.get(name)
        stride = None if value is None else stride_of(value, size)
        if value is None or stride is None or stride < 2 or value.shape[2:] == (1, 1) or len(value) != batch:
            continue
        several = min(readers[name], 2)
        if stride not in found or several >= found[stride][0]:
            found[stride] = several, name, value.shape[1]
    return {stride: (name, channels) for stride, (_, name, channels) in sorted(found.items())}


def stride_of(value: NDArray[np.generic], size: tuple[int, int]) -> int | None:
    """The stride of a map [B, C, H/stride, W/stride] of pictures of H x W pixels; None of what is no such map."""
    if not isinstance(value, np.ndarray) or value.ndim != 4 or value.dtype.kind != "f" or not all(value.shape):
        return None
    stride = size[0] // value.shape[2]
    return stride if stride and (stride * value.shape[2], stride * value.shape[3]) == size else None


def advice_on_map(value: NDArray[np.generic], size: tuple[int, int]) -> str:
    """Why an output cannot be a map, to end a message with: a colon and a hint, or nothing where none is known.

    Args:
        value: of float numbers.
        size: height and width of the pictures, pixels.
    """
    if value.ndim != 4 or not all(value.shape):
        return ""
    if stride_of(np.moveaxis(value, 3, 1), size):
        return ": its channels come last; name what it is before it is transposed"
    cut = [
        stride
        for stride in range(2, min(size) + 1)
        if all(-(-side // stride) == cells for side, cells in zip(size, value.shape[2:], strict=True))
    ]
    stride = next((one for one in cut if one & (one - 1) == 0), None)  # detectors halve their maps
    if stride:
        return f": the picture's border cuts its cells; take sides that are multiples of {stride}"
    return ": if the file resizes its pictures, take those of the size that it uses (teacher.size or data.size)"
