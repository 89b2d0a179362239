"""OpenVINO's files come from the same graph as ONNX's, with pixels centred as OpenVINO is fast at."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.detectors.detector import Detector
from qmimic.runtime.formats import FORMATS
from qmimic.ship import onnx_file
from qmimic.ship.onnx_file import Exported
from qmimic.ship.openvino_file import centred_by_rows
from qmimic.ship.opset import OLDEST, OPSET
from qmimic.ship.write import describe, write_described
from tiny_detectors import lively, one_stage, some_images, tiny_spec


def on_grids() -> Detector:
    integer = prepare_qat(one_stage().eval())
    calibrate(integer, [some_images(0)])
    return integer


@pytest.mark.parametrize(
    ("kind", "batch", "opset"),
    [
        ("two stages", None, OPSET),
        ("one stage", 2, OLDEST),
        ("grey", 2, OPSET),
        ("int8", 2, OPSET),
    ],
)
def test_pixels_centred_by_rows_have_the_same_values(kind: str, batch: int | None, opset: int) -> None:
    made = {
        "two stages": lambda: lively(tiny_spec()),
        "one stage": one_stage,
        "grey": lambda: one_stage(grey=True),
        "int8": on_grids,
    }
    exported = Exported(made[kind]().eval(), batch, opset=opset)
    written = exported.graph.SerializeToString()
    rows = centred_by_rows(exported.graph)
    assert exported.graph.SerializeToString() == written  # what is shared with other formats is as it was
    onnx.checker.check_model(rows, full_check=True)
    if kind != "grey":
        (transpose,) = (node for node in rows.graph.node if node.op_type == "Transpose" and node.input[0] == "pixels")
        assert [node.op_type for node in rows.graph.node if transpose.output[0] in node.input] != ["Cast"]
    height, width = exported.detector.spec.size
    pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3)).astype(np.uint8)
    found, wanted = (
        onnxruntime.InferenceSession(one.SerializeToString()).run(None, {"images": pixels})
        for one in (rows, exported.graph)
    )
    assert (wanted[1] >= 0).any()
    for own, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(own, other)


def test_many_formats_are_written_from_one_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced, made = onnx_file._traced, list[Exported]()

    def counted(exported: Exported) -> onnx.ModelProto:
        made.append(exported)
        return traced(exported)

    monkeypatch.setattr(onnx_file, "_traced", counted)
    exported = Exported(one_stage().eval())
    for target in ("onnx", "openvino"):
        kind = FORMATS[target]
        write_described(exported, kind, describe(exported.detector, {}), tmp_path / f"a{kind.suffixes[0]}")
    assert len(made) == 1
    assert exported.changed(batch=1, suppression=True) is exported
    assert exported.changed(suppression=False) == Exported(exported.detector, suppression=False)
