"""The paper's baselines beside a student: each a file and a line of the table, at the student's cost."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import qmimic
from qmimic.compress import taylor
from qmimic.config import Recipe, recipe_from
from qmimic.detectors.files import load_detector
from qmimic.errors import InputError
from qmimic.training.progress import Silent

MakeRecipe = Callable[..., Recipe]
ALL = ("scratch", "quantized", "mimic", "separable", "grouped", "taylor", "lasso")


class KillWhile(Silent):
    """Ends the work at one step of the stages whose names begin so."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.at, self.current = stage, step, ""
        self.started: list[str] = []

    def start(self, stage: str, steps: int, done: int) -> None:
        self.current = stage
        self.started.append(stage)

    def step(self, step: int, images: int, loss: float) -> None:
        if self.current == self.stage and step == self.at:
            raise KeyboardInterrupt


def with_baselines(make_recipe: MakeRecipe, folder: Path, *names: str) -> Recipe:
    recipe = make_recipe(
        run={"dir": str(folder)},
        teacher={"backbone": "resnet18/4", "steps": 4, "batch_size": 4, "min_map": 0},
        student={"backbone": "resnet18/12", "steps": 3, "batch_size": 4},
        pruning={"rounds": 4, "steps": 2, "images": 16},
    )
    return recipe.model_copy(update={"baselines": names})


def test_every_baseline_is_a_file_and_a_line_at_the_student_s_cost(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(taylor, "FLOOR", 0.8)  # high enough to be met
    run = qmimic.train(with_baselines(make_recipe, tmp_path / "run", *ALL))
    stages = {result.name: result for result in run.results}
    assert list(stages) == ["teacher", "quantized_teacher", *ALL, "student"]
    table = (run.folder / "results.md").read_text().splitlines()
    for name in ALL:
        assert abs(stages[name].macs / stages["student"].macs - 1) <= 0.05, name
        detector, notes = load_detector(run.folder / f"{name}.safetensors")
        assert notes["map50"] == stages[name].map50
        assert sum(line.startswith(f"| {name} |") for line in table) == 1
        assert (detector.quantizer is not None) == (name == "quantized")
    assert stages["separable"].backbone.startswith("resnet18_separable/")
    assert stages["taylor"].backbone == stages["lasso"].backbone == "resnet18/4 pruned"
    # Equal shares of a wide network's channels are the narrow network.
    assert stages["lasso"].parameters == stages["scratch"].parameters
    equal, pruned = (load_detector(run.folder / f"{name}.safetensors")[0].spec.channels for name in ("lasso", "taylor"))
    assert equal
    assert pruned
    assert all(pruned[name] >= 0.8 * count for name, count in equal.items())
    assert any(pruned[name] < count for name, count in equal.items())
    json.loads((run.folder / "results.json").read_text())


def test_a_pruned_student_starts_from_the_teacher_and_resumes_to_the_same_weights(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    whole, killed = (with_baselines(make_recipe, tmp_path / name, "taylor", "lasso") for name in ("whole", "killed"))
    qmimic.train(whole)
    for stage, step in (("pruned_taylor", 5), ("taylor", 2), ("pruned_lasso", 3)):
        watcher = KillWhile(stage, step)
        with pytest.raises(KeyboardInterrupt):
            qmimic.train(killed, watcher)
        assert watcher.started[-1] == stage
    qmimic.train(killed)
    for name in ("taylor", "lasso"):
        one, other = (load_file(tmp_path / run / f"{name}.safetensors") for run in ("whole", "killed"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_baselines_that_cannot_be_are_refused_before_any_training(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    def refused(sentence: str, recipe: Recipe) -> None:
        watcher = KillWhile("", 0)
        with pytest.raises(InputError, match=sentence):
            qmimic.train(recipe, watcher)
        assert watcher.started == []

    recipe = with_baselines(make_recipe, tmp_path / "run", "taylor")
    teacher = recipe.teacher.model_copy(update={"backbone": "resnet18_grouped/4"})
    refused("resnet18_grouped/4 has grouped convolutions", recipe.model_copy(update={"teacher": teacher}))
    wide = recipe.student.model_copy(update={"backbone": "resnet18/2"})
    refused("costs no more than resnet18/2", recipe.model_copy(update={"student": wide}))
    other_kind = {"teacher.detector": "one_stage"}
    for settings in (
        {},
        {"baselines": ("lasso",)},
        {"baselines": (), "pruning.method": "taylor", "mimic.mode": "none"},
    ):
        refused("the teacher is one_stage and the student faster_rcnn", recipe.changed({**other_kind, **settings}))
    other = recipe.student.model_copy(update={"backbone": "resnet34/16"})
    foreign = recipe.student.model_copy(update={"backbone": "timm:resnet10t"})
    refused("no timm:resnet10t of grouped", recipe.model_copy(update={"student": foreign, "baselines": ("grouped",)}))
    refused("resnet34_separable", recipe.model_copy(update={"student": other, "baselines": ("separable",)}))
    with pytest.raises(InputError, match=r"student\.weights and pruning\.method exclude each other"):
        recipe_from({"student": {"weights": "some.safetensors"}, "pruning": {"method": "lasso"}}, "the test")
    with pytest.raises(InputError, match=r"quantizer\.per_channel=false"):
        recipe_from({"quantizer": {"per_channel": True}, "baselines": ["quantized"]}, "the test")


def test_a_pruning_that_diverges_says_so_and_leaves_nothing_behind(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(
        pruning={"method": "taylor", "rounds": 2, "steps": 3, "learning_rate": 1e30}, mimic={"mode": "none"}
    )
    with pytest.raises(
        InputError, match=r"The loss of the teacher became .* of its pruning; lower pruning.learning_rate"
    ):
        qmimic.train(recipe.model_copy(update={"baselines": ()}))
    assert not list((recipe.folder / "stages").glob("pruned*/detector.safetensors"))
