"""Maps inside an ONNX detector: what its graph computes on the way can be named like an output.

Detectors are exported with their boxes alone, so the map that a student could imitate is seldom an output. The graph
in memory gets it as one; the file stays as it is.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from numpy.typing import NDArray

from qmimic.errors import InputError
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
        InputError: the file cannot be read or run, or is too large for this.
    """
    try:
        model = _model(path)
    except DecodeError:  # ONNX Runtime says what is wrong with it
        return open_file(path, threads, spin=False)
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
    return onnx.load_model_from_string(read_bytes(path, MOST_BYTES))


def branching_maps(
    path: Path, values: Mapping[str, NDArray[np.generic]], size: tuple[int, int]
) -> dict[int, tuple[str, int]]:
    """Maps inside a file that a student could imitate: of each stride the last one that several convolutions read.

    From such maps a detector's heads branch off. A stride without one has its last map.

    Args:
        path: of the file.
        values: all that it computes on one picture, by name.
        size: height and width of the picture, pixels.

    Returns:
        Name and channels by stride, pixels, in growing order.
    """
    nodes = _model(path).graph.node
    readers = Counter(name for node in nodes if node.op_type == "Conv" for name in node.input[:1])
    found: dict[int, tuple[int, str, int]] = {}
    for name in (name for node in nodes for name in node.output):
        value = values.get(name)
        stride = None if value is None else stride_of(value, size)
        if value is None or stride is None or stride < 2:
            continue
        several = min(readers[name], 2)
        if stride not in found or several >= found[stride][0]:
            found[stride] = several, name, value.shape[1]
    return {stride: (name, channels) for stride, (_, name, channels) in sorted(found.items())}


def stride_of(value: NDArray[np.generic], size: tuple[int, int]) -> int | None:
    """The stride of a map [B, C, H/stride, W/stride] of pictures of H x W pixels; None of what is no such map."""
    if not isinstance(value, np.ndarray) or value.ndim != 4 or value.dtype.kind != "f" or not value.shape[2]:
        return None
    stride = size[0] // value.shape[2]
    return stride if stride and (stride * value.shape[2], stride * value.shape[3]) == size else None
