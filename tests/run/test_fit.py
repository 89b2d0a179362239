"""The best detector within a budget."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from cli_cases import Refused
from qmimic.cli import main
from qmimic.config import Recipe, load_recipe
from qmimic.errors import InputError
from qmimic.run import candidates as networks
from qmimic.run import search as fit
from qmimic.run.candidates import Budget, Candidate, Option, candidates
from qmimic.run.deploy import Deployed
from qmimic.run.folder import StageResult
from qmimic.run.stage import Stage
from qmimic.run.train import RunResult
from qmimic.run.ways import LABELS, WAYS, best_way
from qmimic.tables import ARCHITECTURES
from qmimic.training.progress import Silent

SHORT = [
    "detector={anchor_count: 2, pre_nms: 64, post_nms: 16, roi_samples: 16, rpn_samples: 32}",
    "teacher={backbone: resnet18/16, steps: 2, batch_size: 4, min_map: 0}",
    "quantized_teacher.steps=0",
    "student={steps: 4, batch_size: 4}",
    "pruning={rounds: 2, steps: 1}",
    "run.threads=1",
    "int8.max_loss=1",
]


def test_inputs_have_the_shape_of_the_images() -> None:
    found = {one.size for one in candidates(np.array([[640, 480]] * 5 + [[100, 800]], np.int32), lambda *_: (16,))}
    assert found == {(96, 160), (160, 224), (224, 288)}
    for height, width in found:
        assert width / height == pytest.approx(4 / 3, rel=0.26)  # sides are multiples of 32
    assert {one.size for one in candidates(np.array([[20, 2000]], np.int32), lambda *_: (16,))} >= {(1280, 32)}


def test_an_excess_is_that_of_the_worst_limit() -> None:
    assert Budget(2, 100).excess(1, 150) == 1.5
    assert Budget(2, 100).excess(3, 50) == 1.5
    assert Budget(None, 100).excess(1000, 50) == 0.5
    assert Budget(megabytes=50).excess(9, 9, 100) == 2


def test_the_better_half_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = [Candidate("resnet18/16", "rfcn", (32 * k, 32)) for k in range(1, 11)]
    asked: list[tuple[int, int]] = []

    def score(candidate: Candidate, _: object, steps: int, __: object) -> float:
        asked.append((candidate.size[0] // 32, steps))
        return candidate.size[0] / 1000

    monkeypatch.setattr(fit, "_short", score)
    found = fit.halve(tried, load_recipe(None, ["student.steps=80"]), Silent())
    assert asked == [
        *((k, 10) for k in range(1, 9)),
        *((k, 20) for k in (8, 7, 6, 5)),
        *((k, 40) for k in (8, 7)),
    ]
    assert [one.size[0] // 32 for one in found] == [8, 7, 6, 5, 4, 3, 2, 1]
    assert next(iter(found.values())) == (0.256, 40)


def test_a_network_that_is_slow_at_a_small_size_is_not_measured_at_a_large_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small, large = (Candidate("resnet18/16", "rfcn", (side, side)) for side in (64, 128))
    other = Candidate("resnet18/32", "rfcn", (128, 128))
    asked: list[Candidate] = []

    def costs(candidate: Candidate, *_: object) -> list[Option]:
        asked.append(candidate)
        return [Option(candidate, "onnx", "fp32", 5.0, 100, 0, 10)]

    monkeypatch.setattr(networks, "_costs", costs)
    recipe = load_recipe(None, [])

    def table(budget: Budget) -> list[Option]:
        tried = [small, large, other]
        return networks.cost_table(tried, recipe, ("a",), ["onnx"], budget, tmp_path / "t.json", lambda _: None)

    assert [one.candidate for one in table(Budget(milliseconds=4))] == [small, other]
    assert asked == [small, other]
    assert [one.candidate for one in table(Budget(milliseconds=6))] == [small, other, large]
    assert asked == [small, other, large]  # what stands in the table is not measured again


class Listener(Silent):
    """It keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.mark.parametrize(
    ("overrides", "why"),
    [
        (["mimic.distiller=pearson", "mimic.mode=mimic"], "mimic.distiller and mimic.mode are set"),
        (["pruning.method=lasso"], "pruning.method are set"),
    ],
)
def test_who_chooses_a_way_gets_it(overrides: list[str], why: str) -> None:
    recipe, listener = load_recipe(None, overrides), Listener()
    assert best_way(recipe, [one.partition("=")[0] for one in overrides], listener) == (recipe, ())
    assert listener.said == [f"It is taught as the recipe says ({why}); no other way is tried."]


def test_pictures_without_labels_are_three_ways_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = load_recipe(None, ["data.unlabelled=frames", f"run.dir={tmp_path}", "baselines=[scratch,labelled]"])
    tried: list[tuple[str, Recipe]] = []
    best = ["try-teachers_labels"]

    @dataclass(frozen=True)
    class Ready:
        recipe: Recipe

    def short(own: Ready, name: str, *_: object) -> Stage:
        tried.append((name, own.recipe))
        score = 0.5 if name == best[-1] else 0.4
        return Stage(StageResult(name, "key", "resnet18/16", score, score, score, 1, 1, 1), tmp_path)

    def impossible(own: Ready, *_: object) -> None:
        if own.recipe.mimic.distiller == "outputs":
            raise InputError("They are of two stages.")

    for name, value in {
        "prepare": Ready, "require_networks": lambda *_: None,
        "teachers_of": lambda *_: None, "labels_of": lambda *_: None, "train_student": short,
        "require_teachable": impossible, "macs_to_prune_to": impossible,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"qmimic.run.ways.{name}", value)
    listener = Listener()
    found, ways = best_way(recipe, [], listener)
    assert [one.name for one in ways] == [*(name for name in WAYS if name != "outputs"), *LABELS]
    assert "outputs is not tried: They are of two stages." in listener.said
    long, longest = "try-alone-twice_the_steps", "try-teachers_labels-three_times_the_steps"
    steps = {long: 600, longest: 900, f"try-pruned-{longest.removeprefix('try-')}": 900}
    assert [(own.student.steps, own.baselines) for _, own in tried] == [(steps.get(name, 300), ()) for name, _ in tried]
    assert [own.data.unlabelled for _, own in tried] == [
        None if name in ("try-alone", long) else "frames" for name, _ in tried
    ]
    assert (found.mimic.mode, found.data.unlabelled, found.student.steps) == ("none", "frames", 1200)
    best.append(longest)
    assert best_way(recipe, [], listener)[0].student.steps == 3600
    best.pop()
    monkeypatch.setattr("qmimic.run.ways.LABELS", {})
    alone, _ = best_way(recipe, [], listener)
    assert (alone.data.unlabelled, alone.baselines) == (None, ("scratch",))
    best.append(long)
    longer, _ = best_way(recipe, [], listener)
    assert (longer.student.steps, longer.mimic.mode, longer.data.unlabelled) == (2400, "none", None)
    kept, ways = best_way(recipe, ["student.steps"], listener)
    assert kept.student.steps == 1200
    assert set(WAYS) - {one.name for one in ways} == {"outputs", "alone, twice the steps"}


ZOO = ["teacher.kind=onnx", "teacher.file=zoo:digits", "teacher.boxes=boxes", "teacher.scores=scores"]
ZOO += ["teacher.labels=labels"]


def test_a_file_teaches_in_every_way_but_pruned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recipe = load_recipe(None, [*ZOO, "data.unlabelled=frames", f"run.dir={tmp_path}"])
    tried: list[str] = []

    @dataclass(frozen=True)
    class Ready:
        recipe: Recipe

    def short(_: object, name: str, *rest: object) -> Stage:
        tried.append(name)
        return Stage(StageResult(name, "key", "resnet18/16", 0.5, 0.5, 0.5, 1, 1, 1), tmp_path)

    for name, value in {
        "prepare": Ready, "require_networks": lambda *_: None,
        "teachers_of": lambda *_: None, "labels_of": lambda *_: None, "train_student": short,
        "require_teachable": lambda *_: None,
    }.items():  # fmt: skip
        monkeypatch.setattr(f"qmimic.run.ways.{name}", value)
    _, ways = best_way(recipe, [], Listener())
    assert [one.name for one in ways] == [name for name in (*WAYS, *LABELS) if not name.startswith("pruned")]
    assert len(tried) == len(ways)


def test_a_file_s_size_and_outputs_are_looked_at_before_the_search() -> None:
    tried = [Candidate("resnet18/16", "rfcn", (side, side)) for side in (64, 128)]
    listener = Listener()
    assert fit._of_file(load_recipe(None, ZOO), ("a",), tried, False, listener) == tried[1:]
    assert listener.said == ["Only inputs of 128x128 are tried, which the teacher's file takes."]
    named = [f"teacher.classes=[{', '.join(str(one) for one in range(10))}]"]
    labelled = load_recipe(None, [*ZOO, *named, "data.unlabelled=frames"])
    for recipe, imitates, said in (
        (load_recipe(None, [*ZOO, "teacher.file=none.onnx"]), False, "none.onnx"),
        (load_recipe(None, [*ZOO, "teacher.boxes=box"]), False, "has no output 'box'"),
        (load_recipe(None, ZOO), True, "A student imitates a map: name the output"),
        (labelled, False, "The teacher has classes that the data lack"),
    ):
        with pytest.raises(InputError, match=said):
            fit._of_file(recipe, ("cat",), tried[1:], imitates, listener)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small search, for the clock's sake."""
    monkeypatch.setattr(networks, "TRIED", ("resnet18/32", "vgg16/32"))
    monkeypatch.setattr(networks, "ARCHITECTURES", {"faster_rcnn": ARCHITECTURES["faster_rcnn"]})
    monkeypatch.setattr(networks, "SIDES", (64,))
    monkeypatch.setattr(networks, "ROUNDS", 3)
    monkeypatch.setattr(fit, "RUNGS", (2, 1))


@pytest.mark.usefixtures("few")
def test_a_budget_becomes_a_file(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", str(trained / "cats"), "--max-ms", "1000", "--max-kb", "300", "--set", *SHORT]
    assert main([*arguments, "--out", str(tmp_path / "fit")]) == 0
    said = capsys.readouterr().out
    assert "within the limit" in said
    plain = json.loads((tmp_path / "fit" / "fit.json").read_text())
    assert plain["excess"] <= 1
    assert Path(plain["file"]).is_file()
    assert [one["steps"] for one in plain["tried"]] == [4, 2]
    assert any(one["on_front"] for one in plain["tried"])
    assert (tmp_path / "fit" / "front.png").stat().st_size > 5000
    arms = json.loads((tmp_path / "fit/winner/results.json").read_text())["stages"]
    on_grid = load_recipe(tmp_path / "fit/winner/recipe.yaml", []).needs_grid
    teachers = ["teacher", "quantized_teacher"] if on_grid else ["teacher"]
    assert [one["name"] for one in arms] == [*teachers, "scratch", "taylor", "student"]
    # How the winner is taught was tried too: outputs are those of one stage, and the winner has two.
    # The length was set, so no other is tried.
    ways = {one["name"] for one in plain["ways"]}
    assert ways == set(WAYS) - {"outputs", "alone, twice the steps"}
    assert {one["steps"] for one in plain["ways"]} == {1}
    assert "Ways to teach the winner" in said
    assert max(plain["ways"], key=lambda one: one["map50"])["name"] in ways
    assert Path(plain["file"]).parent == tmp_path / "fit/winner/deploy"
    table = json.loads((tmp_path / "fit" / "costs.json").read_text())
    assert {(one["target"], one["precision"]) for one in table["options"]} == {("onnx", "fp32"), ("onnx", "int8")}


def test_the_best_student_that_has_a_file_within_the_budget_ships(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def arm(name: str, map50: float) -> StageResult:
        return StageResult(name, "key", "resnet18/16", map50, map50, map50, 1, 1, 1)

    def files(path: Path, *_: object) -> list[Deployed]:
        slow = {"taylor": 5.0, "student": 1.0, "scratch": 0.99}[path.stem]
        whole = Deployed(tmp_path / f"{path.stem}.onnx", "onnx", "fp32", 400_000, slow, {})
        integer = Deployed(tmp_path / f"{path.stem}-int8.onnx", "onnx", "int8", 100_000, slow / 2, {"map50": 0.125})
        return [whole, integer]

    monkeypatch.setattr(fit, "deploy", files)
    results = arm("scratch", 0.5), arm("taylor", 0.7), arm("student", 0.6)
    run = RunResult(tmp_path, results, tmp_path, tmp_path, ())

    def shipped(budget: Budget) -> tuple[str, float, float]:
        file, map50, excess = fit._shipped(run, budget, ["onnx"], Silent())
        return file.path.name, map50, excess

    assert shipped(Budget(milliseconds=10)) == ("taylor-int8.onnx", 0.125, 0.25)
    assert shipped(Budget(milliseconds=2)) == ("student-int8.onnx", 0.125, 0.25)
    # Where none fits, the best of those that are about as near: scratch takes a hundredth less time than the student.
    assert shipped(Budget(milliseconds=0.25)) == ("student-int8.onnx", 0.125, 2)

    def failing(path: Path, *rest: object) -> list[Deployed]:
        if path.stem != "scratch":
            raise InputError("It differs from the trained model.")
        return files(path, *rest)

    monkeypatch.setattr(fit, "deploy", failing)
    assert shipped(Budget(milliseconds=10))[0] == "scratch-int8.onnx"
    run = RunResult(tmp_path, results[1:], tmp_path, tmp_path, ())
    with pytest.raises(InputError, match="differs from"):
        shipped(Budget(milliseconds=10))


def test_a_teacher_that_costs_too_little_is_not_pruned_but_the_rest_goes_on(trained: Path, tmp_path: Path) -> None:
    settings = [f"data={{root: {trained / 'cats'}, size: [64, 64]}}", f"run.dir={tmp_path}"]
    settings += ["teacher.backbone=resnet18/32", "student.backbone=resnet18/16"]
    recipe = load_recipe(None, [*settings, "baselines=[scratch,taylor]"])
    assert fit._prunable(recipe, Silent()).baselines == ("scratch",)
    other = {"teacher.backbone": "resnet18/4", "teacher.detector": "one_stage"}  # than the winner's
    assert fit._prunable(recipe.changed(other), Silent()).baselines == ("scratch",)


@pytest.mark.usefixtures("few")
def test_an_impossible_budget_names_the_nearest(trained: Path, tmp_path: Path, refused: Refused) -> None:
    said = refused("fit", trained / "cats", "--max-kb", "1", "--out", tmp_path, "--set", *SHORT)
    assert "No network fits: the closest, " in said
    assert said.rstrip().endswith("times the limit; raise the limit.")
    said = refused("fit", trained / "cats", "--max-ms", "0.0001", "--out", tmp_path, "--set", *SHORT)
    assert "times the limit; raise the limit, or use a faster machine." in said
    assert "Give at least one limit above 0" in refused("fit", trained / "cats")
    assert "Give at least one limit above 0" in refused("fit", trained / "cats", "--max-ms", "-3")
    assert "searches for this itself" in refused(
        "fit", trained / "cats", "--max-kb", "9", "--set", "data.size=[64, 64]"
    )
