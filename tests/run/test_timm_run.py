"""A run with networks of timm as teacher and student: what is frozen stays frozen, and a killed run comes out alike."""

from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import qmimic
from cli_cases import coco
from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.config import recipe_from
from qmimic.detectors.files import load_detector, read_tensors
from qmimic.errors import InputError
from qmimic.training.progress import Silent

NETWORK = "resnet10t"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "a.safetensors"
    save_file(timm.create_model(NETWORK).state_dict(), str(path))
    return path


def tree(folder: Path, weights: Path, **teacher: object) -> dict[str, dict[str, object]]:
    steps = {"steps": 3, "batch_size": 2, "checkpoint_every": 1}
    return {
        "data": {"root": str(folder / "cats"), "size": [64, 64], "grey": True},
        "detector": {"pre_nms": 32, "post_nms": 8, "anchor_cells": [1, 2], "anchor_ratios": [0.5, 2]},
        "teacher": {"backbone": f"timm:{NETWORK}", "weights": str(weights), "min_map": 0, **steps, **teacher},
        "quantized_teacher": {**steps},
        "student": {"backbone": "timm:mobilenetv3_small_050", **steps},
        "mimic": {"weight": "auto", "share": 0.5},
        "run": {"dir": str(folder / "run"), "threads": 1, "report": False, "trackers": []},
    }


def test_teacher_and_student_of_timm(tmp_path: Path, weights: Path) -> None:
    coco(tmp_path / "cats")
    recipe = recipe_from(tree(tmp_path, weights, frozen_stages=2, frozen_norm=True), "the test")
    results = qmimic.train(recipe).results
    assert [one.backbone for one in results[:2]] == [f"timm:{NETWORK}"] * 2
    published = timm.create_model(NETWORK)
    published.load_state_dict(read_tensors(weights).tensors)
    for stage in ("teacher", "quantized_teacher"):
        detector, _ = load_detector(tmp_path / "run" / f"{stage}.safetensors")
        assert detector.spec.grey
        # Widths and heights of 1 and 2 cells of 16 pixels in two ratios.
        assert [round(width * height) for width, height in detector.spec.anchors] == [256, 256, 1024, 1024]
        own, theirs = detector.backbone.body.state_dict(), published.state_dict()
        first = theirs["conv1.0.weight"].sum(1, keepdim=True)
        torch.testing.assert_close(own["conv1.0.weight"], first)  # the first stage is frozen
        assert torch.equal(own["layer4.0.bn1.running_mean"], theirs["layer4.0.bn1.running_mean"])
        assert torch.equal(own["layer4.0.bn1.weight"], theirs["layer4.0.bn1.weight"])
        assert not torch.equal(own["layer4.0.conv1.weight"], theirs["layer4.0.conv1.weight"])


def test_a_teacher_of_depthwise_convolutions_is_cut_to_a_student(tmp_path: Path) -> None:
    coco(tmp_path / "cats")
    plan = tree(tmp_path, tmp_path, backbone="timm:mobilenetv3_small_050")
    del plan["teacher"]["weights"]
    plan |= {"baselines": ["taylor", "lasso"], "pruning": {"rounds": 2, "steps": 1, "images": 4, "places": 4}}
    plan["student"] = {**plan["student"], "backbone": "resnet18/32"}
    results = {one.name: one for one in qmimic.train(recipe_from(plan, "the test")).results}
    for name in ("taylor", "lasso"):
        assert results[name].macs == pytest.approx(results["student"].macs, rel=0.05)
        detector, _ = load_detector(tmp_path / "run" / f"{name}.safetensors")
        assert detector.spec.backbone == "timm:mobilenetv3_small_050"
        integers = prepare_qat(detector).eval()
        calibrate(integers, [torch.rand(2, 1, 64, 64) * 255])  # refuses a layer that reads a map without a grid


def test_a_teacher_with_more_frozen_stages_than_there_are_is_refused(tmp_path: Path, weights: Path) -> None:
    coco(tmp_path / "cats")
    with pytest.raises(InputError, match=r"has 5 stages; teacher\.frozen_stages=9 is too high"):
        qmimic.train(recipe_from(tree(tmp_path, weights, frozen_stages=9), "the test"))


def test_nothing_is_frozen_that_was_never_trained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"teacher\.weights"):
        recipe_from({"teacher": {"frozen_stages": 1}}, "the test")


class Killed(Silent):
    """Ends the run after a step of a stage."""

    def __init__(self, stage: str, at: int) -> None:
        self.stage, self.at, self.running = stage, at, ""

    def start(self, stage: str, steps: int, done: int) -> None:
        self.running = stage

    def step(self, step: int, images: int, loss: float) -> None:
        if (self.running, step) == (self.stage, self.at):
            raise KeyboardInterrupt


def test_a_killed_run_goes_on_to_the_same_weights(tmp_path: Path, weights: Path) -> None:
    coco(tmp_path / "cats")
    whole = tree(tmp_path, weights, frozen_stages=2, frozen_norm=True)
    qmimic.train(recipe_from(whole, "the test"))
    cut = recipe_from(whole | {"run": {**whole["run"], "dir": str(tmp_path / "cut")}}, "the test")
    for stage in ("teacher", "quantized_teacher", "student"):
        with pytest.raises(KeyboardInterrupt):
            qmimic.train(cut, Killed(stage, 3))
    qmimic.train(cut)
    for stage in ("teacher", "quantized_teacher", "student"):
        one, other = (read_tensors(tmp_path / run / f"{stage}.safetensors").tensors for run in ("run", "cut"))
        assert one.keys() == other.keys()
        for name in one:
            assert torch.equal(one[name], other[name]), f"{stage}: {name}"
