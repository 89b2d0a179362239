"""A graph as OpenVINO's two files, `.xml` and `.bin`."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from qmimic.errors import InputError
from qmimic.runtime.metadata import WEIGHTS_SUM
from qmimic.ship.onnx_file import Exported, build_graph


def write(exported: Exported, path: Path) -> None:
    """Write a detector, float or with integers, by way of its ONNX graph.

    Args:
        exported: the detector.
        path: of the `.xml`; the `.bin` lies beside it.

    Raises:
        InputError: OpenVINO is not installed, or as `build_graph`.
    """
    openvino = _imported()
    # By rows, the change of layout comes last, and OpenVINO leaves it out: its convolutions read pixels as they lie.
    graph = build_graph(replace(exported, by_rows=True))
    _save(openvino, _core(openvino).read_model(graph.SerializeToString()), path)


def describe(path: Path, properties: Mapping[str, str]) -> None:
    """Put into an `.xml` what the file is to say of itself, and which `.bin` belongs to it."""
    openvino = _imported()
    model = _core(openvino).read_model(path)
    weights = hashlib.sha256(path.with_suffix(".bin").read_bytes()).hexdigest()
    for key, value in {**properties, WEIGHTS_SUM: weights}.items():
        model.set_rt_info(value, key)
    _save(openvino, model, path)


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
