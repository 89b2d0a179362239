"""The main job on a tiny set: it learns, it resumes to the same weights, it guards its user."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import qmimic
from cli_cases import coco
from qmimic.config import Recipe, load_recipe
from qmimic.errors import InputError
from qmimic.run.folder import StageResult, ranked
from qmimic.run.train import markdown, remarks
from qmimic.training.progress import Silent

MakeRecipe = Callable[..., Recipe]


class Killed(BaseException):
    """What a kill looks like from inside: nothing catches it."""


class KillAt(Silent):
    """Ends the process's work at one step of one stage."""

    def __init__(self, stage: str, step: int) -> None:
        self.stage, self.at, self.current = stage, step, ""

    def start(self, stage: str, steps: int, done: int) -> None:
        self.current = stage

    def step(self, step: int, images: int, loss: float) -> None:
        if (self.current, step) == (self.stage, self.at):
            raise Killed


class Listener(Silent):
    """Keeps what was said, and where stages began."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.started: list[tuple[str, int]] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def start(self, stage: str, steps: int, done: int) -> None:
        self.started.append((stage, done))


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = load_file(one), load_file(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def test_a_student_learns_and_the_run_folder_holds_what_a_user_needs(make_recipe: MakeRecipe) -> None:
    # Long enough to be far from the bounds on every processor: after 120 steps, one had 19.6 %.
    learning = {"steps": 160, "batch_size": 8, "learning_rate": 0.004}
    recipe = make_recipe(
        teacher={**learning, "backbone": "resnet18/8", "min_map": 0.5}, student={**learning, "backbone": "resnet18/16"}
    )
    listener = Listener()
    run = qmimic.train(recipe, listener)

    stages = {result.name: result for result in run.results}
    assert list(stages) == ["teacher", "quantized_teacher", "scratch", "student"]
    assert run.best == run.folder / f"{max(('student', 'scratch'), key=lambda name: stages[name].map50)}.safetensors"
    assert stages["teacher"].map50 > 0.5
    assert stages["student"].map50 > 0.5
    assert stages["student"].matching is not None
    assert stages["student"].matching_nonzero is not None
    assert stages["quantized_teacher"].map50_before is not None
    assert any("teacher" in text and "mAP" in text for text in listener.said)
    names = {path.name for path in run.folder.iterdir()}
    assert {
        "recipe.yaml", "environment.json", "data.json", "results.json", "results.md", "curves.png", "examples.png",
        "stages",
        "pixels", "teacher.safetensors", "quantized_teacher.safetensors", "scratch.safetensors",
        "student.safetensors",
    } == names  # fmt: skip
    for picture in ("curves.png", "examples.png"):
        with Image.open(run.folder / picture) as image:
            image.load()
            assert min(image.size) > 100
    assert load_recipe(run.folder / "recipe.yaml", []) == recipe
    lines = [json.loads(line) for line in next(run.folder.glob("stages/student-*/log.jsonl")).read_text().splitlines()]
    assert [line["step"] for line in lines if "map50" in line] == [learning["steps"]]
    assert "distillation" in lines[0]

    table = (run.folder / "results.md").read_text()
    assert "| student (quantization mimic) | resnet18/16 |" in table

    # What is done is not done again, and the published file is the trained detector.
    again = Listener()
    assert qmimic.train(recipe, again) == run
    assert again.started == []
    scores = qmimic.evaluate(run.student, qmimic.load_dataset(recipe.data.root), "val")
    assert scores.voc_map50 == pytest.approx(stages["student"].map50, abs=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"student": {"ema": 0.9}},
        {"student": {"closing_steps": 3}, "augment": {"mosaic": 0.5, "scale": [0.8, 1.2]}},
        {"mimic": {"weight": "auto", "share": 0.5}},
    ],
    ids=["plain", "ema", "mosaic and closing steps", "a share held"],
)
def test_a_killed_run_resumes_to_the_same_weights(
    make_recipe: MakeRecipe, tmp_path: Path, changes: dict[str, dict[str, object]]
) -> None:
    whole = make_recipe(**changes, run={"dir": str(tmp_path / "whole")})
    qmimic.train(whole)
    killed = make_recipe(**changes, run={"dir": str(tmp_path / "killed")})
    # In the first step after a checkpoint, right before one, and while the student mimics.
    for stage, step in (("teacher", 3), ("scratch", 6), ("student", 1), ("student", 4)):
        with pytest.raises(Killed):
            qmimic.train(killed, KillAt(stage, step))
    listener = Listener()
    qmimic.train(killed, listener)
    assert listener.started == [("student", 2)]
    for name in ("teacher", "quantized_teacher", "scratch", "student"):
        assert_same_weights(tmp_path / "whole" / f"{name}.safetensors", tmp_path / "killed" / f"{name}.safetensors")
    logs = [next((tmp_path / run).glob("stages/student-*/log.jsonl")) for run in ("whole", "killed")]
    assert logs[0].read_text() == logs[1].read_text()


def test_one_seed_gives_one_result_and_another_seed_another(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        recipe = make_recipe(run={"dir": str(tmp_path / name)}).model_copy(update={"seed": seed, "baselines": ()})
        runs.append(qmimic.train(recipe).student)
    assert_same_weights(runs[0], runs[1])
    assert not torch.equal(load_file(runs[0])["backbone.conv1.weight"], load_file(runs[2])["backbone.conv1.weight"])


def test_a_changed_student_keeps_the_teacher(make_recipe: MakeRecipe) -> None:
    qmimic.train(make_recipe())
    listener = Listener()
    qmimic.train(make_recipe(mimic={"map_steps": 0.34, "last_step": 0.84, "weight": 0.5}), listener)
    assert [stage for stage, _ in listener.started] == ["student"]
    assert [text.split(" ")[0] for text in listener.said if "is trained again" in text] == ["student"]


def test_a_weak_teacher_stops_the_run_before_any_student(make_recipe: MakeRecipe) -> None:
    listener = Listener()
    recipe = make_recipe(teacher={"min_map": 0.99})
    with pytest.raises(qmimic.InputError, match=r"teacher.*min_map") as caught:
        qmimic.train(recipe, listener)
    assert "\n" not in str(caught.value)
    assert [stage for stage, _ in listener.started] == ["teacher"]
    # Told to go on, it takes the teacher that is there.
    qmimic.train(make_recipe(), listener)
    assert [stage for stage, _ in listener.started].count("teacher") == 1


def test_a_loss_that_is_not_finite_stops_at_once_and_keeps_the_last_good_checkpoint(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(teacher={"learning_rate": 1e30, "clip_norm": 0, "steps": 50})
    with pytest.raises(qmimic.InputError, match=r"loss of teacher became .* learning_rate"):
        qmimic.train(recipe)
    kept = sorted(recipe.folder.glob("stages/teacher-*/checkpoints/*.safetensors"))
    for path in kept:
        assert all(bool(torch.isfinite(tensor).all()) for tensor in load_file(path).values())


def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    whole, cut = (make_recipe(run={"dir": str(tmp_path / name)}) for name in ("whole", "cut"))
    qmimic.train(whole)
    with pytest.raises(Killed):
        qmimic.train(cut, KillAt("teacher", 5))
    newest = max((tmp_path / "cut").glob("stages/teacher-*/checkpoints/*.safetensors"))
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.warns(UserWarning, match=newest.name):
        qmimic.train(cut)
    assert_same_weights(tmp_path / "whole/student.safetensors", tmp_path / "cut/student.safetensors")


def result(name: str, map50: float) -> StageResult:
    return StageResult(name, "key", "resnet18/16", map50, map50, map50, 1, 1, 1)


def test_a_student_below_its_scratch_twin_is_said_so() -> None:
    said = remarks((result("teacher", 0.9), result("scratch", 0.62), result("student", 0.6)))
    assert len(said) == 2
    assert "60.0" in said[0]
    assert "62.0" in said[0]
    assert "below" in said[0]
    assert "scratch.safetensors is the file to ship" in said[1]
    assert remarks((result("teacher", 0.9), result("scratch", 0.6), result("student", 0.62))) == ()


def test_a_teacher_weaker_than_the_scratch_student_is_said_so() -> None:
    weak = result("teacher", 0.5), result("quantized_teacher", 0.55), result("scratch", 0.6), result("student", 0.62)
    (said,) = remarks(weak)
    assert said.startswith("The teacher (55.0 mAP@0.5) is weaker than the student trained from scratch (60.0)")
    assert "teacher.weights" in said
    assert remarks((result("quantized_teacher", 0.61), *weak[2:])) == ()
    assert remarks((result("scratch", 0.6), result("student", 0.62))) == ()


def test_what_others_report_stands_in_a_column_of_its_own() -> None:
    results = result("teacher", 0.9), result("scratch", 0.6), result("student", 0.62)
    head, rule, *lines = markdown(results, {"scratch": "40.5", "student": "47.0"}).splitlines()
    assert head.endswith("| published |")
    assert rule.count("|") == head.count("|")
    assert [line.split("|")[-2].strip() for line in lines] == ["-", "40.5", "47.0"]
    assert "published" not in markdown(results, {})


def test_the_best_student_ships_and_of_equals_the_recipes_own() -> None:
    results = result("teacher", 0.9), result("scratch", 0.6), result("taylor", 0.7), result("student", 0.62)
    assert [one.name for one in ranked(results)] == ["taylor", "student", "scratch"]
    assert remarks(results) == (
        "The best of these students on val is taylor (70.0 mAP@0.5): taylor.safetensors is the file to ship.",
    )
    assert ranked((result("scratch", 0.6), result("student", 0.6)))[0].name == "student"


@pytest.mark.parametrize(
    "mimic",
    [
        {"mode": "mimic", "normalize": "paper", "weight": 1e-3},
        {"mode": "teacher_only", "order": "quantize_pool", "regions": "student"},
        {"mode": "student_only", "regions": "ground_truth", "pooling": "pool"},
        {"regions": "random", "with_truth": False, "adaptor_relu": False},
        {"regions": "map"},
    ],
    ids=["paper sum", "teacher side", "student side", "random", "whole map"],
)
def test_every_switch_trains(make_recipe: MakeRecipe, mimic: dict[str, object]) -> None:
    recipe = make_recipe(mimic=mimic, student={"steps": 3}, quantizer={"kind": "power_of_two", "upper": 4})
    run = qmimic.train(recipe)
    assert 0 <= (run.results[-1].matching or 0) <= 1


@pytest.mark.parametrize(
    ("detector", "backbone"),
    [({"output_stride": 8, "roi_pooling": "pool"}, "vgg16/32"), ({"head_width": 16}, "resnet50/32")],
)
def test_every_backbone_and_stride_trains(make_recipe: MakeRecipe, detector: dict[str, object], backbone: str) -> None:
    run = qmimic.train(make_recipe(detector=detector, student={"steps": 2, "backbone": backbone}))
    assert run.results[-1].backbone == backbone


def test_a_student_that_nobody_teaches_needs_no_teacher(make_recipe: Callable[..., Recipe]) -> None:
    # A teacher of this recipe would be refused as too weak.
    run = qmimic.train(make_recipe(mimic={"mode": "none"}, teacher={"min_map": 1.0}))
    assert [result.name for result in run.results] == ["scratch", "student"]
    assert not list((run.folder / "stages").glob("teacher-*"))


def test_a_val_without_boxes_and_a_share_without_a_class_are_refused_before_any_training(
    make_recipe: MakeRecipe, tmp_path: Path
) -> None:
    bare = coco(tmp_path / "bare")
    file = bare / "instances_val.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "annotations": []}))
    with pytest.raises(InputError, match=r"No image of the split 'val' of .*bare has a box to find"):
        qmimic.train(make_recipe(data={"root": str(bare)}))
    few = coco(tmp_path / "few", 8, tuple("abcdefgh"))
    with pytest.raises(InputError, match=r"as labelled \(data.label_share=0.25\); raise data.label_share"):
        qmimic.train(make_recipe(data={"root": str(few), "label_share": 0.25}))
