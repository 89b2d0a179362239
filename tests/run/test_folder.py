"""What a run left is read back as it was written; what a stranger put there is refused in a sentence."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from qmimic.config import Recipe, save_recipe
from qmimic.errors import InputError
from qmimic.run.folder import StageResult, read_run, read_stage

STUDENT = StageResult(
    "student", "0123abcd", "resnet18/16", 0.5, 0.49, 0.2, 111_994, 10_500_000, 465_000, 0.8, 0.4, mode="quantization"
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    save_recipe(Recipe(), tmp_path / "recipe.yaml")
    (tmp_path / "results.json").write_text(json.dumps({"stages": [asdict(STUDENT)], "remarks": ["One seed."]}))
    return tmp_path


def test_a_run_is_read_as_it_was_written(run: Path) -> None:
    found = read_run(run)
    assert found.results == (STUDENT,)
    assert found.remarks == ("One seed.",)
    assert found.recipe == Recipe()
    assert found.stage(STUDENT) == run / "stages" / "student-0123abcd"


@pytest.mark.parametrize(
    ("name", "mode", "distiller", "title"),
    [
        ("student", "quantization", "mimic", "student (quantization mimic)"),
        ("student", "mimic", "", "student (mimic)"),
        ("student", "none", "channel_wise", "student (no mimic)"),
        ("student", "mimic", "channel_wise", "student (channel_wise)"),
        ("student", "teacher_only", "channel_wise", "student (channel_wise, mode teacher_only)"),
        ("mimic", "mimic", "mimic", "mimic"),
        ("mimic", "mimic", "pearson", "mimic (pearson)"),
        ("scratch", "none", "pearson", "scratch"),
        ("quantized_teacher", "", "", "quantized teacher"),
    ],
)
def test_a_table_names_the_distiller_that_taught(name: str, mode: str, distiller: str, title: str) -> None:
    assert replace(STUDENT, name=name, mode=mode, distiller=distiller).title == title


def test_earlier_names_are_read_as_those_of_today(run: Path) -> None:
    earlier = {name.replace("distillation", "mimic"): value for name, value in asdict(STUDENT).items()}
    shares = {"mimic_share": 0.1, "mimic_cosine": -0.2}
    (run / "results.json").write_text(json.dumps({"stages": [{**earlier, **shares}]}))
    (found,) = read_run(run).results
    assert (found.distillation_share, found.distillation_cosine) == (0.1, -0.2)


@pytest.mark.parametrize(
    ("key", "value"),
    [("name", "../../etc"), ("key", "a/b"), ("map50", 7), ("bytes", -1), ("map50", "much"), ("stranger", 1)],
)
def test_a_table_that_qmimic_did_not_write_is_refused(run: Path, key: str, value: object) -> None:
    (run / "results.json").write_text(json.dumps({"stages": [{**asdict(STUDENT), key: value}]}))
    with pytest.raises(InputError, match="is not a table of results"):
        read_run(run)


@pytest.mark.parametrize("text", ["", "[", "null", "[]", "{}", '{"stages": []}', "[" * 100_000, '{"stages": NaN}'])
def test_a_damaged_table_is_refused(run: Path, text: str) -> None:
    (run / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"results\.json"):
        read_run(run)


def test_a_table_without_a_student_is_refused(run: Path) -> None:
    (run / "results.json").write_text(json.dumps({"stages": [{**asdict(STUDENT), "name": "teacher"}]}))
    with pytest.raises(InputError, match="holds no student"):
        read_run(run)


def test_a_run_that_has_not_ended_says_how_to_go_on(run: Path) -> None:
    (run / "results.json").unlink()
    with pytest.raises(InputError, match=r"qmimic train .* continues it"):
        read_run(run)
    (run / "recipe.yaml").unlink()
    with pytest.raises(InputError, match="is not a run folder"):
        read_run(run)


def test_a_stage_without_or_with_a_damaged_result_has_not_ended(tmp_path: Path) -> None:
    assert read_stage(tmp_path) is None
    (tmp_path / "result.json").write_text('{"name": "student"')
    assert read_stage(tmp_path) is None
    (tmp_path / "result.json").write_text(json.dumps(asdict(STUDENT)))
    assert read_stage(tmp_path) == STUDENT
