"""A graph as OpenVINO's two files, `.xml` and `.bin`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from qmimic.errors import InputError
from qmimic.runtime.metadata import INPUT, WEIGHTS_SUM
from qmimic.ship.onnx_file import Exported


def write(exported: Exported, path: Path) -> None:
    """Write a detector, float or with integers, by way of its ONNX graph.

    Args:
        exported: the detector.
        path: of the `.xml`; the `.bin` lies beside it.

    Raises:
        InputError: OpenVINO is not installed, or as `build_graph`.
    """
    openvino = _imported()
    graph = centred_by_rows(exported.graph)
    _save(openvino, _core(openvino).read_model(graph.SerializeToString()), path)


def describe(path: Path, properties: Mapping[str, str]) -> None:
    """Put into an `.xml` what the file is to say of itself, and which `.bin` belongs to it."""
    openvino = _imported()
    model = _core(openvino).read_model(path)
    weights = hashlib.sha256(path.with_suffix(".bin").read_bytes()).hexdigest()
    for key, value in {**properties, WEIGHTS_SUM: weights}.items():
        model.set_rt_info(value, key)
    _save(openvino, model, path)


def centred_by_rows(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that subtracts the mean from whole rows of pixels before the layout changes, not after it.

    The values are the same. With the change of layout last, OpenVINO leaves it out: its convolutions read pixels as
    they lie. ONNX Runtime is faster the other way. Grey pixels are left as they are: their layout changes last already.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    transpose = next((node for node in graph.node if node.op_type == "Transpose" and node.input[0] == INPUT), None)
    if transpose is None:
        return made
    (cast,) = (node for node in graph.node if transpose.output[0] in node.input)
    (subtract,) = (node for node in graph.node if cast.output[0] in node.input)
    mean = next(onnx.numpy_helper.to_array(one) for one in graph.initializer if one.name == subtract.input[1])
    height, width, channels = (dim.dim_value for dim in graph.input[0].type.tensor_type.shape.dim[1:])
    constants = {
        "rows.shape": np.array([0, height, width * channels]),  # 0: as it is
        "rows.mean": np.tile(mean.ravel(), width),
        "pixels.shape": np.array([0, height, width, channels]),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in constants.items())
    make = onnx.helper.make_node
    rows = [
        make("Reshape", [INPUT, "rows.shape"], ["rows"]),
        make("Cast", ["rows"], ["rows.float"], to=onnx.TensorProto.FLOAT),
        make("Sub", ["rows.float", "rows.mean"], ["rows.centred"]),
        make("Reshape", ["rows.centred", "pixels.shape"], ["pixels"]),
        make("Transpose", ["pixels"], list(subtract.output), perm=[0, 3, 1, 2]),
    ]
    for node in (transpose, cast, subtract):
        graph.node.remove(node)
    for place, node in enumerate(rows):
        graph.node.insert(place, node)
    return made


def _save(openvino: Any, model: Any, path: Path) -> None:
    try:
        openvino.save_model(model, path, compress_to_fp16=False)
    except RuntimeError as error:  # its word for a full disk, too
        raise OSError(f"OpenVINO says: {' '.join(str(error).split())[:100]}") from error


def _imported() -> Any:
    try:
        import openvino
    except ImportError as error:
        raise InputError("OpenVINO is not installed: pip install 'qmimic[openvino]'.") from error
    return openvino


def _core(openvino: Any) -> Any:
    core = openvino.Core()
    core.set_property({"ENABLE_MMAP": False})  # a file is written over after it was read
    return core
