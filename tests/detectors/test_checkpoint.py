"""Detector files: what is written comes back to the last bit; what is damaged is refused in one sentence."""

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torchvision.models import resnet18

from qmimic.config import QuantizerConfig
from qmimic.detectors.build import build
from qmimic.detectors.detector import Detector
from qmimic.detectors.files import (
    load_detector,
    load_state,
    read_tensors,
    save_detector,
    write_tensors,
)
from qmimic.detectors.pretrained import load_backbone
from qmimic.detectors.quantize import Quantizer
from qmimic.errors import InputError
from tiny_detectors import lively, some_images, tiny_spec


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What a good file holds."""
    path = tmp_path_factory.mktemp("checkpoint") / "good.safetensors"
    save_detector(lively(tiny_spec()), path, {"map": 0.5})
    return path.read_bytes()


@pytest.fixture
def saved(tmp_path: Path, good: bytes) -> Path:
    """A good file."""
    path = tmp_path / "good.safetensors"
    path.write_bytes(good)
    return path


def rewritten(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> Path:
    """The file with its header or its tensors changed in place."""
    file = read_tensors(path)
    change(file.header, file.tensors)
    save_file(file.tensors, str(path), {"qmimic": json.dumps(file.header)})
    return path


def refusal(path: Path, load: Callable[[Path], object] = load_detector) -> str:
    """The sentence with which a file is refused; it names the file."""
    with pytest.raises(InputError) as caught:
        load(path)
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence
    assert len(sentence) < 400 + len(str(path))
    assert sentence.endswith((".", "?"))
    return sentence


@pytest.mark.parametrize("quantizer", [None, QuantizerConfig(), QuantizerConfig(kind="power_of_two", upper=5)])
@pytest.mark.parametrize("backbone", ["resnet18/16", "resnet50/64", "vgg16/32"])
def test_a_detector_comes_back_to_the_last_bit(
    tmp_path: Path, backbone: str, quantizer: QuantizerConfig | None
) -> None:
    detector = lively(tiny_spec(backbone=backbone, output_stride=8, classes=("köter", "ox")))
    if quantizer:
        detector.quantizer = Quantizer(quantizer, torch.tensor([0.7310586]))
    detector.eval()
    path = tmp_path / "new folder" / "détecteur.safetensors"
    save_detector(detector, path, {"map": 0.25, "key": "abc"})
    again, notes = load_detector(path)
    assert notes == {"map": 0.25, "key": "abc"}
    assert again.spec == detector.spec
    assert not again.training
    assert (again.quantizer.config if again.quantizer else None) == quantizer
    state = again.state_dict()
    assert state.keys() == detector.state_dict().keys()
    for name, value in detector.state_dict().items():
        assert torch.equal(state[name], value)
        assert state[name].dtype == value.dtype
    images = some_images(3)
    ours, theirs = detector.detect(images), again.detect(images)
    assert torch.equal(ours.boxes, theirs.boxes)
    assert torch.equal(ours.scores, theirs.scores)


def test_a_quantizer_with_a_stride_per_channel_comes_back(tmp_path: Path) -> None:
    detector = lively(tiny_spec())
    strides = torch.rand(detector.channels[0]) + 0.1
    detector.quantizer = Quantizer(QuantizerConfig(per_channel=True), strides)
    save_detector(detector, tmp_path / "a.safetensors", {})
    again, _ = load_detector(tmp_path / "a.safetensors")
    assert again.quantizer is not None
    assert torch.equal(again.quantizer.stride, strides)


def test_saving_changes_nothing_and_leaves_nothing_beside(saved: Path) -> None:
    before = saved.read_bytes()
    detector, notes = load_detector(saved)
    save_detector(detector, saved, notes)
    assert saved.read_bytes() == before
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_a_file_of_another_width_is_refused(saved: Path) -> None:
    def wider(header: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        header["spec"]["backbone"] = "resnet18/8"

    assert "another width" in refusal(rewritten(saved, wider))


def test_a_file_of_another_number_of_classes_is_refused(saved: Path) -> None:
    def fewer(header: dict[str, Any], _: dict[str, torch.Tensor]) -> None:
        header["spec"]["classes"] = ["cat", "dog"]

    sentence = refusal(rewritten(saved, fewer))
    assert "number of classes" in sentence
    assert "head.scores" in sentence


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"backbone": "resnet34/16"}, "layer1.2"),
        ({"backbone": "vgg16/16"}, "features"),
        ({"anchors": ((10.0, 10.0),)}, "rpn"),
        ({"roi_size": 7}, "fc1"),
        ({"classes": ("a", "b", "c", "d")}, "number of classes"),
    ],
)
def test_weights_are_not_loaded_into_another_network(saved: Path, changes: dict[str, object], word: str) -> None:
    other = build(tiny_spec(**changes))
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert word in refusal(saved, lambda path: load_state(other, read_tensors(path).tensors, path))
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_a_file_whose_head_is_ordered_otherwise_is_refused(saved: Path) -> None:
    assert "was written by an older qmimic (format 1)" in refusal(
        rewritten(saved, lambda header, _: header.update(format=1))
    )


def test_a_file_of_a_newer_version_is_refused(saved: Path) -> None:
    sentence = refusal(rewritten(saved, lambda header, _: header.update(format=999)))
    assert "newer" in sentence
    assert "999" in sentence


@pytest.mark.parametrize("number", [None, "1", [1], 1.5])
def test_a_version_that_is_no_number_is_refused(saved: Path, number: object) -> None:
    refusal(rewritten(saved, lambda header, _: header.update(format=number)))


@pytest.mark.parametrize("share", [0.0, 0.0005, 0.02, 0.5, 0.999])
def test_a_file_cut_short_is_refused(saved: Path, share: float) -> None:
    whole = saved.read_bytes()
    saved.write_bytes(whole[: int(share * len(whole))])
    assert "cut short" in refusal(saved)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert "no checkpoint" in refusal(tmp_path / "absent.safetensors")
    assert "is a folder, not a file" in refusal(tmp_path)


class Bomb:
    """Pickled code, which reading a file must never run."""

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return (Path.mkdir, (Path("exploded"),))


def test_pickle_files_are_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(build(tiny_spec()).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "bomb.pkl").write_bytes(pickle.dumps(Bomb()))
    refusal(tmp_path / "weights.pt")
    refusal(tmp_path / "bomb.pkl")
    assert not Path("exploded").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"\x00" * 64,
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 40) + b"[" * 40,
    ],
    ids=["zeros", "git-lfs", "huge header", "list header", "deep header"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", ["backbone.conv1.weight", "backbone.bn1.running_var", "head.deltas.bias"])
def test_weights_that_are_no_numbers_are_refused(saved: Path, name: str, bad: float) -> None:
    def spoil(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors[name].view(-1)[0] = bad

    assert name in refusal(rewritten(saved, spoil))


def test_a_file_without_description_is_refused(saved: Path) -> None:
    assert "description" in refusal(rewritten(saved, lambda header, _: header.pop("spec")))


def test_a_file_of_others_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "others.safetensors"
    save_file({"a": torch.ones(2)}, str(path))
    assert "description" in refusal(path)


@pytest.mark.parametrize(
    "change",
    [
        {"backbone": "resnet18/0"},
        {"backbone": "resnet99"},
        {"backbone": 7},
        {"classes": []},
        {"anchors": []},
        {"anchors": None},
        {"output_stride": 4},
        {"architecture": "yolo"},
        {"unheard_of": 1},
        {"roi_size": 10**9},
        {"score_threshold": "high"},
        {"size": [0, 0]},
        {"size": [-16, 32]},
        {"size": [100, 100]},
        {"size": [2**20, 2**20]},
        {"size": [10**30, 32]},
        {"head_width": 10**9},
        {"head_width": 2**70},
        {"classes": ["a"] * 10**5},
    ],
    ids=lambda change: str(change)[:40],
)
def test_a_description_of_what_cannot_be_is_refused(saved: Path, change: dict[str, object]) -> None:
    refusal(rewritten(saved, lambda header, _: header["spec"].update(change)))


@pytest.mark.parametrize("spec", [None, 5, "resnet18", [], {}])
def test_a_description_of_another_kind_is_refused(saved: Path, spec: object) -> None:
    refusal(rewritten(saved, lambda header, _: header.update(spec=spec)))


@pytest.mark.parametrize("quantizer", [{"kind": "ternary"}, 3, "uniform", {"stride": -1.0}])
def test_a_quantizer_that_cannot_be_is_refused(saved: Path, quantizer: object) -> None:
    refusal(rewritten(saved, lambda header, _: header.update(quantizer=quantizer)))


def test_a_quantizer_without_its_stride_is_refused(saved: Path) -> None:
    sentence = refusal(rewritten(saved, lambda header, _: header.update(quantizer={"kind": "uniform"})))
    assert "quantizer.stride" in sentence


@pytest.mark.parametrize("strides", [torch.ones(5), torch.zeros(1), torch.tensor([-1.0]), torch.ones(1, 1)])
def test_strides_that_do_not_fit_the_map_are_refused(tmp_path: Path, strides: torch.Tensor) -> None:
    detector = lively(tiny_spec())
    detector.quantizer = Quantizer(QuantizerConfig(), torch.ones(1))
    save_detector(detector, tmp_path / "a.safetensors", {})
    path = rewritten(tmp_path / "a.safetensors", lambda _, tensors: tensors.update({"quantizer.stride": strides}))
    assert "quantizer.stride" in refusal(path)


@pytest.mark.parametrize(("change", "word"), [("drop", "lacks"), ("add", "does not have"), ("half", "float16")])
def test_a_missing_an_unknown_and_a_retyped_weight_are_refused(saved: Path, change: str, word: str) -> None:
    def spoil(_: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        if change == "drop":
            del tensors["head.fc2.bias"]
        elif change == "add":
            tensors["head.fc9.bias"] = torch.zeros(3)
        else:
            tensors["head.fc2.bias"] = tensors["head.fc2.bias"].half()

    sentence = refusal(rewritten(saved, spoil))
    assert word in sentence
    assert "head.fc" in sentence


def test_a_folder_that_cannot_be_written_is_refused_and_the_old_file_stays(saved: Path) -> None:
    before = saved.read_bytes()
    with pytest.raises(InputError, match="Cannot write"):
        write_tensors(saved / "below a file.safetensors", {"a": torch.ones(1)}, {})
    assert saved.read_bytes() == before


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_few_wrong_bytes_in_the_header_are_refused_or_harmless(saved: Path, wrong: list[tuple[float, int]]) -> None:
    content = bytearray(saved.read_bytes())
    end = 8 + struct.unpack("<Q", content[:8])[0]
    for place, byte in wrong:
        content[int(place * (end - 1))] = byte
    path = saved.with_name("wrong.safetensors")
    path.write_bytes(content)
    try:
        detector, _ = load_detector(path)
    except InputError as error:
        refused = str(error)
        assert str(path) in refused
    else:
        detector.detect(some_images(0, 1, detector.spec.size))


def published(path: Path, **changes: torch.Tensor) -> Path:
    """A file such as torchvision's resnet18: with a classifier, without the counters of batch norm."""
    torch.manual_seed(0)
    state = {name: value for name, value in resnet18().state_dict().items() if not name.endswith("tracked")}
    save_file(state | changes, str(path))
    return path


def wide() -> Detector:
    return build(tiny_spec(backbone="resnet18"))


def test_a_backbone_starts_from_published_weights(tmp_path: Path) -> None:
    path = published(tmp_path / "resnet18.safetensors")
    detector = wide()
    head = detector.head.fc1.weight.clone()
    load_backbone(detector, path)
    state = read_tensors(path).tensors
    for name, value in detector.backbone.state_dict().items():
        if not name.endswith("tracked"):
            assert torch.equal(value, state[name])
    assert torch.equal(detector.head.fc1.weight, head)


def test_published_weights_of_another_network_are_refused(tmp_path: Path, saved: Path) -> None:
    path = published(tmp_path / "resnet18.safetensors")
    assert "another width" in refusal(path, lambda p: load_backbone(build(tiny_spec()), p))
    assert "lacks" in refusal(path, lambda p: load_backbone(build(tiny_spec(backbone="resnet34")), p))
    assert "has the backbone resnet18/16" in refusal(saved, lambda p: load_backbone(wide(), p))
    deeper = published(path, **{"layer1.2.conv1.weight": torch.zeros(64, 64, 3, 3)})
    assert "has layer1.2.conv1.weight, which resnet18 lacks" in refusal(deeper, lambda p: load_backbone(wide(), p))
    spoilt = published(path, **{"conv1.weight": torch.full((64, 3, 7, 7), float("nan"))})
    assert "conv1.weight" in refusal(spoilt, lambda p: load_backbone(wide(), p))
    below = published(path, **{"layer2.0.bn1.running_var": torch.full((128,), -0.5)})
    assert "negative variances in layer2.0.bn1.running_var" in refusal(below, lambda p: load_backbone(wide(), p))


def test_a_broadcast_tensor_of_one_number_is_written(tmp_path: Path) -> None:
    write_tensors(tmp_path / "one.safetensors", {"label": torch.tensor(3).expand(1)}, {})
    assert read_tensors(tmp_path / "one.safetensors").tensors["label"].tolist() == [3]
