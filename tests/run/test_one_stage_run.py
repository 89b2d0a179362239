"""A whole run of one-stage detectors: taught, pruned, resumed, and what is said before it begins."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from qmimic.config import DetectorConfig, Recipe
from qmimic.data.chosen import open_dataset
from qmimic.data.columns import in_columns
from qmimic.data.sample import Sample
from qmimic.data.splits import TRAIN
from qmimic.detectors.crowds import without_place
from qmimic.detectors.files import load_detector
from qmimic.detectors.one_stage import OneStage, place_grid
from qmimic.errors import InputError
from qmimic.report.maps import feature_maps
from qmimic.run.folder import read_run
from qmimic.run.prepare import prepare, remarks
from qmimic.run.train import train
from qmimic.training.progress import Silent


@dataclass
class Heard(Silent):
    """What was said; it can stop a stage at one of its steps."""

    said: list[str] = field(default_factory=list)
    stop_at: int | None = None
    stage: str = ""

    def start(self, stage: str, steps: int, done: int) -> None:
        self.stage = stage

    def step(self, step: int, images: int, loss: float) -> None:
        if self.stage == "student" and step == self.stop_at:
            raise KeyboardInterrupt

    def say(self, text: str) -> None:
        self.said.append(text)


def test_a_run_teaches_prunes_and_resumes_to_the_same_weights(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    changes = {
        "detector": {"architecture": "one_stage"},
        "teacher": {"steps": 4, "batch_size": 4, "backbone": "repvgg/16", "min_map": 0},
        "pruning": {"rounds": 1, "steps": 1},
    }
    recipe = make_recipe(**changes).model_copy(update={"baselines": ("taylor",)})
    heard = Heard(stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, heard)
    assert "Levels of strides 8, 16, 32, by the sizes of the training boxes." in heard.said
    result = train(recipe, Heard())
    assert [one.name for one in result.results] == ["teacher", "quantized_teacher", "taylor", "student"]
    assert result.results[-1].matching is not None
    student, _ = load_detector(result.student)
    assert isinstance(student, OneStage)
    assert student.strides == (8, 16, 32)
    elsewhere = recipe.model_copy(update={"run": recipe.run.model_copy(update={"dir": str(tmp_path / "other")})})
    again, _ = load_detector(train(elsewhere, Heard()).student)
    for ours, theirs in zip(student.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_single_class_has_no_rivals_to_be_told_from(
    make_recipe: Callable[..., Recipe], shapes: Path, tmp_path: Path
) -> None:
    """So whatever the weight of that loss, it is the same run."""
    single = tmp_path / "single"
    shutil.copytree(shapes, single)
    for file in single.glob("*.json"):
        tree = json.loads(file.read_text())
        tree["categories"] = [{"id": 0, "name": "thing"}]
        tree["annotations"] = [{**one, "category_id": 0} for one in tree["annotations"]]
        file.write_text(json.dumps(tree))
    keys = {
        (prepared.detector.softmax_weight, prepared.key)
        for weight in (0, 3)
        for prepared in [
            prepare(
                make_recipe(
                    data={"root": str(single)}, detector={"architecture": "one_stage", "softmax_weight": weight}
                )
            )
        ]
    }
    assert len(keys) == 1
    two = [prepare(make_recipe(detector={"architecture": "one_stage", "softmax_weight": weight})) for weight in (0, 3)]
    assert two[0].key != two[1].key
    assert two[1].spec("resnet18/32").softmax_weight == 3


def test_a_teacher_of_two_stages_teaches_on_the_level_that_both_have(make_recipe: Callable[..., Recipe]) -> None:
    quick = {"steps": 3, "batch_size": 4, "backbone": "resnet18/16", "min_map": 0}
    recipe = make_recipe(detector={"architecture": "one_stage"}, teacher={**quick, "detector": "faster_rcnn"})
    result = train(recipe.model_copy(update={"baselines": ()}), Silent())
    assert result.results[-1].matching is not None
    teacher, _ = load_detector(result.folder / "teacher.safetensors")
    assert teacher.spec.architecture == "faster_rcnn"
    assert teacher.strides == (16,)
    student, _ = load_detector(result.student)
    assert student.strides == (8, 16, 32)


def test_levels_that_do_not_fit_are_refused_before_training(make_recipe: Callable[..., Recipe]) -> None:
    recipe = make_recipe(
        detector={"architecture": "one_stage", "levels": [8, 32]},
        data={"size": [48, 64], "root": make_recipe().data.root},
    )
    with pytest.raises(InputError, match="multiples of 32, and the size is 48 x 64"):
        prepare(recipe)
    only_teacher = recipe.changed({"detector.architecture": "faster_rcnn", "teacher.detector": "one_stage"})
    with pytest.raises(InputError, match="multiples of 32, and the size is 48 x 64"):
        prepare(only_teacher)


def test_crowds_are_said() -> None:
    settings = DetectorConfig(architecture="one_stage", levels=(32,))

    def said(count: int) -> tuple[str, ...]:
        none = np.zeros(count, np.bool_)
        boxes = np.tile(np.array([40, 40, 44, 44], np.float32), (count, 1))
        crowd = Sample("crowd", None, boxes, np.zeros(count, np.int64), none, none, (96, 64))
        return remarks(settings, settings, (64, 96), in_columns({TRAIN: [crowd]}, None)[TRAIN])

    # Of the 6 places of stride 32, those at x = 16, 48 and y = 16, 48 lie within 32 pixels of (42, 42).
    assert said(4) == ()
    (sentence,) = said(9)
    assert sentence.startswith("At least 5 objects of the training pictures are learnt by no place of the levels")


@given(
    st.lists(st.tuples(*[st.floats(0, 60)] * 2, *[st.floats(0.5, 24)] * 2, st.integers(0, 2)), min_size=1, max_size=40),
    st.sampled_from([(8, 16), (16,), (32,)]),
)
@settings(deadline=None)
def test_what_no_place_learns_is_what_a_largest_assignment_leaves(
    objects: list[tuple[float, float, float, float, int]], levels: tuple[int, ...]
) -> None:
    boxes = np.array([(x, y, min(x + w, 64), min(y + h, 64)) for x, y, w, h, _ in objects], np.float32)
    pictures = np.array([picture for *_, picture in objects])
    places = place_grid((64, 64), levels).numpy()
    left = 0
    for picture in set(pictures.tolist()):
        own = boxes[pictures == picture]
        apart = np.ones((len(own), len(places)))
        for row, (x1, y1, x2, y2) in enumerate(own):
            for column, (x, y, stride) in enumerate(places):
                far = abs(x - (x1 + x2) / 2) >= max((x2 - x1) / 2, stride) or abs(y - (y1 + y2) / 2) >= max(
                    (y2 - y1) / 2, stride
                )
                apart[row, column] = far
        rows, columns = linear_sum_assignment(apart)
        left += len(own) - int((apart[rows, columns] == 0).sum())
    assert without_place(boxes, pictures, (64, 64), levels) == left


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"detector": {"architecture": "one_stage", "levels": [8]}}, "output strides 8 and the teacher's 16"),
        ({"mimic": {"distiller": "outputs"}, "detector": {"architecture": "one_stage"}}, "and the teacher is not one"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_before_it_is_trained(
    make_recipe: Callable[..., Recipe], changes: dict[str, dict[str, object]], said: str
) -> None:
    recipe = make_recipe(**changes, teacher={"steps": 2, "min_map": 0, "detector": "faster_rcnn"})
    refused_before_training(recipe, said)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": {"weights": "zoo:digits", "backbone": "yunet/16"}}, "zoo:digits has the backbone"),
        (
            {"student": {"weights": "zoo:pcb", "backbone": "repvgg/15"}},
            r"trained with data.grey=true; the network here",
        ),
        ({"student": {"weights": "x" * 300}}, "there is no such file"),
        ({"student": {"weights": __file__}}, "neither safetensors nor a torch state dict"),
        ({"student": {"backbone": "timm:resnet10t", "weights": "pretrained"}}, "timm cannot provide pretrained"),
        ({"teacher": {"weights": "zoo:pcb", "backbone": "resnet18/16"}}, "zoo:pcb has the backbone"),
        ({"quantizer": {"per_channel": True}}, "per_channel=true needs a teacher of one level"),
    ],
)
def test_networks_that_cannot_start_are_refused_before_any_is_trained(
    make_recipe: Callable[..., Recipe], changes: dict[str, dict[str, object]], said: str
) -> None:
    quick = {"steps": 2, "min_map": 0, "backbone": "repvgg/16"}
    teacher = {"teacher": {**quick, **changes.get("teacher", {})}}
    refused_before_training(make_recipe(**{**changes, **teacher}, detector={"architecture": "one_stage"}), said)


def refused_before_training(recipe: Recipe, said: str) -> None:
    with pytest.raises(InputError, match=said):
        train(recipe, Silent())
    assert not list(recipe.folder.rglob("teacher*"))


def test_the_matching_is_that_of_the_network_that_is_kept_on_all_levels(make_recipe: Callable[..., Recipe]) -> None:
    quick = {"steps": 4, "batch_size": 4, "backbone": "repvgg/16", "min_map": 0}
    recipe = make_recipe(
        detector={"architecture": "one_stage", "levels": [8, 16]},
        teacher=quick,
        student={"ema": 0.9, "steps": 6},
        run={"device": "cpu"},  # a GPU rounds otherwise than the processor that `feature_maps` runs on
    )
    train(recipe.model_copy(update={"baselines": ()}), Silent())
    run = read_run(recipe.folder)
    maps = feature_maps(run, open_dataset(recipe.data), lambda _: None)
    assert maps.matching is not None
    entries = sum(level.entries for level in maps.matching.levels)
    matched = sum(level.matched * level.entries for level in maps.matching.levels)
    assert run.results[-1].matching == pytest.approx(matched / entries, abs=1e-6)
    assert [row.name.rpartition(", ")[2] for row in maps.rows] == ["stride 8"] * 2 + ["stride 16"] * 2
    height, width = recipe.data.size
    for row, stride in zip(maps.rows, (8, 8, 16, 16), strict=True):
        assert list(row.maps) == ["teacher", "quantized teacher", "student, r(f)", "student, Q(r(f))"]
        assert {one.shape for one in row.maps.values()} == {(height // stride, width // stride)}
