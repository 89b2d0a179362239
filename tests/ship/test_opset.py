"""Graphs in older words: the same numbers to the bit, or a sentence."""

import copy
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper

from cli_cases import Refused
from qmimic.api import build_detector
from qmimic.cli import main
from qmimic.config import DetectorConfig
from qmimic.detectors.detector import Detector
from qmimic.errors import InputError
from qmimic.runtime import Detector as ShippedDetector
from qmimic.ship.onnx_file import Exported, build_graph
from qmimic.ship.opset import OLDEST, OPSET, lower
from tiny_detectors import lively, tiny_spec


def detector(kind: str) -> Detector:
    if kind == "faster_rcnn":
        return lively(tiny_spec())
    return build_detector("resnet18/16", ("cat", "dog"), (96, 96), config=DetectorConfig(architecture=kind))


@pytest.mark.parametrize("batch", [1, None])
@pytest.mark.parametrize("kind", ["faster_rcnn", "rfcn", "one_stage"])
def test_older_opsets_compute_the_same(kind: str, batch: int | None) -> None:
    images = {"images": np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3)).astype(np.uint8)}
    newest = build_graph(Exported(detector(kind).eval(), batch))
    wanted = onnxruntime.InferenceSession(newest.SerializeToString()).run(None, images)
    assert (wanted[1] >= 0).any()
    for opset in range(OLDEST, OPSET):
        older = copy.deepcopy(newest)
        lower(older, opset)
        onnx.checker.check_model(older, full_check=True)
        assert [one.version for one in older.opset_import] == [opset]
        found = onnxruntime.InferenceSession(older.SerializeToString()).run(None, images)
        for own, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(own, other)


def graph_of(*nodes: onnx.NodeProto, **constants: list[int]) -> onnx.ModelProto:
    ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 3]) for name in ("x", "y"))
    given = [helper.make_tensor(name, TensorProto.INT64, [len(value)], value) for name, value in constants.items()]
    graph = helper.make_graph([*nodes], "g", *([one] for one in ends), given)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


@pytest.mark.parametrize(
    ("model", "operator"),
    [
        (graph_of(helper.make_node("Gelu", ["x"], ["y"])), "Gelu"),
        (graph_of(helper.make_node("ReduceMax", ["x", "axes"], ["y"], keepdims=1)), "ReduceMax"),  # axes: computed
        (graph_of(helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT, saturate=0)), "Cast"),
    ],
)
def test_what_an_older_opset_cannot_say_is_refused(model: onnx.ModelProto, operator: str) -> None:
    with pytest.raises(InputError, match=rf"cannot be written in opset 17: it uses {operator} as only newer ones know"):
        lower(model, 17)


def test_the_command_writes_and_proves_it(trained: Path, tmp_path: Path, refused: Refused) -> None:
    student = trained / "run" / "student.safetensors"
    assert main(["export", str(student), "--opset", "17", "--out", str(tmp_path)]) == 0
    path = tmp_path / "student.onnx"
    assert [one.version for one in onnx.load(path).opset_import] == [17]
    assert ShippedDetector(path).metadata.parity["unmatched"] == 0
    for opset in (16, 21):
        assert "is not supported; choose 17 to 20" in refused("export", student, "--opset", opset)
    assert "--opset is only for ONNX files" in refused("export", student, "--opset", 17, "--to", "openvino")
