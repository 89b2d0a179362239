"""A graph as OpenVINO's two files, `.xml` and `.bin`."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import onnx

from qmimic.errors import InputError
from qmimic.runtime.metadata import WEIGHTS_SUM


def write_openvino(model: onnx.ModelProto, properties: Mapping[str, str], path: Path) -> None:
    """Write an ONNX graph, float or with integers, as OpenVINO's.

    Args:
        model: checked.
        properties: what the file is to say of itself.
        path: of the `.xml`; the `.bin` lies beside it.

    Raises:
        InputError: OpenVINO is not installed.
    """
    try:
        import openvino as ov
    except ImportError as error:
        raise InputError("OpenVINO is not installed: pip install 'qmimic[openvino]'.") from error
    graph = ov.Core().read_model(model.SerializeToString())
    ov.save_model(graph, path, compress_to_fp16=False)
    weights = hashlib.sha256(path.with_suffix(".bin").read_bytes()).hexdigest()
    for key, value in {**properties, WEIGHTS_SUM: weights}.items():
        graph.set_rt_info(value, key)
    ov.save_model(graph, path, compress_to_fp16=False)
