"""Deployed files are first-class: `eval`, `predict` and `score` take them and what the runtime prints of them."""

import json
import pickle
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from cli_cases import Refused, coco
from folders import voc_object, voc_xml
from qmimic import api
from qmimic.cli import main
from qmimic.data.formats import load_dataset
from qmimic.detectors.files import save_detector
from qmimic.runtime.__main__ import main as runtime
from qmimic.runtime.detector import Detector
from qmimic.runtime.formats import FORMATS
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, write_described
from tiny_detectors import lively, one_stage, tiny_spec

PACKAGES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch",
    "litert": "ai_edge_litert",
    "ncnn": "ncnn",
}
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled folder `pets`, and a trained detector `m.safetensors` of its classes."""
    root = tmp_path_factory.mktemp("first")
    coco(root / "pets", classes=("cat", "dog", "ox"))
    save_detector(lively(tiny_spec()).eval(), root / "m.safetensors", {})
    save_detector(one_stage().eval(), root / "one.safetensors", {})
    return root


@pytest.fixture(params=[name for name, kind in FORMATS.items() if not kind.elsewhere])
def shipped(request: pytest.FixtureRequest, folder: Path) -> Path:
    """A trained detector in each format whose engine is installed; its name is that of the `.safetensors` beside it."""
    pytest.importorskip(PACKAGES[request.param])
    kind = FORMATS[request.param]
    path = folder / f"{'one' if kind.by_places else 'm'}{kind.suffixes[0]}"
    if not path.exists():
        detector = (lively(tiny_spec()) if not kind.by_places else one_stage()).eval()
        write_described(Exported(detector), kind, describe(detector, {}), path)
    return path


def last_line(capsys: Captured) -> dict[str, float]:
    """The scores of a command, without those of each class."""
    return means(json.loads(capsys.readouterr().out.splitlines()[-1]))


def means(scores: dict[str, Any]) -> dict[str, float]:
    return {key: value for key, value in scores.items() if key != "per_class"}


def test_eval_scores_a_deployed_file_as_the_trained_one(shipped: Path, folder: Path, capsys: Captured) -> None:
    pets = str(folder / "pets")
    trained = folder / f"{shipped.name.partition('.')[0]}.safetensors"
    assert main(["eval", str(trained), "--data", pets, "--json"]) == 0
    wanted = last_line(capsys)
    assert main(["eval", str(shipped), "--data", pets, "--detections", str(folder / "d.json"), "--json"]) == 0
    assert last_line(capsys) == pytest.approx(wanted, abs=1e-6)
    assert main(["score", "--data", pets, "--detections", str(folder / "d.json"), "--json"]) == 0
    assert last_line(capsys) == pytest.approx(wanted, abs=1e-6)
    dataset = load_dataset(pets)
    for given in (shipped, str(shipped), Detector(shipped)):
        assert means(api.evaluate(given, dataset).as_json()) == pytest.approx(wanted, abs=1e-6)
    assert main(["eval", str(shipped), "--data", pets, "--flip"]) == 2
    assert "A deployed detector looks at one size" in capsys.readouterr().err


@pytest.mark.parametrize("printed_by", ["predict", "runtime"])
def test_what_is_printed_is_scored_as_it_is(
    printed_by: str, shipped: Path, folder: Path, tmp_path: Path, capsys: Captured
) -> None:
    pets, pictures = str(folder / "pets"), str(folder / "pets" / "val")
    assert main(["eval", str(shipped), "--data", pets, "--json"]) == 0
    wanted = last_line(capsys)
    if printed_by == "runtime":
        assert runtime([str(shipped), pictures, "--json", "--min-score", "0"]) == 0
        text = capsys.readouterr().out
    else:
        given = [str(shipped), pictures, "--out", str(tmp_path / "drawn"), "--min-score", "0", "--json"]
        assert main(["predict", *given]) == 0
        text = capsys.readouterr().out.splitlines()[-1]
    (tmp_path / "printed.json").write_text(text)
    assert main(["score", "--data", pets, "--detections", str(tmp_path / "printed.json"), "--json"]) == 0
    found = last_line(capsys)
    for key in ("voc07_map50", "voc_map50", "coco_map"):  # boxes are printed to a hundredth of a pixel
        assert found[key] == pytest.approx(wanted[key], abs=0.02)


def classifier(path: Path) -> None:
    ends = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, "h", 8]) for name in ("pixels", "classes"))
    graph = helper.make_graph([helper.make_node("Identity", ["pixels"], ["classes"])], "g", *([one] for one in ends))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


PNG, JPEG = b"\x89PNG\r\n\x1a\n" + bytes(60), b"\xff\xd8\xff\xe0" + bytes(60)
TFLITE, ZIP = b"\x1c\0\0\0TFL3" + bytes(60), b"PK\x03\x04archive/data.pkl"
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"
KINDS = {
    "a PNG picture": PNG,
    "a JPEG picture": JPEG,
    "a TIFF picture": b"II*\0" + bytes(60),
    "a TensorFlow Lite model": TFLITE,
    "a zip archive": ZIP,
    "a pickle": pickle.dumps({"model": 1}, protocol=4),
    "an empty file": b"",
    "a web page": b"\n<!DOCTYPE html><html><body>404</body></html>",
    "a note in place of a file that Git LFS keeps": LFS,
    "a JSON file": b'\xef\xbb\xbf{"images": []}',
    "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(60),
}


@pytest.mark.parametrize("ending", [".onnx", ".xml", ".pte", ".safetensors", ".pt", ".tflite", ""])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("command", ["eval", "predict"])
def test_a_wrong_kind_of_file_is_called_what_it_is(
    command: str, kind: str, ending: str, folder: Path, tmp_path: Path, refused: Refused
) -> None:
    if ending == ".pte":
        pytest.importorskip("executorch")
    if (kind, ending) == ("a TensorFlow Lite model", ".tflite"):
        pytest.skip("it is what its name says, and damaged")
    path = tmp_path / f"best{ending}"
    path.write_bytes(KINDS[kind])
    rest = ["--data", folder / "pets"] if command == "eval" else [folder / "pets" / "val", "--out", tmp_path / "o"]
    said = refused(command, path, *rest)
    empty = kind == "an empty file" and ending not in (".onnx", ".xml", ".pte", ".tflite")
    assert ("cut short" if empty else f"{path} is {kind}") in said


def test_models_of_others_are_called_so(folder: Path, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / "resnet50.onnx"
    classifier(path)
    said = refused("eval", path, "--data", folder / "pets")
    assert "is not a qmimic detector but another model, which takes pixels float32 [1, 3, ?, 8]; name" in said


def test_labels_and_parts_are_not_models(folder: Path, tmp_path: Path, refused: Refused) -> None:
    labels = voc_xml(tmp_path, "a", voc_object("cat", 1, 1, 9, 9), head='<?xml version="1.0"?>\n<!-- a -->')
    assert "is a VOC label file, not an OpenVINO model" in refused("eval", labels, "--data", folder / "pets")
    (tmp_path / "part.bin").write_bytes(bytes(30))
    assert "is a file of another kind" in refused("eval", tmp_path / "part.bin", "--data", folder / "pets")
    (tmp_path / "labels.json").write_text("[]")
    assert "is a JSON file, not a deployed" in refused("eval", tmp_path / "labels.json", "--data", folder / "pets")


def test_a_renamed_file_is_told_how_to_be_called(folder: Path, tmp_path: Path, refused: Refused) -> None:
    detector = lively(tiny_spec()).eval()
    write_described(Exported(detector), FORMATS["onnx"], describe(detector, {}), tmp_path / "m.onnx")
    for name in ("m", "m.ONNX", "m.bak"):
        (tmp_path / name).write_bytes((tmp_path / "m.onnx").read_bytes())
        said = refused("eval", tmp_path / name, "--data", folder / "pets")
        assert f"{name} is an ONNX model, but its name does not end in .onnx; rename it." in said
