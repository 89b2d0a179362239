"""Suppression by the runtime finds what suppression in a graph finds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cli_cases import Refused
from qmimic.boxes import suppress as suppress_in_torch
from qmimic.cli import main
from qmimic.errors import InputError
from qmimic.runtime import Detector as ShippedDetector
from qmimic.runtime.formats import FORMATS
from qmimic.runtime.suppression import suppress
from qmimic.ship.onnx_file import Exported
from qmimic.ship.parity import compare
from qmimic.ship.write import describe, ship
from tiny_detectors import lively, some_images, tiny_spec

KINDS = {"faster_rcnn": {}, "rfcn": {"architecture": "rfcn", "roi_size": 3, "nms_threshold": 0.2}}


@given(st.integers(0, 1000), st.integers(1, 40), st.sampled_from([0.3, 0.5, 0.7]))
def test_numpy_and_torch_agree(seed: int, count: int, threshold: float) -> None:
    generator = np.random.default_rng(seed)
    low = generator.uniform(0, 60, (count, 2))
    boxes = np.concatenate([low, low + generator.uniform(1, 40, (count, 2))], 1).astype(np.float32)
    stays = suppress_in_torch(torch.from_numpy(boxes)[None], torch.ones(1, count, dtype=torch.bool), threshold)[0]
    assert suppress(boxes, threshold, count).tolist() == stays.nonzero().flatten().tolist()
    assert suppress(boxes, threshold, 3).tolist() == stays.nonzero().flatten().tolist()[:3]


def test_nothing_is_nothing() -> None:
    assert suppress(np.zeros((0, 4), np.float32), 0.5, 10).tolist() == []


@pytest.mark.parametrize(("kind", "target"), [*((kind, "onnx") for kind in KINDS), ("faster_rcnn", "executorch")])
def test_a_file_without_suppression_detects_the_same(kind: str, target: str, tmp_path: Path) -> None:
    if target == "executorch":
        pytest.importorskip("executorch")
    detector = lively(tiny_spec(**KINDS[kind])).eval()
    exported = Exported(detector, 1 if target == "executorch" else None, suppression=False)
    path = ship(exported, describe(detector, {}), FORMATS[target], tmp_path / "a", lambda *_: {})
    shipped = ShippedDetector(path)
    images = some_images(7, 5).permute(0, 2, 3, 1).contiguous().numpy()
    parity = compare(detector, shipped, images)
    assert parity.detections > 20
    assert not parity.unmatched
    assert parity.score_difference < 5e-4
    assert parity.box_difference < 0.05
    if target == "executorch":
        parted(path)


def parted(path: Path) -> None:
    """A program and its description are refused apart."""
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"a\.pte does not belong to a\.json"):
        ShippedDetector(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(InputError, match=r"a\.json, the description of a\.pte, cannot be read"):
        ShippedDetector(path)


def test_the_command_leaves_suppression_to_the_runtime(trained: Path, tmp_path: Path) -> None:
    student = str(trained / "run" / "student.safetensors")
    assert main(["export", student, "--out", str(tmp_path), "--nms", "outside"]) == 0
    assert ShippedDetector(tmp_path / "student.onnx").metadata.parity["unmatched"] == 0


def test_executorch_s_bad_input(trained: Path, tmp_path: Path, refused: Refused) -> None:
    pytest.importorskip("executorch")
    student = trained / "run" / "student.safetensors"
    assert "one picture at a time" in refused("export", student, "--to", "executorch", "--batch", "4")
