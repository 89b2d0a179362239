"""Several runs on one page: all networks side by side, and intervals of the differences where only seeds differ."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qmimic.config import Recipe
from qmimic.errors import InputError
from qmimic.report import figures
from qmimic.report.kept import FOLDER, peek_value
from qmimic.report.latency import FILE as LATENCY
from qmimic.report.latency import Timing
from qmimic.report.networks import TWIN
from qmimic.report.page import save
from qmimic.report.panels import Panel, Style, styles, swatch
from qmimic.report.template import environment
from qmimic.run.folder import FinishedRun, read_run
from qmimic.scores.statistics import Estimate, estimate

OUT = Path("report.html")
APART = ("name", "seed", "run")  # recipe keys that may differ between runs of one group


@dataclass(frozen=True)
class SeedRow:
    """One network of runs that differ only in the seed.

    Attributes:
        title: of the network.
        score: mAP@0.5, 0..1, over the seeds.
        gain: its difference to scratch, paired by seed; None for scratch itself, or without it.
    """

    title: str
    score: Estimate
    gain: Estimate | None


@dataclass(frozen=True)
class Group:
    """Runs of one recipe with several seeds."""

    name: str
    folders: tuple[Path, ...]
    seeds: tuple[int, ...]
    rows: tuple[SeedRow, ...]


def compare(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write one page on several finished runs.

    Args:
        folders: of the runs; duplicates count once.
        out: the HTML file; None: `report.html` in the current folder.

    Returns:
        The file.

    Raises:
        InputError: a folder holds no finished run, all folders are the same, or the file cannot be written.
    """
    unique = {folder.resolve(): folder for folder in folders}
    if len(unique) < 2:
        raise InputError(f"{folders[0]} is the only run given; name several folders to compare them.")
    path = out or OUT
    save(path, page([read_run(folder) for folder in unique.values()]))
    return path


def page(runs: Sequence[FinishedRun]) -> str:
    """The comparison of runs as HTML."""
    found = groups(runs)
    titles = list(dict.fromkeys(result.title for run in runs for result in run.results))
    style = styles(titles)
    times = {run.folder: peek_value(run.folder / FOLDER / LATENCY, Timing) for run in runs}
    context: dict[str, Any] = {
        "runs": runs,
        "times": {folder: own.milliseconds if own else {} for folder, own in times.items()},
        "twin": TWIN,
        "scores": {run.folder: {result.name: result.map50 for result in run.results} for run in runs},
        "differences": differences(runs),
        "groups": found,
        "figures": [_gains(group, number, style) for number, group in enumerate(found)],
        "cost": _cost(runs, style),
        "titles": titles,
        "swatches": {title: swatch(own) for title, own in style.items()},
        "same_data": len({_data(run.recipe) for run in runs}) == 1,
    }
    return environment().get_template("compare.html").render(context)


def groups(runs: Sequence[FinishedRun]) -> list[Group]:
    """Groups of runs that differ only in the seed, with at least two seeds; a repeated seed counts once."""
    alike: dict[str, dict[int, FinishedRun]] = {}
    for run in runs:
        alike.setdefault(_apart_from_seed(run.recipe), {}).setdefault(run.recipe.seed, run)
    found = []
    for by_seed in alike.values():
        if len(by_seed) > 1:
            own = list(by_seed.values())
            found.append(Group(own[0].recipe.name, tuple(run.folder for run in own), tuple(by_seed), _rows(own)))
    return found


def _rows(runs: Sequence[FinishedRun]) -> tuple[SeedRow, ...]:
    tables = [{result.title: result.map50 for result in run.results} for run in runs]
    shared = [title for title in tables[0] if all(title in table for table in tables)]
    rows = []
    for title in shared:
        gains = None
        if title != TWIN and TWIN in shared:
            gains = estimate([table[title] - table[TWIN] for table in tables])
        rows.append(SeedRow(title, estimate([table[title] for table in tables]), gains))
    return tuple(rows)


def differences(runs: Sequence[FinishedRun]) -> list[tuple[str, list[str]]]:
    """Settings that differ between the runs, with each run's value; folders and names of runs are left out."""
    flat = [_flat(run.recipe.model_dump(mode="json", exclude={"name", "run"})) for run in runs]
    keys = list(dict.fromkeys(key for own in flat for key in own))
    rows = [(key, [own.get(key, "") for own in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    found: dict[str, str] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: json.dumps(value)}
    return found


def _apart_from_seed(recipe: Recipe) -> str:
    return json.dumps(recipe.model_dump(mode="json", exclude=set(APART)), sort_keys=True)


def _data(recipe: Recipe) -> str:
    return json.dumps(recipe.data.model_dump(mode="json", include={"root", "val", "train", "fold"}), sort_keys=True)


def _gains(group: Group, number: int, style: Mapping[str, Style]) -> Panel | None:
    values = {row.title: row.gain for row in group.rows if row.gain is not None}
    return figures.seed_gains(values, style, TWIN, f"seeds-{number}") if values else None


def _cost(runs: Sequence[FinishedRun], style: Mapping[str, Style]) -> Panel:
    """mAP against cost; networks of the same title and cost are averaged into one point."""
    places: dict[tuple[str, int], list[float]] = {}
    for run in runs:
        for result in run.results:
            places.setdefault((result.title, result.macs), []).append(result.map50)
    points = [(title, macs / 1e6, float(np.mean(scores))) for (title, macs), scores in places.items()]
    return figures.costs(points, style, "million multiply-accumulates per image", "macs")
