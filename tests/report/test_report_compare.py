"""Several runs on one page: seeds make an interval, other recipes do not."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from page_cases import read_page
from scipy import stats

from qmimic.cli import main
from qmimic.report.compare import compare, differences, groups
from qmimic.run.folder import read_run

SCORES = {0: (0.5, 0.6), 1: (0.4, 0.52), 2: (0.45, 0.47)}  # seed: scratch, student


@pytest.fixture
def seeds(run: Path, tmp_path: Path) -> list[Path]:
    """Runs of three seeds with scores made up."""
    folders = []
    for seed, (scratch, student) in SCORES.items():
        own = tmp_path / f"seed-{seed}"
        own.mkdir()
        recipe = (run / "recipe.yaml").read_text().replace("seed: 0", f"seed: {seed}")
        (own / "recipe.yaml").write_text(recipe.replace(str(run), str(own)))
        tree = json.loads((run / "results.json").read_text())
        for stage in tree["stages"]:
            stage["map50"] = {"scratch": scratch, "student": student}.get(stage["name"], 0.9)
        del tree["sum"]  # files of earlier versions have none
        (own / "results.json").write_text(json.dumps(tree))
        folders.append(own)
    return folders


def test_seeds_of_one_recipe_are_paired(seeds: list[Path], tmp_path: Path) -> None:
    (group,) = groups([read_run(folder) for folder in seeds])
    assert group.seeds == (0, 1, 2)
    student = next(row for row in group.rows if row.title.startswith("student"))
    gains = [b - a for a, b in SCORES.values()]
    wanted = stats.t.interval(0.95, 2, np.mean(gains), stats.sem(gains))
    assert student.gain is not None
    assert (student.gain.mean - student.gain.margin, student.gain.mean + student.gain.margin) == pytest.approx(wanted)

    page = read_page(compare(seeds, tmp_path / "page.html"))
    shown = {row[0]: row[1:] for row in page.table("Means over 3 seeds")[1:]}
    low, high = (f"{100 * bound:+.1f}".replace("-", "\N{MINUS SIGN}") for bound in wanted)
    assert shown["student (quantization mimic)"][2] == f"+{100 * np.mean(gains):.1f} [{low}, {high}]"
    assert shown["scratch"][1].startswith(f"{100 * np.mean([a for a, _ in SCORES.values()]):.1f} ± ")
    assert len(page.table("All networks")) == 1 + 3 * 4
    assert page.table("Keys of the recipes")[1] == ["seed", "0", "1", "2"]


def test_other_recipes_are_no_repetitions(seeds: list[Path], tmp_path: Path) -> None:
    recipe = seeds[1] / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("steps: 2", "steps: 3"))
    shutil.rmtree(seeds[2])
    runs = [read_run(folder) for folder in seeds[:2]]
    assert groups(runs) == []
    assert ("student.steps", ["2", "3"]) in differences(runs)
    page = read_page(compare(seeds[:2], tmp_path / "page.html"))
    assert "No two of these runs differ only in the seed" in page.text["seeds"]


def test_a_seed_that_comes_again_is_no_repetition(seeds: list[Path], tmp_path: Path) -> None:
    copy = shutil.copytree(seeds[0], tmp_path / "copy")
    assert groups([read_run(seeds[0]), read_run(copy)]) == []


def test_the_command_compares_and_loads_nothing(
    seeds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", *map(str, seeds)]) == 0
    page = read_page(tmp_path / "report.html")
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe")
        assert all(
            str(value).startswith("#") for name, value in attributes.items() if name in ("src", "href", "xlink:href")
        )
    assert not any("report" in path.name for folder in seeds for path in folder.iterdir())
