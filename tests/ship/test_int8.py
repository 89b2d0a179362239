"""Int8 files: the grids of training in the file, accuracy measured or no file, and both formats."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from cli_cases import Refused
from qmimic.cli import main
from qmimic.compress.integer_grids import Grid, calibrate, grid_names, is_on_grids, map_grids, prepare_qat
from qmimic.config import QuantizerConfig, load_recipe
from qmimic.detectors.build import parameter_count
from qmimic.detectors.detector import Detector
from qmimic.detectors.files import load_detector
from qmimic.detectors.quantize import Quantizer
from qmimic.errors import InputError
from qmimic.run import deploy, validation
from qmimic.run import int8 as integer
from qmimic.run.int8 import Int8RefusedError
from qmimic.run.prepare import Prepared, prepare
from qmimic.runtime import Detector as ShippedDetector
from qmimic.runtime.formats import FORMATS
from qmimic.ship.onnx_file import Exported, build_graph
from qmimic.ship.write import describe, ship
from qmimic.training.progress import Silent
from tiny_detectors import lively, some_images, tiny_spec

STRIDE = 0.3125


def gridded(**settings: object) -> Detector:
    detector = lively(tiny_spec(**settings)).eval()
    detector.quantizer = Quantizer(QuantizerConfig(), torch.tensor([STRIDE]))
    found = prepare_qat(detector)
    calibrate(found, [some_images(7, 4, detector.spec.size)])
    return found


def scales_of_maps(model: onnx.ModelProto) -> dict[str, float]:
    """Scales by the name of the map that comes out of a pair of QuantizeLinear and DequantizeLinear."""
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    constants |= {
        node.output[0]: onnx.numpy_helper.to_array(node.attribute[0].t)
        for node in model.graph.node
        if node.op_type == "Constant" and node.attribute[0].HasField("t")
    }
    made = {node.output[0]: node for node in model.graph.node if node.op_type == "QuantizeLinear"}
    return {
        node.output[0]: float(constants[node.input[1]])
        for node in model.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in made
    }


@pytest.mark.parametrize("settings", [{}, {"architecture": "rfcn", "roi_size": 3, "backbone": "vgg16/32"}])
def test_the_file_s_map_is_the_one_that_was_trained(settings: dict[str, object]) -> None:
    detector = gridded(**settings)
    model = build_graph(Exported(detector))
    own = [name for name, scale in scales_of_maps(model).items() if scale == STRIDE]
    assert len(own) == 1  # the grid of training is the scale of that map in the file
    users = {node.op_type for node in model.graph.node if own[0] in node.input}
    assert "Conv" in users
    scales = scales_of_maps(model)
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, 1, None) for name in scales)
    options = onnxruntime.SessionOptions()
    # As the file is written; with optimization, integers are added up in another order.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    images = some_images(3, 1, detector.spec.size)
    found = session.run(list(scales), {"images": images.permute(0, 2, 3, 1).contiguous().numpy()})
    simulated = maps_on_grids(detector, images)
    assert list(scales.values()) == [scale for scale, _ in simulated]
    steps = [np.abs(a - b) / scale for a, (scale, b) in zip(found, simulated, strict=True)]
    # A value on a midpoint may round either way, and these detectors amplify what differs from layer to layer.
    assert all((step > 0.01).mean() < 0.02 for step in steps[:5])
    assert steps[list(scales).index(own[0])].max() < 1.01


def maps_on_grids(detector: Detector, images: torch.Tensor) -> list[tuple[float, np.ndarray]]:
    """Scale and values of every map of a detection, in the order of computation."""
    seen = []

    def look(grid: Grid, _: object, values: torch.Tensor) -> None:
        seen.append((grid.scale.item(), values.detach().numpy()))

    hooks = [one.register_forward_hook(look) for one in detector.modules() if isinstance(one, Grid) and one.enabled]
    detector.detect(images)
    for hook in hooks:
        hook.remove()
    return seen


def test_weights_lie_in_the_file_as_integers() -> None:
    detector = gridded()
    model = build_graph(Exported(detector))
    constants = {one.name: one for one in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type == "Conv"]
    made = {node.output[0]: node for node in model.graph.node}
    for node in layers:
        weight = constants[made[node.input[1]].input[0]]
        assert weight.data_type == onnx.TensorProto.INT8
        assert 60 <= np.abs(onnx.numpy_helper.to_array(weight)).max() <= 63
    assert parameter_count(detector) < len(model.SerializeToString()) < 2 * parameter_count(detector)
    assert describe(detector, {}).precision == "int8"
    assert describe(detector, {}).grid == (STRIDE,)


@pytest.fixture(scope="module")
def deployed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained fixture's student in both formats and precisions; what the command said in `said.txt`."""
    pytest.importorskip("openvino")
    folder = tmp_path_factory.mktemp("deployed")
    student = str(trained / "run" / "student.safetensors")
    with (folder / "said.txt").open("w") as said, contextlib.redirect_stdout(said):
        assert main(["export", student, "--out", str(folder), "--int8", "--to", "onnx,openvino"]) == 0
    return folder


def test_both_formats_of_both_precisions(deployed: Path) -> None:
    said = (deployed / "said.txt").read_text()
    names = ["student.onnx", "student.xml", "student-int8.onnx", "student-int8.xml"]
    assert all(name in said for name in names)
    assert "Take student" in said
    proofs = json.loads((deployed / "parity.json").read_text())
    assert sorted(proofs) == sorted(names)
    images = some_images(1, 1, (64, 64)).permute(0, 2, 3, 1).contiguous().numpy()
    scores = {}
    for name in names:
        shipped = ShippedDetector(deployed / name)
        assert shipped.metadata.precision == ("int8" if "int8" in name else "fp32")
        assert shipped.metadata.parity == proofs[name]
        assert shipped.metadata.parameters == 27831
        scores[name] = shipped.raw(images)[1]
    assert sorted(proofs["student-int8.xml"]) == ["images", "in_float", "map50", "map50_float", "trained"]
    np.testing.assert_allclose(scores["student.xml"], scores["student.onnx"], atol=1e-4)


def test_openvino_s_two_files_belong_together(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    detector = lively(tiny_spec()).eval()
    for name in "ab":
        exported, metadata = Exported(detector, None), describe(detector, {})
        ship(exported, metadata, FORMATS["openvino"], tmp_path / name, lambda shipped, _: {"batch": shipped.batch})
        detector = lively(tiny_spec(), seed=1).eval()
    assert ShippedDetector(tmp_path / "a.xml").metadata.parity == {"batch": None}
    assert len(ShippedDetector(tmp_path / "a.xml").raw(np.zeros((3, 96, 96, 3), np.uint8))[0]) == 3
    (tmp_path / "a.bin").replace(tmp_path / "kept.bin")
    with pytest.raises(InputError, match=r"a\.bin, the weights of a\.xml, is missing"):
        ShippedDetector(tmp_path / "a.xml")
    (tmp_path / "a.bin").write_bytes((tmp_path / "b.bin").read_bytes())
    with pytest.raises(InputError, match=r"does not belong to a\.xml"):
        ShippedDetector(tmp_path / "a.xml")
    (tmp_path / "a.xml").write_text("<net/>")
    with pytest.raises(InputError, match=r"a\.xml cannot be run by OpenVINO"):
        ShippedDetector(tmp_path / "a.xml")


@pytest.fixture
def prepared(trained: Path, tmp_path: Path) -> Prepared:
    settings = [f"run.dir={tmp_path}", "int8.steps=3", "int8.batch_size=4", "run.device=cpu"]  # as `deploy` has it
    return prepare(load_recipe(trained / "run" / "recipe.yaml", settings))


def test_what_loses_is_trained_and_then_kept_float_in_part(
    prepared: Prepared, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, _ = load_detector(trained / "run" / "student.safetensors")
    # In float, calibrated, trained, then with one and with two parts in float.
    scores = iter([0.9, 0.7, 0.85, 0.88, 0.895])
    monkeypatch.setattr(validation, "voc_map50", lambda *_: next(scores))
    found = integer.to_integers(prepared, detector, tmp_path, Silent())
    assert (found.map50, found.map50_float, found.trained, len(found.in_float)) == (0.895, 0.9, 3, 2)
    untouched = prepare_qat(detector)
    assert set(grid_names(untouched)) - set(grid_names(found.detector)) == set(found.in_float)
    assert next(tmp_path.glob("int8-*/checkpoints/*"), None)
    before, after = map_grids(untouched)[0], map_grids(found.detector)[0]
    assert before.scale != after.scale  # calibrated


def test_what_loses_in_any_case_is_refused(
    prepared: Prepared, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    detector, _ = load_detector(trained / "run" / "student.safetensors")
    scores = iter([0.9] + [0.5] * 100)
    monkeypatch.setattr(validation, "voc_map50", lambda *_: next(scores))
    with pytest.raises(Int8RefusedError, match=r"With int8 the detector has 50\.0 mAP@0\.5 on val, 40\.0 less than in"):
        integer.to_integers(prepared, detector, tmp_path, Silent())


def test_the_most_sensitive_part_comes_first(prepared: Prepared) -> None:
    recipe = prepared.recipe
    detector = prepare_qat(lively(prepared.spec(recipe.student.backbone)).eval())
    calibrate(detector, [next(iter(prepared.train.once())).images])
    spoiled = "backbone.layer1.0.1"
    grid = detector.get_submodule(spoiled)
    grid.scale.mul_(40)  # nearly everything becomes 0
    assert is_on_grids(detector)
    assert integer.sensitivities(prepared, detector)[0] == spoiled


def test_a_file_that_loses_is_not_written(
    trained: Path, deployed: Path, monkeypatch: pytest.MonkeyPatch, refused: Refused
) -> None:
    before = (deployed / "student-int8.onnx").read_bytes()
    monkeypatch.setattr(deploy, "map50_of_file", lambda *_: -0.02)
    said = refused("export", trained / "run" / "student.safetensors", "--out", deployed, "--int8")
    assert "No int8 file was written, for the reasons above" in said
    assert (deployed / "student-int8.onnx").read_bytes() == before


def test_one_engine_s_refusal_leaves_the_other_s_file(
    trained: Path, deployed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = iter([0.0, -0.02])
    monkeypatch.setattr(deploy, "map50_of_file", lambda *_: next(scores))
    student = str(trained / "run" / "student.safetensors")
    assert main(["export", student, "--out", str(tmp_path), "--int8", "--to", "onnx,openvino"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "student-int8.xml was not written: it has -2.0 mAP@0.5 on val" in said
    assert "student-int8.onnx 0.0 mAP on val" in said
    assert "In float it has no more mAP@0.5 than int8 may lose (int8.max_loss=0.01)" in said  # it finds nothing
    assert (tmp_path / "student-int8.onnx").exists()
    assert not (tmp_path / "student-int8.xml").exists()


def test_the_advice_names_the_fastest_and_says_where_int8_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    one = deploy.Deployed(Path("a.onnx"), "onnx", "fp32", 400, 2.0, {})
    slower = replace(one, path=Path("a-int8.onnx"), precision="int8", bytes=100, milliseconds=3.0)
    other = replace(one, path=Path("a-int8.xml"), target="openvino", precision="int8", bytes=200, milliseconds=1.5)
    float_one = replace(other, path=Path("a.xml"), precision="fp32", bytes=900, milliseconds=1.9)
    said = deploy.advice([one, slower, float_one, other])
    assert said.startswith("Take a-int8.xml on a machine like this one.")
    assert "With onnx, int8 is not faster here (3.00 against 2.00 ms)" in said
    assert "With openvino" not in said
    near = replace(slower, milliseconds=2.02)
    assert deploy.advice([one, near]).startswith("Take a-int8.onnx")  # as fast, and smaller
    for load, busy in ((0.0, False), (1e6, True)):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, load, load))
        assert ("Other programs keep this machine busy" in deploy.advice([one])) == busy


def test_bad_input(trained: Path, tmp_path: Path, refused: Refused) -> None:
    student = trained / "run" / "student.safetensors"
    assert "Unknown --to 'tflite'" in refused("export", student, "--to", "onnx,tflite")
    (tmp_path / "a.pt").write_bytes(b"")
    with pytest.raises(InputError, match="is an empty file, not a deployed detector; name one of"):
        ShippedDetector(tmp_path / "a.pt")
