"""The recipes of the paper's experiments against the paper's table, typed by hand, and what they say is theirs."""

import re
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from qmimic.config import Recipe, load_recipe
from qmimic.detectors.backbones import build_backbone
from qmimic.detectors.build import build, mac_count
from qmimic.detectors.fitted import anchors_in_cells
from qmimic.detectors.spec import TwoStageSpec
from qmimic.training.optimizer import build_optimizer, learning_rate

RECIPES = Path(__file__).parents[2] / "recipes"
BOTH = {
    "quantizer.kind": "uniform",
    "quantizer.stride": 1,  # "s = 1, absolute, in all of its experiments"
    "quantizer.relative": False,
    "mimic.mode": "quantization",
    "mimic.weight": 1,
    "mimic.order": "pool_quantize",  # region, then r, then Q, then L2
    "mimic.pooling": "pool",  # RoI pooling is max pooling
    "detector.roi_pooling": "pool",
    "detector.architecture": None,
    "mimic.last_step": 1,  # no end of the mimic is mentioned
    **{f"{stage}.optimizer": "sgd" for stage in ("teacher", "student")},
    **{f"{stage}.weight_decay": 5e-4 for stage in ("teacher", "student")},
}
PRINTED: dict[str, dict[str, Any]] = {
    "wider-vgg16-32-rfcn": {
        **BOTH,
        "detector.architecture": "rfcn",
        "detector.roi_size": 3,
        "detector.ohem": True,
        "student.backbone": "vgg16/32",
        "teacher.backbone": "vgg16/4",
        "data.grey": True,
        "data.train": "train",
        "data.val": "val",
        "detector.anchor_cells": (4, 8, 16, 32),
        "detector.anchor_ratios": (1,),
        "mimic.region_count": 2000,
        "mimic.region_size": 3,  # "R-FCN, 3x3"
    },
    "voc-resnet18-16-frcnn": {
        **BOTH,
        "detector.architecture": "faster_rcnn",
        "detector.roi_size": 7,
        "detector.ohem": False,
        "student.backbone": "resnet18/16",
        "teacher.backbone": "resnet18",
        "data.grey": False,
        "data.train": "2007_trainval+2012_trainval",
        "data.val": "2007_test",
        "detector.anchor_cells": (4, 8, 16),
        "detector.anchor_ratios": (2, 3),
        "mimic.region_count": 128,
        "mimic.region_size": 7,  # "RoI output 7x7"
    },
}
# Iterations at 1e-3, then at 1e-4.
SCHEDULES = {"wider-vgg16-32-rfcn": (50_000, 30_000), "voc-resnet18-16-frcnn": (30_000, 10_000)}
FIGURES = {
    "wider-vgg16-32-rfcn": {
        "teacher": (82.4, 62.5, 26.3),
        "quantized_teacher": (83.7, 65.0, 27.4),
        "scratch": (71.3, 55.4, 23.8),
        "quantized": (71.9, 55.2, 23.7),
        "separable": (69.1, 51.1, 21.6),
        "grouped": (67.8, 51.9, 22.4),
        "lasso": (68.0, 50.7, 22.1),
        "taylor": (73.2, 58.2, 25.2),
        "mimic": (71.9, 58.2, 25.6),
        "student": (73.9, 62.1, 27.6),
    },
    "voc-resnet18-16-frcnn": {
        "teacher": (72.9,),
        "quantized_teacher": (73.3,),
        "scratch": (40.5,),
        "mimic": (44.6,),
        "student": (47.0,),
    },
}


def recipe_of(name: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", [])


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, own in PRINTED.items() for key in own])
def test_what_is_printed_is_in_the_recipe(name: str, key: str) -> None:
    assert attrgetter(key)(recipe_of(name)) == PRINTED[name][key]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stage", ["teacher", "student"])
def test_the_learning_rate_falls_where_it_is_printed_to(name: str, stage: str) -> None:
    schedule = getattr(recipe_of(name), stage)
    first, second = SCHEDULES[name]
    assert schedule.steps == first + second
    for step, rate in ((0, 1e-3), (first - 1, 1e-3), (first, 1e-4), (first + second - 1, 1e-4)):
        assert learning_rate(schedule, step) == pytest.approx(rate)


def test_sgd_has_the_printed_momentum() -> None:
    (group, *_) = build_optimizer(nn.Linear(2, 2), recipe_of("voc-resnet18-16-frcnn").student).param_groups
    assert group["momentum"] == 0.9
    assert group["weight_decay"] == 5e-4


@pytest.mark.parametrize("name", FIGURES)
def test_the_published_figures_stand_beside_their_arms(name: str) -> None:
    recipe = recipe_of(name)
    assert {arm: tuple(map(float, text.split("/"))) for arm, text in recipe.published.items()} == FIGURES[name]
    assert set(recipe.baselines) == set(FIGURES[name]) - {"teacher", "quantized_teacher", "student"}


@pytest.mark.parametrize("name", PRINTED)
def test_the_short_side_is_600_in_whole_cells(name: str) -> None:
    assert 600 <= min(recipe_of(name).data.size) < 616


@pytest.mark.parametrize("name", PRINTED)
def test_a_line_that_is_not_printed_says_that_it_is_ours(name: str) -> None:
    text = (RECIPES / f"{name}.yaml").read_text()
    said: set[str] = set()
    section, ours = "", False
    for line in text.splitlines():
        found = re.match(r"^( *)(\w+):(.*)$", line)
        if not found:
            continue
        indent, key, rest = found.groups()
        if not indent:
            section, ours = key, "ours" in rest
        own = f"{section}.{key}" if indent else key
        if ours or "ours" in rest:
            said.add(own)
    tree = yaml.safe_load(text)
    lines = {
        f"{section}.{key}" if isinstance(value, dict) and section not in ("published", "augment") else section
        for section, value in tree.items()
        for key in (value if isinstance(value, dict) else [""])
    }
    schedule = {f"{stage}.{key}" for stage in ("teacher", "student") for key in ("steps", "learning_rate", "decay")}
    schedule |= {f"{stage}.milestones" for stage in ("teacher", "student")}
    printed = set(PRINTED[name]) | schedule | {"name", "baselines", "published", "data.root"}
    assert lines - printed - said == set(), "neither printed nor said to be ours"
    # The short side is printed, its shape is ours; of the rest, nothing is both.
    assert said & printed == {"detector.anchor_ratios"} & said


def test_anchors_have_the_areas_and_ratios_of_their_cells() -> None:
    found = anchors_in_cells((4, 8), (2, 3), 16)
    assert [round(width * height) for width, height in found] == [64**2, 64**2, 128**2, 128**2]
    assert [round(width / height, 2) for width, height in found] == [2, 3, 2, 3]


@pytest.mark.parametrize(("name", "least", "most"), [("vgg16/32", 0.5, 2.0)])
def test_the_student_costs_about_what_is_printed(name: str, least: float, most: float) -> None:
    # 227 MFLOPs of VGG-1-32 in Table 2; the size that they are counted at is not printed.
    recipe = recipe_of("wider-vgg16-32-rfcn")
    settings = recipe.detector.model_dump(exclude={"anchors", "anchor_cells", "anchor_ratios"}, exclude_none=True)
    spec = TwoStageSpec(
        **settings,
        anchors=anchors_in_cells((4, 8, 16, 32), (1,), 16),
        backbone=name,
        classes=("face",),
        size=recipe.data.size,
        grey=True,
    )
    assert build_backbone(name, 16).channels == (16,)
    assert least < mac_count(build(spec)) / 227e6 < most
