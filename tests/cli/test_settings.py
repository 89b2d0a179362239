"""A setting that a command accepts has an effect; any other is refused by the command, for every command and key."""

import itertools
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from cli_cases import Refused
from qmimic.cli import main
from qmimic.config import Section
from qmimic.config.listing import settings
from qmimic.config.reading import named_keys, refuse_keys
from qmimic.errors import InputError
from qmimic.run.deploy import READ, READ_IN_FLOAT
from qmimic.run.validation import Validation
from qmimic.runtime import Detector
from qmimic.study.spec import Study

PACKAGE = Path(__file__).parents[2] / "src" / "qmimic"
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
    from qmimic.config import Recipe

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
        ("run.dir", "by --out"),
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


def test_a_section_as_a_value_is_its_keys() -> None:
    given = ["detector={post_nms: 3, ohem: true}", "seed=1", "detector.roi_size=4", "data.size=[1, 2]"]
    assert named_keys(given) == ["detector.post_nms", "detector.ohem", "detector.roi_size", "seed", "data.size"]
    with pytest.raises(InputError, match=r"--set detector\.ohem: `qmimic x` does not use this key, since it is y;"):
        refuse_keys(given, ["detector.post_nms"], "x", "since it is y")
    with pytest.raises(InputError, match="is not an override"):
        named_keys(["seed"])
