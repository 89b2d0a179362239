"""Each distiller of others' papers in whole runs, of one stage and of two; and what is refused before any training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_file_teacher import a_file

from qmimic.config import Recipe
from qmimic.detectors.files import load_detector
from qmimic.errors import InputError
from qmimic.run.prepare import prepare
from qmimic.run.teaching import require_teachable
from qmimic.run.train import train
from qmimic.training.progress import Silent

MakeRecipe = Callable[..., Recipe]
# A student of one stage sees its teacher on three levels, or one of two stages on one of them.
CASES = [
    *((name, kind) for name in ("fine_grained", "masked_generative", "focal_global", "cross_head") for kind in "12m"),
    ("two_stage_mimic", "2"),
]
SHARE = 0.2


class StopAt(Silent):
    """Ends the student's training at a step, as a kill does."""

    def __init__(self, step: int) -> None:
        self.at, self.stage = step, ""

    def start(self, stage: str, steps: int, done: int) -> None:
        self.stage = stage

    def step(self, step: int, images: int, loss: float) -> None:
        if self.stage == "student" and step == self.at:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose runs share their teachers."""
    return tmp_path_factory.mktemp("runs")


def recipe_of(make_recipe: MakeRecipe, folder: Path, name: str, kind: str, **mimic: object) -> Recipe:
    """A run of 30 steps; kind: stages of student and teacher, m for one stage taught by two."""
    quick = {"steps": 4, "batch_size": 4, "backbone": "resnet18/16", "min_map": 0}
    recipe = make_recipe(
        detector={"architecture": "faster_rcnn" if kind == "2" else "one_stage", "roi_samples": 16, "rpn_samples": 32,
                  "pre_nms": 64, "post_nms": 16, "anchor_count": 3},
        teacher={**quick, **({"detector": "faster_rcnn"} if kind == "m" else {})},
        student={"steps": 30, "checkpoint_every": 7},
        mimic={"distiller": name, "weight": "auto", "share": SHARE, "map_steps": 0, "last_step": 1, **mimic},
        run={"dir": str(folder), "threads": 1, "report": False},
    )  # fmt: skip
    return recipe.model_copy(update={"baselines": ()})


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_student_is_taught_at_the_share_that_is_asked_for(
    make_recipe: MakeRecipe, shared: Path, name: str, kind: str
) -> None:
    result = train(recipe_of(make_recipe, shared, name, kind), Silent()).results[-1]
    assert result.distillation_share == pytest.approx(SHARE, rel=0.2)  # of 30 steps from fresh weights
    assert result.distillation_cosine is not None


def test_a_killed_run_that_draws_masks_ends_in_the_same_weights(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    whole = train(recipe_of(make_recipe, tmp_path / "whole", "masked_generative", "1"), Silent())
    killed = recipe_of(make_recipe, tmp_path / "killed", "masked_generative", "1")
    with pytest.raises(KeyboardInterrupt):
        train(killed, StopAt(17))
    ours, theirs = (load_detector(one)[0].state_dict() for one in (whole.student, train(killed, Silent()).student))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_student_that_is_cut_out_of_its_teacher_is_of_its_kind(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    # By itself, a student of one stage has no second stage to ask.
    recipe = recipe_of(make_recipe, tmp_path, "two_stage_mimic", "m").changed({"pruning.method": "taylor"})
    require_teachable(prepare(recipe))


def test_what_two_networks_cannot_do_is_refused_before_either_is_trained(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    for name, kind, said in (
        ("two_stage_mimic", "1", "and the student has none"),
        ("two_stage_mimic", "m", "and the student has none"),
        ("outputs", "2", "and the teacher is not one"),
    ):
        recipe = recipe_of(make_recipe, tmp_path, name, kind)
        with pytest.raises(InputError, match=said):
            train(recipe, Silent())
    assert not list(tmp_path.rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("mimic", "said"),
    [
        ({}, "needs to know where the teacher sees objects, and teacher.kind=onnx shows no regions"),
        ({"distiller": "cross_head"}, "this teacher has none to lend"),
        ({"distiller": "two_stage_mimic"}, "and the teacher has none that can be asked"),
    ],
)
def test_what_a_file_cannot_teach_is_refused_before_any_student_is_trained(
    make_recipe: MakeRecipe, tmp_path: Path, mimic: dict[str, object], said: str
) -> None:
    changes = {
        "teacher": {"kind": "onnx", "file": str(a_file(tmp_path / "teacher.onnx")), "maps": ["map"]},
        "mimic": {"map_steps": 0, "last_step": 1, **mimic},
    }
    recipe = make_recipe(**changes).model_copy(update={"baselines": ("scratch",)})
    with pytest.raises(InputError, match=said):
        train(recipe, Silent())
    assert not list(recipe.folder.rglob("*.safetensors"))
