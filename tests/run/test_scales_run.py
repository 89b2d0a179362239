"""A student that sees its pictures at half the size, in whole runs."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from test_distillers_run import StopAt

from conftest import SIDE
from qmimic.config import Recipe
from qmimic.detectors.files import load_detector
from qmimic.errors import InputError
from qmimic.run.train import train
from qmimic.training.progress import Silent

MakeRecipe = Callable[..., Recipe]
HALF = [SIDE // 2, SIDE // 2]


def over_scales(make_recipe: MakeRecipe, folder: Path, architecture: str = "faster_rcnn", **changes: object) -> Recipe:
    sections: dict[str, dict[str, object]] = {
        "data": {"size": HALF},
        "detector": {"architecture": architecture, "output_stride": 16 if architecture == "faster_rcnn" else None},
        "teacher": {"scale": 2},
        "run": {"dir": str(folder), "threads": 1, "report": False},
    }
    for section, values in changes.items():
        assert isinstance(values, dict)
        sections[section] = {**sections.get(section, {}), **values}
    return make_recipe(**sections).model_copy(update={"baselines": ("scratch",)})


@pytest.mark.parametrize("architecture", ["faster_rcnn", "one_stage"])
def test_the_teacher_sees_more_and_the_student_ships_small(
    make_recipe: MakeRecipe, tmp_path: Path, architecture: str
) -> None:
    recipe = over_scales(make_recipe, tmp_path / "run", architecture)
    result = train(recipe, Silent())
    teacher, student = (load_detector(tmp_path / "run" / f"{name}.safetensors")[0] for name in ("teacher", "student"))
    assert teacher.spec.size == (SIDE, SIDE)
    assert student.spec.size == tuple(HALF)
    assert result.results[-1].distillation_share is not None
    assert result.results[-1].matching is None  # the maps do not lie on each other
    # The teacher is that of a run on larger pictures, to the last bit.
    alone = over_scales(
        make_recipe, tmp_path / "large", architecture, data={"size": [SIDE, SIDE]}, teacher={"scale": 1}
    )
    other = train(alone, Silent())
    assert [one.key for one in other.results[:2]] == [one.key for one in result.results[:2]]
    assert [one.key for one in other.results[2:]] != [one.key for one in result.results[2:]]


def test_it_is_another_student_than_one_on_the_teachers_pictures(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Scratch is the same with a larger teacher as with another: it has none."""
    ours = train(over_scales(make_recipe, tmp_path / "a"), Silent())
    theirs = train(over_scales(make_recipe, tmp_path / "b", teacher={"scale": 1}), Silent())
    keys = [{one.name: one.key for one in run.results} for run in (ours, theirs)]
    assert keys[0]["scratch"] == keys[1]["scratch"]
    assert all(keys[0][name] != keys[1][name] for name in ("teacher", "quantized_teacher", "student"))


@pytest.mark.parametrize("distiller", ["cross_head", "two_stage_mimic", "focal_global"])
def test_other_distillers_work_over_scales(make_recipe: MakeRecipe, tmp_path: Path, distiller: str) -> None:
    """Two of them lend the teacher's head, which knows its own pixels alone."""
    mimic = {"distiller": distiller, "map_steps": 0, "last_step": 1}
    result = train(over_scales(make_recipe, tmp_path, mimic=mimic), Silent()).results[-1]
    assert result.distillation_share is not None
    assert result.distillation_share > 0


def test_killed_over_scales_it_ends_in_the_same_weights(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    whole = train(over_scales(make_recipe, tmp_path / "whole"), Silent())
    killed = over_scales(make_recipe, tmp_path / "killed")
    with pytest.raises(KeyboardInterrupt):
        train(killed, StopAt(5))
    ours, theirs = (load_detector(one)[0].state_dict() for one in (whole.student, train(killed, Silent()).student))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_spare_frames_are_labelled_large_and_learnt_small(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    data = {"label_share": 0.5, "unlabelled": "rest"}
    recipe = over_scales(make_recipe, tmp_path / "run", data=data, teacher={"steps": 300})
    result = train(recipe, Silent())
    assert result.results[-1].name == "student"
    assert any("labelled" in one for one in result.remarks)


@pytest.mark.parametrize("settings", [{"pruning": {"method": "taylor"}}, {"pruning": {"method": "lasso"}}])
def test_a_pruned_student_cannot_see_less(make_recipe: MakeRecipe, settings: dict[str, dict[str, object]]) -> None:
    with pytest.raises(InputError, match=r"teacher\.scale=2 makes them larger"):
        make_recipe(teacher={"scale": 2}, **settings)


def test_outputs_of_other_strides_are_refused_before_training(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    recipe = over_scales(
        make_recipe,
        tmp_path / "run",
        "one_stage",
        detector={"levels": [16]},
        mimic={"distiller": "outputs", "map_steps": 0, "last_step": 1},
    )
    with pytest.raises(InputError, match=r"teacher\.scale"):
        train(recipe, Silent())
    assert not list((tmp_path / "run").rglob("*.safetensors"))
