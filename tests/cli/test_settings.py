"""A setting that a command accepts has an effect; any other is refused by the command, for every command and key."""

import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli_cases import Refused
from qmimic.cli import main
from qmimic.config import Recipe, Section
from qmimic.config.listing import settings
from qmimic.config.reading import named_keys, refuse_keys
from qmimic.errors import InputError
from qmimic.run.deploy import READ, READ_IN_FLOAT
from qmimic.run.effects import READERS, recipe_to_train, why_idle
from qmimic.run.validation import Validation
from qmimic.runtime import Detector
from qmimic.study.spec import Study, expand, load_study
from qmimic.tables import ARCHITECTURES

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "qmimic"
KEYS = {one.key: one.default for one in settings() if one.default is not None}


def among(key: str, reads: tuple[str, ...]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in reads)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Every key that is read of any recipe from now on, dotted without the section's place: `IntConfig.steps`."""
    found: set[str] = set()
    whole = Section.__getattribute__

    def recorded(self: Section, name: str) -> Any:
        if name in type(self).model_fields:
            found.add(f"{type(self).__name__}.{name}")
        return whole(self, name)

    monkeypatch.setattr(Section, "__getattribute__", recorded)
    return found


def kind_of(key: str) -> str:
    section, _, name = key.rpartition(".")
    kind = Recipe.model_fields[section].annotation if section else Recipe
    return f"{kind.__name__}.{name}"


def test_what_export_accepts_is_read_by_it(
    trained: Path, tmp_path: Path, read: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    student = str(run / "student.safetensors")
    thresholds = [f"{key}={KEYS[key]}" for key in READ_IN_FLOAT if key.startswith("detector.")]
    small = ["int8.max_loss=0.5", "int8.steps=1", "int8.batch_size=2", "int8.images=2"]
    scores = itertools.chain([1.0], itertools.repeat(0.0))  # it loses all, so that everything is tried
    monkeypatch.setattr(Validation, "__call__", lambda *_: next(scores))
    monkeypatch.setattr(Validation, "map50", lambda *_: next(scores))
    read.clear()
    main(["export", student, "--out", str(tmp_path / "out"), "--int8", "--set", *thresholds, *small])
    for key in KEYS:
        if among(key, READ):
            as_schedule = f"ScheduleConfig.{key.rpartition('.')[2]}"  # what int8 has of one is made into one
            assert kind_of(key) in read or (key.startswith("int8.") and as_schedule in read), key


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("key", KEYS)
def test_what_export_does_not_read_is_refused(key: str, int8: bool, tmp_path: Path, refused: Refused) -> None:
    reads = READ if int8 else READ_IN_FLOAT
    said = refused("export", tmp_path / "a.safetensors", *(["--int8"] if int8 else []), "--set", f"{key}={KEYS[key]}")
    if among(key, reads):
        assert "There is no checkpoint" in said  # it gets as far as that
    else:
        assert f"--set {key}: `qmimic export` does not use this key" in said


def test_thresholds_and_counts_are_applied_to_the_file(trained: Path, tmp_path: Path) -> None:
    student, changes = str(trained / "run" / "student.safetensors"), {"max_detections": 7, "nms_threshold": 0.35}
    given = [*(f"detector.{name}={value}" for name, value in changes.items()), "detector.post_nms=9"]
    assert main(["export", student, "--out", str(tmp_path), "--set", *given]) == 0
    metadata = Detector(tmp_path / "student.onnx").metadata
    assert {name: getattr(metadata, name) for name in changes} == changes
    assert metadata.proposals == 9
    assert metadata.parity["unmatched"] == 0  # of the trained detector with the same settings


@pytest.mark.parametrize(
    ("key", "why"),
    [
        ("data.root", "as its first argument"),
        ("run.dir", "from --out"),
        ("name", "itself"),
        *((key, "searches for this itself") for key in ("data.size", "student.backbone", "detector.architecture")),
    ],
)
def test_what_fit_does_not_read_is_refused(key: str, why: str, refused: Refused) -> None:
    assert why in refused("fit", "synthetic:digits", "--max-ms", 3, "--set", f"{key}={KEYS[key]}")
    section, _, name = key.rpartition(".")
    if section:
        assert why in refused("fit", "synthetic:digits", "--max-ms", 3, "--set", f"{section}={{{name}: {KEYS[key]}}}")


@pytest.mark.parametrize("key", [*(key for key in KEYS if key.startswith("int8.")), "run.report", "data.fold"])
def test_what_a_study_does_not_read_is_refused(key: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{key}: ")):
        Study(name="x", recipe="demo", arms={"a": {key: None}}, seeds=[0, 1], folds=2)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_read_somewhere(key: str) -> None:
    """By attribute, outside of the config, which declares it."""
    name = re.compile(rf"\.{key.rpartition('.')[2]}\b|\"{key.rpartition('.')[2]}\"")
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "config"]
    assert any(name.search(path.read_text(encoding="utf-8")) for path in files), key


def test_a_file_may_see_larger_pictures_than_its_student() -> None:
    recipe_to_train(None, as_overrides({**BOX_FILE, "teacher.maps": ["a"], "teacher.scale": 2}))


def test_a_section_as_a_value_is_its_keys() -> None:
    given = ["detector={post_nms: 3, ohem: true}", "seed=1", "detector.roi_size=4", "data.size=[1, 2]"]
    assert named_keys(given) == ["detector.post_nms", "detector.ohem", "detector.roi_size", "seed", "data.size"]
    with pytest.raises(InputError, match=r"--set detector\.ohem: `qmimic x` does not use this key, since it is y;"):
        refuse_keys(given, ["detector.post_nms"], "x", "since it is y")
    with pytest.raises(InputError, match="is not an override"):
        named_keys(["seed"])


# Every key that only some recipes read: a value that is not its default, and what makes it read.
BOX_FILE = {"teacher.kind": "onnx", "baselines": []}
GRIDS = {
    **BOX_FILE,
    "teacher.box_format": "distances",
    "teacher.box_unit": "strides",
    "teacher.grid_strides": [8, 16],
    "teacher.grid_point": 0,
}
ANCHORS = {**GRIDS, "teacher.box_format": "deltas", "teacher.box_unit": "pixels", "teacher.anchors": [[[8, 8]]] * 2}
LABELS = {**BOX_FILE, "data.unlabelled": "frames"}
ONLY_WITH: dict[str, tuple[Any, dict[str, Any]]] = {
    **{f"pruning.{name}": (7, {"baselines": ["taylor"]}) for name in ("rounds", "steps", "cost_weight", "multiple")},
    "pruning.learning_rate": (0.1, {"baselines": ["taylor"]}),
    **{f"pruning.{name}": (7, {"baselines": ["lasso"]}) for name in ("images", "places")},
    **{f"{name}.milestones": ([0.5], {f"{name}.decay": "step"}) for name in ("teacher", "student")},
    **{f"teacher.{name}": ("a.onnx", BOX_FILE) for name in ("file", "boxes")},
    "teacher.scores": ("s", {**BOX_FILE, "teacher.boxes": "b"}),
    "teacher.labels": ("l", {**LABELS, "teacher.boxes": "b", "teacher.scores": "s"}),
    "teacher.objectness": ("o", {**BOX_FILE, "teacher.boxes": "b", "teacher.scores": "s"}),
    "teacher.objectness_activation": (
        "none",
        {**BOX_FILE, "teacher.boxes": "b", "teacher.scores": "s", "teacher.objectness": "o"},
    ),
    "teacher.grid_strides": ([8], GRIDS),
    "teacher.grid_point": (0.5, GRIDS),
    "teacher.bins": (8, GRIDS),
    "teacher.anchors": ([[[8, 8]], [[9, 9]]], ANCHORS),
    "teacher.cell_boxes": (2, GRIDS),
    "teacher.peaks": (True, {**GRIDS, "teacher.boxes": "b", "teacher.scores": "s"}),
    "teacher.sizes": ("z", {**GRIDS, "teacher.box_format": "centres", "teacher.boxes": "b"}),
    "teacher.anchors_first": (True, ANCHORS),
    "teacher.variances": ([0.1, 0.1, 0.2, 0.2], ANCHORS),
    "teacher.centre_scales": ([1.2, 1.1], {**ANCHORS, "teacher.box_format": "yolov3", "teacher.grid_point": None}),
    "teacher.rows": ("r", {**BOX_FILE, "teacher.row_layout": ["box", "scores"]}),
    "teacher.row_layout": (["box", "scores"], {**BOX_FILE, "teacher.rows": "r"}),
    "teacher.transposed": (True, {**BOX_FILE, "teacher.rows": "r", "teacher.row_layout": ["box", "scores"]}),
    "teacher.box_format": ("xywh", BOX_FILE),
    "teacher.box_unit": ("shares", BOX_FILE),
    "teacher.activation": ("sigmoid", {**BOX_FILE, "teacher.boxes": "b", "teacher.scores": "s"}),
    "teacher.classes": (["a", None], BOX_FILE),
    "teacher.size": ([64, 64], LABELS),
    "teacher.suppress": (0.7, LABELS),
    "teacher.drop_other_classes": (True, LABELS),
    **{f"data.{name}": (0.3, {"data.unlabelled": "frames"}) for name in ("unlabelled_share", "unlabelled_doubt")},
    "teacher.inputs": ({"sizes": [640, 640]}, BOX_FILE),
    "teacher.maps": (["a"], BOX_FILE),
    "teacher.mean": ([1, 1, 1], BOX_FILE),
    "teacher.std": ([1, 1, 1], BOX_FILE),
    "teacher.bgr": (True, BOX_FILE),
    "teacher.layout": ("nhwc", BOX_FILE),
    "teacher.counts": ("n", {**BOX_FILE, "teacher.boxes": "b"}),
    "detector.levels": ([16], {"detector.architecture": "one_stage"}),
    "detector.softmax_weight": (0.1, {"detector.architecture": "one_stage"}),
}
# The same of what every recipe reads unless it says otherwise.
UNLESS: dict[str, tuple[Any, dict[str, Any]]] = {
    **{
        f"detector.{name}": (11, {"detector.architecture": "one_stage"})
        for name in ("anchor_count", "roi_size", "rpn_samples", "roi_samples", "pre_nms", "post_nms")
    },
    "detector.output_stride": (8, {"detector.architecture": "one_stage"}),
    "detector.roi_pooling": ("pool", {"detector.architecture": "one_stage"}),
    "detector.ohem": (True, {"detector.architecture": "one_stage"}),
    "detector.anchors": ([[8, 8]], {"detector.architecture": "one_stage"}),
    "data.val": ("other", {"data.fold": [0, 5]}),
    "quantizer.stride": (0.5, {"mimic.mode": "none", "baselines": ["scratch"]}),
    "teacher.min_map": (0.5, {"mimic.mode": "none", "baselines": []}),
    "mimic.normalize": ("paper", {"mimic.mode": "none", "baselines": ["taylor"]}),
    "mimic.pooling": ("pool", {"mimic.regions": "map"}),
    "mimic.share": (0.2, {"mimic.weight": 0.5}),
    "mimic.region_count": (9, {"mimic.regions": "map"}),
    "mimic.with_truth": (False, {"mimic.regions": "ground_truth"}),
    "quantized_teacher.learning_rate": (0.1, {"quantized_teacher.steps": 0}),
    "quantized_teacher.optimizer": ("sgd", {"quantized_teacher.steps": 0}),
    "int8.learning_rate": (0.1, {"int8.steps": 0}),
    "teacher.backbone": ("resnet50", BOX_FILE),
    "quantized_teacher.steps": (9, BOX_FILE),
}


def as_overrides(values: dict[str, Any]) -> list[str]:
    return [f"{key}={json.dumps(value)}" for key, value in values.items()]


@pytest.mark.parametrize("key", [*ONLY_WITH, *UNLESS])
def test_a_setting_that_others_switch_off_is_refused(key: str, refused: Refused) -> None:
    value, others = {**ONLY_WITH, **UNLESS}[key]
    idle, read = as_overrides({key: value}), as_overrides({**others, key: value})
    if key in UNLESS:
        idle, read = read, idle
    recipe_to_train(None, read)
    with pytest.raises(InputError, match=rf"{re.escape(key)} would have no effect: .*; or leave it out\."):
        recipe_to_train(None, idle)
    assert f"{key} would have no effect" in refused("train", "demo", "baselines=[]", *idle)


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_read_by_the_default_recipe_or_declared(key: str) -> None:
    """A default is never refused; what the default recipe does not read is in the table above, with what reads it."""
    assert why_idle(Recipe(), key) == ""
    declared = [one for one in READERS if one.names(key) and not one.reads(Recipe())]
    own_name = key.removeprefix("detector.")
    known = own_name == key or own_name in ARCHITECTURES["faster_rcnn"].reads
    if key != "detector.anchor_cells" and key != "detector.anchor_ratios":
        assert (not declared and known) or key in ONLY_WITH


@pytest.mark.parametrize("path", [*sorted((ROOT / "recipes").glob("*.yaml"))], ids=lambda path: path.stem)
def test_recipes_that_ship_have_no_idle_settings(path: Path) -> None:
    recipe_to_train(path)


@pytest.mark.parametrize("path", [*sorted((ROOT / "studies").glob("*.yaml"))], ids=lambda path: path.stem)
def test_studies_that_ship_have_no_idle_settings(path: Path, tmp_path: Path) -> None:
    assert expand(load_study(path), path, tmp_path)


def test_an_override_that_switches_a_part_off_leaves_the_file_s_settings_be(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_text("teacher: {steps: 9}\nquantizer: {stride: 0.5}\n")
    assert recipe_to_train(path, ["mimic.mode=none"]).teacher.steps == 9
    path.write_text("teacher: {steps: 9}\nmimic: {mode: none}\n")
    with pytest.raises(InputError, match=r"a\.yaml: teacher\.steps would have no effect: no student has a teacher"):
        recipe_to_train(path)


def test_a_study_s_settings_have_an_effect_in_some_run(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("baselines: []\nmimic: {weight: auto}\n")
    path = tmp_path / "s.yaml"
    scratch = "scratch: {mimic.mode: none, mimic.weight: 1}"  # against the recipe's `auto`, which wants a teacher
    path.write_text(f"name: s\nrecipe: r.yaml\nset: {{mimic.share: 0.2}}\narms: {{{scratch}, mimic: {{}}}}\n")
    assert len(expand(load_study(path), path, tmp_path)) == 10
    for idle in ("{pruning.rounds: 3}", "{mimic.mode: none, mimic.weight: 1, quantizer.stride: 2}"):
        path.write_text(f"name: s\nrecipe: r.yaml\narms: {{{scratch}, odd: {idle}}}\n")
        with pytest.raises(InputError, match=r"In arm odd of .*s\.yaml: .* would have no effect"):
            expand(load_study(path), path, tmp_path)
