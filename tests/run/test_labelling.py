"""Pictures without labels: the teacher's boxes become labels that the student learns from."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import squares
import torch
from torch import Tensor

import qmimic
from cli_cases import Refused
from qmimic.config import Recipe, recipe_from, save_recipe
from qmimic.detections import Detections
from qmimic.detectors.files import load_detector
from qmimic.errors import InputError
from qmimic.report.page import write_report
from qmimic.run import labelling
from qmimic.run.cleaning import WHOLE, clean, plan_cleaning
from qmimic.run.folder import RESULTS
from qmimic.run.labelling import label
from qmimic.run.prepare import prepare
from qmimic.run.teacher_labels import FILE, TeacherLabels, read_facts
from qmimic.training.progress import Silent

TOOL = Path(__file__).parents[2] / "tools" / "kill_and_resume.py"
Make = Callable[..., Recipe]


class Listener(Silent):
    """It keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled squares, frames without labels, and a file that finds them."""
    root = tmp_path_factory.mktemp("squares")
    squares.labelled(root / "data")
    squares.frames(root / "frames")
    squares.teacher(root / "teacher.onnx")
    return root


@pytest.fixture
def make(drawn: Path, tmp_path: Path) -> Make:
    """A recipe of a few steps whose teacher is the file; keyword arguments change its sections."""

    def made(**changes: Any) -> Recipe:
        quick = {"steps": 4, "batch_size": 4, "warmup_steps": 2, "evaluate_every": 1000, "checkpoint_every": 2}
        tree: dict[str, Any] = {
            "data": {"root": str(drawn / "data"), "size": [64, 64], "unlabelled": str(drawn / "frames")},
            "detector": {"anchor_count": 2, "pre_nms": 64, "post_nms": 16, "roi_samples": 16, "rpn_samples": 32},
            "teacher": {
                "kind": "onnx",
                "file": str(drawn / "teacher.onnx"),
                "boxes": "boxes",
                "scores": "scores",
                "classes": list(squares.CLASSES),
            },
            "student": {**quick, "backbone": "resnet18/32"},
            "mimic": {"mode": "none"},
            "baselines": [],
            "run": {"dir": str(tmp_path / "run"), "threads": 1, "report": False},
        }
        for section, values in changes.items():
            tree[section] = {**tree[section], **values} if isinstance(values, dict) else values
        return recipe_from(tree, "the test")

    return made


def labels_of(recipe: Recipe) -> TeacherLabels:
    prepared = prepare(recipe)
    return label(prepared, labelling_teacher(recipe), "teacher", Silent())


def labelling_teacher(recipe: Recipe) -> Any:
    from qmimic.distill.onnx_teacher import OnnxTeacher

    return OnnxTeacher(recipe.teacher, recipe.data.size)


def taken(labels: TeacherLabels) -> dict[str, list[tuple[str, list[float]]]]:
    """Objects by picture: class and box."""
    found = {}
    for sample in labels.dataset.splits["unlabelled"]:
        keep = ~sample.difficult
        names = [labels.dataset.classes[kind] for kind in sample.labels[keep]]
        found[sample.image_id] = list(zip(names, sample.boxes[keep].tolist(), strict=True))
    return found


WANTED = {
    f"day/{place:02}.png": []
    if place % 3 == 2
    else [(squares.CLASSES[place % 3], [float(side) for side in squares.BOX])]
    for place in range(10)
}


def weights(recipe: Recipe, name: str) -> dict[str, Tensor]:
    return load_detector(recipe.folder / f"{name}.safetensors")[0].state_dict()


def test_a_student_learns_from_a_file_s_labels_and_its_twin_is_what_it_was_without(make: Make, tmp_path: Path) -> None:
    recipe = make(baselines=["scratch", "labelled"])
    result = qmimic.train(recipe)
    assert [one.name for one in result.results] == ["scratch", "labelled", "student"]
    assert result.remarks[0].startswith(
        "The teacher labelled 7 of 10 pictures with 7 boxes, from the score of the best F1 on val: red 4"
    )
    assert any(remark.startswith("The unlabelled pictures brought ") for remark in result.remarks)
    facts, folder = read_facts(recipe.folder)
    assert (facts.pictures, facts.used, facts.boxes, facts.chosen_on) == (10, 7, 7, "val")
    assert [(one.threshold.own, one.threshold.boxes, one.threshold.precision) for one in facts.classes] == [
        (True, 22, 1),
        (True, 22, 1),
    ]
    content = json.loads((folder / FILE).read_text())
    assert {one["file_name"] for one in content["images"]} == set(WANTED)
    assert all(0.5 < one["score"] <= 1 and one["difficult"] == 0 for one in content["annotations"])
    assert (folder / "labels.png").stat().st_size > 1000
    # A student without such pictures is the same whether others have them or not.
    alone = make(run={"dir": str(tmp_path / "alone"), "threads": 1}, mimic={"mode": "none"}, data={"unlabelled": None})
    alone = alone.changed({"teacher": Recipe().teacher})
    assert not alone.needs_teachers
    qmimic.train(alone)
    mine, theirs, spared = weights(recipe, "labelled"), weights(alone, "student"), weights(recipe, "student")
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert any(not torch.equal(mine[name], spared[name]) for name in mine)
    # Done is done; and the page says what came of it.
    assert qmimic.train(recipe).results == result.results
    page = write_report(recipe.folder).read_text()
    assert "What the teacher labelled" in page
    assert "7 of 10 pictures of" in page
    assert "They brought" in page
    # All of it is ours, so that cleaning takes it back.
    removals, stays = plan_cleaning(recipe.folder.parent, [recipe.folder.name], [WHOLE])
    assert stays == []
    clean(removals)
    assert not recipe.folder.exists()


@pytest.mark.parametrize(
    "teacher",
    [
        {},
        {"boxes": None, "scores": None, "rows": "rows", "row_layout": ["box", "scores"]},
        {"size": [128, 128], "file": "large"},
        {"file": "three", "classes": ["red", "blue", "green"], "drop_other_classes": True},
        {"file": "three", "classes": ["red", "blue", None]},
        {"file": "single"},
        {"file": "shares", "box_format": "cxcywh", "box_unit": "shares"},
    ],
)
def test_what_the_file_says_becomes_labels(make: Make, drawn: Path, tmp_path: Path, teacher: dict[str, Any]) -> None:
    files = {
        "large": lambda path: squares.teacher(path, 128, box=(32, 32, 96, 96)),
        "single": lambda path: squares.teacher(path, single=True),
        "three": lambda path: squares.teacher(path, columns=3),
        "shares": lambda path: squares.teacher(path, box=(0.5, 0.5, 0.5, 0.5)),
    }
    if teacher.get("file"):
        teacher = {**teacher, "file": str(files[teacher["file"]](tmp_path / "other.onnx"))}
    found = labels_of(make(teacher=teacher))
    assert taken(found) == WANTED


def test_what_is_in_doubt_counts_for_nothing_and_other_pictures_are_not_drawn(make: Make) -> None:
    recipe = make()
    labels = labels_of(recipe)
    mixed = labels.joined(prepare(recipe))
    batches = list(mixed.train.steps(0, 0, 12))
    seen = [[sample.image_id for sample in batch.samples] for batch in batches]
    assert all(sum(name.startswith("day/") for name in batch) == 2 for batch in seen)
    assert {name for batch in seen for name in batch if name.startswith("day/")} == {k for k, v in WANTED.items() if v}
    assert all(batch.targets.labels.max() >= 0 for batch in batches)


def test_classes_that_the_file_does_not_know_are_named(make: Make, tmp_path: Path) -> None:
    recipe, heard = make(teacher={"classes": ["red", None]}), Listener()
    prepared = prepare(recipe)
    labels = label(prepared, labelling_teacher(recipe), "teacher", heard)
    assert {name: [kind for kind, _ in own] for name, own in taken(labels).items() if own} == {
        name: ["red"] for name, own in WANTED.items() if own and own[0][0] == "red"
    }
    assert any(
        text.startswith("The teacher does not know blue: objects of this kind in data.unlabelled")
        for text in heard.lines
    )
    assert "blue none, since there it is found wrongly or not at all" in labels.facts.said()


def test_labels_that_somebody_changed_are_made_again(make: Make) -> None:
    recipe = make()
    path = labels_of(recipe).folder / FILE
    before = path.read_bytes()
    path.write_bytes(before.replace(b"16.0", b"17.0"))
    assert taken(labels_of(recipe)) == WANTED
    assert path.read_bytes() == before


def test_there_is_room_for_all_that_a_file_says_of_a_picture(make: Make) -> None:
    recipe = make(detector={"max_detections": 5})
    kept = labelling._kept(prepare(recipe), "key", 1, Silent())
    assert kept is not None
    most, numbers = labelling.MOST_BOXES, np.random.default_rng(0)
    found = Detections(
        numbers.random((most, 4)).astype(np.float32),
        numbers.random(most).astype(np.float32),
        numbers.integers(0, 9, most),
    )
    kept.write(0, labelling._as_record(found, kept.length))
    record = kept.read(0)
    assert record is not None
    again = labelling._of_record(record)
    for own, other in ((found.boxes, again.boxes), (found.scores, again.scores), (found.labels, again.labels)):
        np.testing.assert_array_equal(own, other)


def test_what_a_teacher_finds_takes_no_more_of_the_disk_than_its_limit(make: Make) -> None:
    recipe = make(run={"bank_mib": 1})
    prepared, said = prepare(recipe), Listener()
    assert labelling._kept(prepared, "key", 10, said) is not None
    assert labelling._kept(prepared, "key", 1000, said) is None
    assert said.lines == [
        "What the teacher finds is not kept while it labels: it would take 7 MB, above run.bank_mib=1. If the run is "
        "killed before it is done, it labels all pictures again."
    ]


def test_pictures_with_as_many_boxes_as_are_kept_are_counted(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "MOST_BOXES", 1)  # the pictures have one object each, or none
    facts = labels_of(make()).facts
    assert facts.full == facts.used > 0
    assert f" {facts.full} of them have 1 box, as many as are kept" in facts.said()
    assert "as many as are kept" not in replace(facts, full=0).said()


def test_a_teacher_that_was_killed_goes_on_where_it_was(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labelling, "EVALUATION_BATCH", 4)
    recipe = make()
    whole = labels_of(recipe)
    wanted = (whole.folder / FILE).read_bytes()
    shutil.rmtree(recipe.folder)
    looked: list[int] = []

    class Interrupted:
        """The same teacher, which is killed after some pictures."""

        def __init__(self, most: int) -> None:
            self.teacher, self.most = labelling_teacher(recipe), most
            self.size = self.teacher.size

        def labeller(self, classes: tuple[str, ...]) -> Callable[[Tensor], list[Detections]]:
            find = self.teacher.labeller(classes)

            def some(images: Tensor) -> list[Detections]:
                looked.append(len(images))
                if sum(looked) > self.most:
                    raise KeyboardInterrupt
                found: list[Detections] = find(images)
                return found

            return some

    with pytest.raises(KeyboardInterrupt):
        label(prepare(recipe), Interrupted(44 + 8), "teacher", Silent())  # type: ignore[arg-type]
    looked.clear()
    again = label(prepare(recipe), Interrupted(1000), "teacher", Silent())  # type: ignore[arg-type]
    assert looked[-1] == 2  # val again, and of the pictures the last two
    assert sum(looked) == 44 + 2
    assert (again.folder / FILE).read_bytes() == wanted


def test_a_run_that_is_killed_while_it_learns_from_labels_ends_in_the_same_files(make: Make, tmp_path: Path) -> None:
    trained = {"steps": 80, "batch_size": 8, "backbone": "resnet18/16", "min_map": 0, "learning_rate": 0.004}
    tree = make().model_dump(mode="json")
    tree["teacher"] = {**trained, "evaluate_every": 1000, "checkpoint_every": 40}
    tree["quantized_teacher"] = {"steps": 0}
    tree["augment"] = {"flip": 0.5, "scale": [1, 1], "shift": 0, "colour": 0}
    tree["mimic"] = {"mode": "mimic", "last_step": 1}
    tree["student"] = {"steps": 16, "batch_size": 4, "backbone": "resnet18/32", "checkpoint_every": 4}
    tree["baselines"] = ["taylor"]
    tree["pruning"] = {"rounds": 2, "steps": 1}
    save_recipe(recipe_from(tree, "the test"), tmp_path / "recipe.yaml")
    done = subprocess.run(
        [sys.executable, TOOL, tmp_path / "recipe.yaml", "--kills", "3"], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(" 0 of them different")


def refusal(recipe: Recipe) -> str:
    with pytest.raises(InputError) as error:
        qmimic.train(recipe)
    said = str(error.value)
    assert "\n" not in said
    assert not (recipe.folder / RESULTS).exists()
    return said


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scores": "score"}, "has no output 'score'; did you mean scores? It has: boxes, scores, rows."),
        ({"boxes": None, "scores": None}, "needs teacher.file, and the output with its map in teacher.maps, or those"),
        ({"scores": None}, "labels pictures by boxes with scores: name the outputs in teacher.boxes and scores"),
        ({"size": [32, 32]}, "takes pictures of 64 x 64 pixels; set teacher.size=[64,64] (it is [32, 32])."),
        ({"classes": ["red", "zebra"]}, "The teacher has classes that the data lack: zebra; the data have red, blue."),
        ({"classes": ["red"]}, "boxes have 2 scores of classes and teacher.classes names 1"),
        ({"classes": ["blue", "red"]}, "right more often than not, so it cannot label pictures. Few of its boxes fit"),
        ({"box_unit": "shares"}, "a number above 4, so they are in pixels; set teacher.box_unit=pixels"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(make: Make, changes: dict[str, Any], said: str) -> None:
    assert said in refusal(make(teacher=changes))


def test_a_file_without_a_map_teaches_by_labels_alone(make: Make) -> None:
    said = refusal(make(mimic={"mode": "mimic"}))
    assert "name the output with the teacher's in teacher.maps, or set mimic.mode=none to learn from its labels" in said


def test_shares_that_are_taken_for_pixels_are_named(make: Make, tmp_path: Path) -> None:
    path = squares.teacher(tmp_path / "shares.onnx", box=(0.25, 0.25, 0.75, 0.75))
    assert "are they shares (teacher.box_unit), or does it not decode" in refusal(make(teacher={"file": str(path)}))


def test_a_teacher_that_the_run_trained_and_that_finds_nothing_is_to_be_trained_for_longer(make: Make) -> None:
    class Blind:
        """It finds nothing."""

        size = (64, 64)

        def labeller(self, classes: tuple[str, ...]) -> Callable[[Tensor], list[Detections]]:
            none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))
            return lambda images: [none] * len(images)

    prepared = prepare(make().changed({"teacher": Recipe().teacher}))
    with pytest.raises(InputError, match=r"finds nothing on val .* Train it for longer \(teacher.steps\)"):
        label(prepared, Blind(), "teacher", Silent())  # type: ignore[arg-type]


def test_pictures_without_any_object_are_refused(make: Make, tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / "empty").mkdir(exist_ok=True)
        squares.picture(100 + number, None).save(tmp_path / "empty" / f"{number}.png")
    said = refusal(make(data={"unlabelled": str(tmp_path / "empty")}))
    assert said.startswith(
        "In none of the 3 pictures of data.unlabelled does the teacher find an object, from the scores red 0."
    )


def test_a_teacher_without_boxes_labels_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind:
        """It has no boxes."""

    with pytest.raises(InputError, match=r"teacher.kind=onnx gives no boxes with classes, so it labels nothing"):
        label(prepare(make()), Blind(), "teacher", Silent())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["data.unlabelled_share=0.3"], "no picture without labels is named: set data.unlabelled"),
        (["teacher.kind=onnx", "teacher.size=[64,64]"], "the teacher's file labels nothing: set data.unlabelled"),
        (
            ["teacher.kind=onnx", "teacher.suppress=0.7", "mimic.regions=map"],
            "labels nothing, and no box with a score is a region: set data.unlabelled",
        ),
        (["baselines=[labelled]"], "labelled is the student without unlabelled pictures; set data.unlabelled"),
        (["data.unlabelled=rest"], "needs pictures whose labels are not used: set data.label_share below 1"),
        (["data.unlabelled=nowhere"], "There is no folder nowhere; name a folder of pictures in data.unlabelled."),
        (
            ["data.unlabelled=x", "teacher.kind=onnx", "mimic.mode=none", "quantizer.stride=2", "baselines=[]"],
            "no student sees a quantized map",
        ),
    ],
)
def test_settings_without_pictures_are_refused(
    refused: Refused, recipe: Path, drawn: Path, overrides: list[str], said: str
) -> None:
    assert said in refused("train", recipe, f"data.root={drawn / 'data'}", *overrides)
