"""A deployed file detects as the trained model does, or there is no file."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cli_cases import Refused
from folders import picture
from qmimic.cli import main
from qmimic.config import QuantizerConfig
from qmimic.data.sample import Dataset, Sample
from qmimic.detectors.detector import Detector
from qmimic.detectors.quantize import Quantizer
from qmimic.errors import InputError
from qmimic.runtime import Detector as ShippedDetector
from qmimic.runtime.formats import FORMATS
from qmimic.runtime.metadata import FORMAT, KEY
from qmimic.ship import onnx_file
from qmimic.ship import write as ship
from qmimic.ship.onnx_file import OPSET, Exported, build_graph
from qmimic.ship.parity import Parity, compare, pictures
from tiny_detectors import lively, some_images, tiny_spec

KINDS = {
    "faster_rcnn": {},
    "rfcn": {"architecture": "rfcn", "roi_size": 3, "nms_threshold": 0.2, "score_threshold": 0.01},
    "rfcn, stride 8": {"architecture": "rfcn", "output_stride": 8, "size": (64, 96), "roi_pooling": "pool"},
    "vgg, one class": {"backbone": "vgg16/32", "size": (96, 64), "max_detections": 7, "classes": ("face",)},
}


def shipped(detector: Detector, path: Path, batch: int | None) -> ShippedDetector:
    """A detector as a file, with no gate."""
    ship.write_described(Exported(detector, batch), FORMATS["onnx"], ship.describe(detector, {}), path)
    return ShippedDetector(path)


@pytest.mark.parametrize(("kind", "batch"), [("faster_rcnn", 4), *((kind, None) for kind in KINDS)])
def test_the_file_detects_as_the_model_does(kind: str, batch: int | None, tmp_path: Path) -> None:
    spec = tiny_spec(**KINDS[kind])
    detector = lively(spec).eval()
    if kind == "faster_rcnn":
        detector.quantizer = Quantizer(QuantizerConfig(), torch.tensor([0.25]))
    file = shipped(detector, tmp_path / "a.onnx", batch)
    assert file.batch == batch
    images = some_images(7, 9, spec.size).permute(0, 2, 3, 1).contiguous().numpy()
    parity = compare(detector, file, images)
    assert parity.pictures == 9  # two batches of four, and one that is filled up
    assert parity.detections == int(detector.detect(torch.from_numpy(images).permute(0, 3, 1, 2)).valid.sum()) > 20
    # These detectors' outputs are amplified, and so is rounding: trained ones are a hundred times nearer.
    assert not parity.unmatched
    assert parity.score_difference < 5e-4
    assert parity.box_difference < 0.05
    model = onnx.load(tmp_path / "a.onnx")
    assert [(one.domain, one.version) for one in model.opset_import] == [("", OPSET)]
    operators = Counter(node.op_type for node in model.graph.node)
    assert "BatchNormalization" not in operators
    assert operators["NonMaxSuppression"] == 2
    assert "site-packages" not in str(model)  # the exporter notes where every operator came from
    assert "two_stage" not in str(model)


def some_data(folder: Path) -> Dataset:
    none = np.zeros(0, np.bool_)
    empty = np.zeros((0, 4), np.float32)
    samples = [
        Sample(str(k), picture(folder / f"{k}.png", (90 + 40 * k, 100), k), empty, np.zeros(0, np.int64), none, none)
        for k in range(3)
    ]
    return Dataset("three", folder, ("a",), {"train": tuple(samples), "val": tuple(samples[:1])})


def test_the_gate_s_pictures_have_several_shapes(tmp_path: Path) -> None:
    images = pictures(some_data(tmp_path), (96, 96))
    assert images.shape == (32, 96, 96, 3)
    padding = np.array([124, 116, 104])
    shapes = Counter(
        (int((image != padding).any((1, 2)).sum()), int((image != padding).any((0, 2)).sum())) for image in images
    )
    assert len(shapes) >= 6
    assert len({image.tobytes() for image in images}) >= 9


def test_the_gate_passes_over_broken_pictures(tmp_path: Path) -> None:
    data = some_data(tmp_path)
    (tmp_path / "0.png").write_bytes(b"")
    assert len(pictures(data, (96, 96))) == 32
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(InputError, match="three has no readable image to compare on"):
        pictures(data, (96, 96))


def test_powers_of_two_are_refused_in_a_sentence() -> None:
    detector = lively(tiny_spec()).eval()
    detector.quantizer = Quantizer(QuantizerConfig(kind="power_of_two"), torch.tensor([0.25]))
    with pytest.raises(InputError, match="powers of two cannot be exported yet"):
        build_graph(Exported(detector))


def test_maxima_over_regions_are_refused_in_a_sentence() -> None:
    with pytest.raises(InputError, match=r"roi_pooling=pool cannot be exported"):
        build_graph(Exported(lively(tiny_spec(roi_pooling="pool")).eval()))


def test_one_differing_weight_trips_the_gate(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    file = trained / "run" / "student.safetensors"
    data = ["--data", str(trained / "cats")]
    assert main(["export", str(file), *data, "--out", str(tmp_path)]) == 0
    before = (tmp_path / "student.onnx").read_bytes()

    def mutated(exported: Exported) -> onnx.ModelProto:
        model = build_graph(exported)
        weights = next(one for one in model.graph.initializer if one.name.endswith("head.scores.bias"))
        values = onnx.numpy_helper.to_array(weights).copy()
        values[0] += 0.01
        weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
        return model

    monkeypatch.setattr(onnx_file, "build_graph", mutated)
    said = refused("export", file, *data, "--out", tmp_path)
    assert "student.onnx would not detect as the trained model does: scores differ by" in said
    assert (tmp_path / "student.onnx").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parity.json", "student.onnx"]


def test_the_command_writes_a_file_that_describes_itself(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained / "run"
    assert main(["export", str(run / "student.safetensors"), "--out", str(tmp_path / "out"), "--batch", "0"]) == 0
    said = capsys.readouterr().out
    assert "student.onnx" in said
    assert "Take student.onnx on a machine like this one." in said
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())["student.onnx"]
    metadata = ShippedDetector(tmp_path / "out" / "student.onnx").metadata
    assert metadata.parity == parity
    assert metadata.classes == ("cat",)
    assert metadata.size == (64, 64)
    assert metadata.backbone == "resnet18/32"
    assert metadata.training["stage"] == "student"
    properties = {one.key: one.value for one in onnx.load(tmp_path / "out" / "student.onnx").metadata_props}
    assert json.loads(properties[KEY])["format"] == FORMAT


@pytest.mark.parametrize("name", ["student.onnx", "student-int8.xml", "student-int8.bin"])
def test_what_it_did_not_write_is_not_overwritten(
    name: str, trained: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = trained / "run" / "student.safetensors"
    export = ["export", str(file), "--data", str(trained / "cats"), "--out", str(tmp_path), "--to", "onnx,openvino"]
    (tmp_path / name).write_text("precious")
    assert f"{name} is no detector that qmimic wrote" in refused(*export, "--int8")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "precious"
    (tmp_path / name).unlink()
    assert main(export) == 0
    assert main(export) == 0  # its own, of one file and of two
    (tmp_path / "parity.json").unlink()
    assert main(export[:-2]) == 0  # which says so of itself
    (tmp_path / "parity.json").write_text('["mine"]')
    assert "parity.json is not qmimic's list of proofs" in refused(*export)
    assert (tmp_path / "parity.json").read_text() == '["mine"]'


def test_bad_input(trained: Path, tmp_path: Path, refused: Refused) -> None:
    alone = tmp_path / "student.safetensors"
    alone.write_bytes((trained / "run" / "student.safetensors").read_bytes())
    assert "No recipe.yaml beside" in refused("export", alone)
    assert "There is no checkpoint" in refused("export", tmp_path / "none.safetensors")
    assert "is not a number of images" in refused("export", alone, "--batch", "-1")
    assert "There is no folder" in refused("export", alone, "--data", tmp_path / "nowhere")
    (tmp_path / "full").write_text("a file where the folder should be")
    assert "Cannot write" in refused("export", alone, "--data", trained / "cats", "--out", tmp_path / "full")


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"score_difference": 1.01e-4}, False),
        ({"box_difference": 0.021}, False),
        ({"unmatched": 1}, False),
        ({"detections": 0}, False),
    ],
)
def test_what_holds(change: dict[str, float], holds: bool) -> None:
    assert replace(Parity(32, 100, 9e-5, 0.019, 0), **change).holds == holds
