"""ncnn's files detect as the trained model does, compute with the grids that were trained, and know their parts."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from cli_cases import Refused
from qmimic.compress.integer_grids import calibrate, grid_names, keep_float, prepare_qat
from qmimic.detectors.detector import Detector
from qmimic.errors import InputError
from qmimic.runtime import Detector as ShippedDetector
from qmimic.runtime import ncnn_engine
from qmimic.runtime.detector import ChangedFileWarning
from qmimic.runtime.formats import FORMATS, bytes_of, format_of, is_deployed
from qmimic.ship import ncnn_file
from qmimic.ship.onnx_file import Exported, build_graph
from qmimic.ship.parity import compare
from qmimic.ship.write import describe, ship, write_described
from tiny_detectors import lively, one_stage, some_images, tiny_spec

ncnn = pytest.importorskip("ncnn")
KIND = FORMATS["ncnn"]
BACKBONES = ("resnet18/16", "repvgg/16", "yunet/32", "vgg16/32")
PARTS = ("a.ncnn.param", "a.ncnn.bin", "a.ncnn.json")


def inputs(seed: int, count: int) -> np.ndarray:
    return some_images(seed, count).permute(0, 2, 3, 1).contiguous().numpy()


def on_grids(backbone: str, grey: bool = False) -> Detector:
    detector = prepare_qat(one_stage(backbone=backbone, grey=grey).eval())
    calibrate(detector, [some_images(7, 4)])
    return detector


def written(folder: Path, seed: int = 0) -> Path:
    detector = one_stage(seed).eval()
    metadata = replace(describe(detector, {}), parity={"score_difference": 1e-6})
    write_described(Exported(detector), KIND, metadata, folder / PARTS[0])
    return folder / PARTS[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("files"))


@pytest.fixture
def own(files: Path, tmp_path: Path) -> Path:
    """The same files, to be damaged."""
    for name in PARTS:
        shutil.copy(files.parent / name, tmp_path / name)
    return tmp_path / PARTS[0]


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_float_file_detects_as_the_model_does(backbone: str, grey: bool, tmp_path: Path) -> None:
    detector = one_stage(backbone=backbone, grey=grey).eval()
    path = ship(Exported(detector), describe(detector, {}), KIND, tmp_path / "a", lambda *_: {})
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([*PARTS, "parity.json"])
    parity = compare(detector, ShippedDetector(path), inputs(7, 5))
    assert parity.detections > 20
    assert not parity.unmatched
    assert parity.score_difference < 1e-4
    assert parity.box_difference < 0.02


def test_a_file_is_the_same_every_time(tmp_path: Path) -> None:
    contents = []
    for _ in range(2):
        ncnn_file.write(Exported(one_stage().eval()), tmp_path / PARTS[0])
        contents.append([(tmp_path / name).read_bytes() for name in PARTS[:2]])
    assert contents[0] == contents[1]


def outputs(path: Path, names: list[str], pixels: np.ndarray) -> list[np.ndarray]:
    net = ncnn.Net()
    net.opt.num_threads = 1
    for name in ncnn_engine.HALVES:
        setattr(net.opt, f"use_{name}", False)
    assert net.load_param(str(path)) == net.load_model(str(path.with_suffix(".bin"))) == 0
    extractor = net.create_extractor()
    height, width = pixels.shape[:2]
    extractor.input("images", ncnn.Mat.from_pixels(pixels, ncnn.Mat.PixelType.PIXEL_RGB, width, height))
    return [np.array(extractor.extract(name)[1]) for name in names]


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_convolution_on_integers_is_that_of_the_grids(backbone: str, tmp_path: Path) -> None:
    """The second convolution, whose map has the grid of the first, against plain arithmetic on integers."""
    graph = build_graph(Exported(on_grids(backbone), suppression=False)).graph
    ncnn_file.write(Exported(on_grids(backbone)), tmp_path / PARTS[0])
    text = (tmp_path / PARTS[0]).read_text()
    assert " 8=1" in text
    constants = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    node = [one for one in graph.node if one.op_type == "Conv"][1]
    reads, weight = makers[node.input[0]], makers[node.input[1]]
    source = makers[reads.input[0]].input[0]
    step = float(constants[reads.input[1]])
    low, high = (0, 255) if constants[reads.input[2]].dtype == np.uint8 else (-128, 127)
    blobs = {part for line in text.splitlines() for part in line.split()}
    source = source if source in blobs else f"{source}_0"
    (values,) = outputs(tmp_path / PARTS[0], [source], inputs(7, 1)[0])
    integers = torch.from_numpy(np.clip(np.rint(values / step), low, high).astype(np.float64))
    given = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    sums = torch.nn.functional.conv2d(
        integers[None],
        torch.from_numpy(constants[weight.input[0]].astype(np.float64)),
        stride=given["strides"],
        padding=given["pads"][:2],
        groups=given["group"],
    )[0].numpy()
    wanted = sums * step * constants[weight.input[1]].reshape(-1, 1, 1)
    if len(node.input) > 2:
        wanted += constants[node.input[2]].reshape(-1, 1, 1)
    name = node.output[0]
    if name not in blobs and f"{name}_0" not in blobs:  # its ReLU is in the same layer
        (name,) = (one.output[0] for one in graph.node if one.op_type == "Relu" and one.input[0] == name)
        wanted = np.maximum(wanted, 0)
    (found,) = outputs(tmp_path / PARTS[0], [name if name in blobs else f"{name}_0"], inputs(7, 1)[0])
    off = np.abs(found - wanted) > 1e-3 * np.abs(wanted).max()
    assert off.mean() < 0.005, "but for ties and the highest step, which ncnn lacks"


@pytest.mark.parametrize(("backbone", "grey"), [*((one, False) for one in BACKBONES), ("repvgg/16", True)])
def test_on_integers_it_is_as_near_as_another_engine(backbone: str, grey: bool, tmp_path: Path) -> None:
    detector = on_grids(backbone, grey)
    images = inputs(7, 6)
    scores = {}
    for target in ("onnx", "ncnn"):
        kind = FORMATS[target]
        path = tmp_path / f"a{kind.suffixes[0]}"
        write_described(Exported(detector, 1, suppression=False), kind, describe(detector, {}), path)
        shipped = ShippedDetector(path)
        assert shipped.metadata.precision == "int8"
        scores[target] = np.stack([shipped.engine.run({"images": one[None]})["region_scores"][0] for one in images])
    with torch.no_grad():
        features = detector.features(torch.from_numpy(images).permute(0, 3, 1, 2))
        wanted = detector.score_boxes(features)[1].numpy()
    off = {target: np.abs(found - wanted).mean() for target, found in scores.items()}
    assert off["ncnn"] < max(2 * off["onnx"], 2e-3)


def test_parts_in_float_stay_so(tmp_path: Path) -> None:
    detector = on_grids("resnet18/16")
    names = grid_names(detector)
    mixed = keep_float(detector, *names[::3])
    write_described(Exported(mixed), KIND, describe(mixed, {}), tmp_path / PARTS[0])
    text = (tmp_path / PARTS[0]).read_text()
    layers = [line for line in text.splitlines() if line.startswith("Convolution")]
    assert 0 < sum(" 8=1" in line for line in layers) < len(layers)
    found = ShippedDetector(tmp_path / PARTS[0]).raw(inputs(7, 1))
    wanted = mixed.detect(some_images(7, 1))
    assert abs(float(wanted.scores[0, 0]) - float(found[1][0, 0])) < 0.1


def test_two_stages_are_refused_before_any_file_is_written(trained: Path, tmp_path: Path, refused: Refused) -> None:
    student = trained / "run" / "student.safetensors"
    said = refused("export", student, "--to", "onnx,ncnn", "--out", tmp_path / "files")
    assert "holds detectors that say at every place of their maps what lies there, and faster_rcnn does not" in said
    assert not (tmp_path / "files").exists()


def test_two_stages_are_refused(tmp_path: Path) -> None:
    detector = lively(tiny_spec()).eval()
    with pytest.raises(InputError, match=r"holds detectors that say at every place .*detector\.architecture=one_stage"):
        ship(Exported(detector), describe(detector, {}), KIND, tmp_path / "a", lambda *_: {})
    assert list(tmp_path.iterdir()) == []


def test_two_stages_are_refused_by_the_command(trained: Path, tmp_path: Path, refused: Refused) -> None:
    student = trained / "run" / "student.safetensors"
    said = refused("export", student, "--to", "ncnn", "--out", tmp_path)
    assert "detector.architecture=one_stage" in said


def test_a_batch_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="one picture at a time"):
        KIND.write(Exported(one_stage().eval(), None), tmp_path / PARTS[0])


def test_an_operator_that_is_not_translated_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    others = {name: own for name, own in ncnn_file.TRANSLATIONS.items() if name != "Sigmoid"}
    monkeypatch.setattr(ncnn_file, "TRANSLATIONS", others)
    with pytest.raises(InputError, match="ncnn files have no Sigmoid, which this detector needs; export it to"):
        ncnn_file.write(Exported(one_stage().eval()), tmp_path / PARTS[0])


@pytest.mark.parametrize(
    ("name", "said"),
    [(PARTS[1], "the weights of a.ncnn.param, is missing"), (PARTS[2], "the description of a.ncnn.param, is missing")],
)
def test_a_part_that_is_missing_is_named(own: Path, name: str, said: str) -> None:
    (own.parent / name).unlink()
    with pytest.raises(InputError, match=said):
        ShippedDetector(own)


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_two_exports_are_not_mixed(own: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / "other").mkdir()
    other = written(tmp_path / "other", seed=1)
    if name == PARTS[0]:  # the layers of two seeds are the same text; other detectors have others
        own.write_text(own.read_text() + "\n")
        with pytest.warns(ChangedFileWarning):
            assert ShippedDetector(own).metadata.parity == {}
        return
    shutil.copy(other.parent / name, own.parent / name)
    with pytest.raises(InputError, match=r"a\.ncnn\.bin is not the file that a\.ncnn\.param was written with"):
        ShippedDetector(own)


def test_a_file_that_was_edited_is_called_changed(own: Path) -> None:
    text = own.read_text().replace("0=-4.000000000e+00", "0=-3.000000000e+00")
    own.write_text(text)
    with pytest.warns(ChangedFileWarning, match="was changed since it was proved"):
        metadata = ShippedDetector(own).metadata
    assert (metadata.precision, metadata.parity) == ("unknown", {})


@pytest.mark.parametrize(
    "damage", [b"", b"7767517\n", b"\0" * 99, b"7767517\n2 2\nInput a 0 1 images\nReLU b 1 1 x y\n"]
)
def test_damaged_layers_are_refused_and_end_no_process(own: Path, damage: bytes) -> None:
    own.write_bytes(damage)
    with pytest.raises(InputError, match=r"a\.ncnn\.param"):
        ShippedDetector(own)


def test_a_key_that_ncnn_cannot_read_is_refused(own: Path) -> None:
    own.write_text(own.read_text().replace("-23309=1,0", "9=1,0"))
    with pytest.raises(InputError, match="its layers or weights cannot be read"):
        ShippedDetector(own)


def test_a_half_of_the_weights_is_refused(own: Path) -> None:
    weights = own.parent / PARTS[1]
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InputError, match="is not the file that"):
        ShippedDetector(own)


def test_a_description_that_is_none_is_refused(own: Path) -> None:
    said = own.parent / PARTS[2]
    for text, reason in (("[1]", "cannot be read"), ("{", "a.ncnn.json"), ('{"qmimic": 3}', "cannot be read")):
        said.write_text(text)
        with pytest.raises(InputError, match=reason):
            ShippedDetector(own)
    said.write_text(json.dumps({}))
    with pytest.raises(InputError, match="is not a qmimic detector"):
        ShippedDetector(own)


def test_names(own: Path) -> None:
    assert format_of(own) is KIND
    assert KIND.files(own) == [own.parent / name for name in PARTS]
    assert bytes_of(own) == sum((own.parent / name).stat().st_size for name in PARTS)
    assert is_deployed(own.parent / PARTS[1])
    for name in PARTS[1:]:
        with pytest.raises(InputError, match=f"{name} belongs to a.ncnn.param; name that file"):
            format_of(own.parent / name)
    suffixes = [suffix for kind in FORMATS.values() for suffix in kind.suffixes]
    assert len(set(suffixes)) == len(suffixes)  # files of all formats lie in one folder


def test_it_says_what_is_not_installed(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    with pytest.raises(InputError, match=r"ncnn is not installed: pip install 'qmimic\[ncnn\]'"):
        ShippedDetector(own)


@pytest.fixture
def without_torch(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "torch.py").write_text("raise ImportError('not here')")
    return {"PYTHONPATH": f"{tmp_path}:{Path(ncnn_engine.__file__).parents[2]}", "PATH": ""}


def test_the_runtime_needs_numpy_and_ncnn_alone(own: Path, without_torch: dict[str, str], tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(inputs(7, 1)[0]).save(tmp_path / "p.png")
    for name in ("onnx", "onnxruntime", "openvino"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not here')")
    command = [sys.executable, "-m", "qmimic.runtime", str(own), str(tmp_path / "p.png"), "--json"]
    done = subprocess.run(command, env=without_torch, capture_output=True, text=True, check=True)
    assert len(json.loads(done.stdout.splitlines()[0])["detections"]) > 0
