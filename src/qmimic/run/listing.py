"""What lies in a folder of runs: runs, fits and studies, how far each is, what it reached, and the disk it takes.

Nothing here needs torch, and nothing is written. What is read may come from strangers: it is checked, links are not
followed, and a line that is shown holds no control characters.
"""

import os
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from qmimic.arms import is_teacher
from qmimic.config import load_recipe
from qmimic.errors import InputError
from qmimic.files import is_there, parse_json, read_bytes
from qmimic.run.folder import (
    BANK,
    ENVIRONMENT,
    FAILURE,
    RECIPE,
    RESULTS,
    STAGES,
    StageResult,
    is_at_its_end,
    is_run,
    read_run,
    read_stage,
)
from qmimic.run.lock import taken
from qmimic.training.log import LOG, read_log

PIXELS, WINNER = "pixels", "winner"
STUDY, FIT, COSTS = "study.sqlite", "fit.json", "costs.json"
MAX_SHOWN = 300  # characters of what a run says of itself
QUERY_SECONDS = 5.0


@dataclass(frozen=True)
class Disk:
    """Bytes on disk; the parts are in the whole."""

    stages: int
    bank: int
    pixels: int
    whole: int


@dataclass(frozen=True)
class Found:
    """A run, a fit or a study.

    Attributes:
        folder: of it.
        name: relative to the folder that was looked at.
        kind: run, fit or study.
        status: done, at work, interrupted or failed.
        detail: where it stands, or why it failed.
        best: highest mAP@0.5 of its students on val, 0..1 (of the teachers, as long as no student has ended); None
            before any network has one.
        network: the name of that network.
        changed: when it was last written to, seconds since the epoch.
        disk: what it takes.
    """

    folder: Path
    name: str
    kind: str
    status: str
    detail: str
    best: float | None
    network: str
    changed: float
    disk: Disk


def list_runs(folder: Path) -> list[Found]:
    """All runs, fits and studies directly in a folder, or the one that it is itself; the last that was changed, last.

    Raises:
        InputError: there is no such folder.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; `qmimic train` creates runs/; or name another folder.")
    if kind_of(folder):
        return [look(folder, str(folder))]
    found = [look(child, child.name) for child in _folders(folder) if kind_of(child)]
    return sorted(found, key=lambda one: one.changed)


def kind_of(folder: Path) -> str:
    """What a folder is: run, fit, study, or empty for anything else. A link is nothing."""
    if folder.is_symlink():
        return ""
    if _is_file(folder / STUDY):
        return "study"
    if _is_file(folder / COSTS) and (folder / STAGES).is_dir():
        return "fit"
    begun = _is_file(folder / RECIPE) and _is_file(folder / ENVIRONMENT)
    return "run" if begun and is_run(folder) else ""


def look(folder: Path, name: str) -> Found:
    """A run, fit or study as it stands."""
    kind = kind_of(folder)
    look_at = {"run": _run, "fit": _fit, "study": _study}[kind]
    try:
        status, detail, scores = look_at(folder)
    except InputError as error:  # a run that is broken is shown as such, beside all others
        status, detail, scores = "failed", str(error), {}
    if taken(folder) or (kind == "fit" and taken(folder / WINNER)):
        status = "at work"
    students = {network: score for network, score in scores.items() if not is_teacher(network)}
    best, network = max(((score, network) for network, score in (students or scores).items()), default=(None, ""))
    changed = max((entry.stat(follow_symlinks=False).st_mtime for entry in _entries(folder)), default=0.0)
    disk = Disk(*(usage(folder / part) for part in (STAGES, BANK, PIXELS, "")))
    return Found(folder, plain(name), kind, status, plain(detail), best, plain(network), changed, disk)


def usage(path: Path) -> int:
    """Bytes that a folder takes on disk; links count as what they are themselves."""
    if path.is_symlink() or not path.is_dir():
        return 0
    total = 0
    for entry in _entries(path):
        status = entry.stat(follow_symlinks=False)
        total += status.st_blocks * 512
        if entry.is_dir(follow_symlinks=False):
            total += usage(Path(entry.path))
    return total


def plain(text: str) -> str:
    """A text as one line without control characters."""
    line = " ".join(text.split())
    return "".join(sign if sign.isprintable() else "?" for sign in line)[:MAX_SHOWN]


def _run(folder: Path) -> tuple[str, str, dict[str, float]]:
    stages = _stages(folder)
    scores = {result.name: result.map50 for _, result in stages if result}
    try:
        scores = {result.name: result.map50 for result in read_run(folder).results}
        ended = is_at_its_end(folder)
    except InputError as error:
        if is_there(folder / RESULTS):
            return "failed", str(error), scores
        ended = False
    if _is_file(folder / FAILURE):
        return "failed", read_bytes(folder / FAILURE).decode("utf-8", "replace"), scores
    if ended:
        return "done", "", scores
    open_stages = [path for path, result in stages if result is None and path.name.partition("-")[0] != "int8"]
    newest = max(open_stages, key=_log_time, default=None)
    if newest is None or not _log_time(newest):
        return "interrupted", "before its first step" if not scores else "between two stages", scores
    steps = max((line["step"] for line in read_log(newest / LOG)), default=0)
    stage = newest.name.rpartition("-")[0]
    whole = _steps(folder, stage)
    return "interrupted", f"{stage} step {steps}" + (f" of {whole}" if whole else ""), scores


def _fit(folder: Path) -> tuple[str, str, dict[str, float]]:
    scores = {result.name.removeprefix("try-"): result.map50 for _, result in _stages(folder) if result}
    if _is_file(folder / FIT):
        return "done", "", scores
    if kind_of(folder / WINNER) == "run":
        _, detail, _ = _run(folder / WINNER)
        return "interrupted", f"the winner, {detail}", scores
    return "interrupted", f"{len(scores)} short trainings done", scores


def _study(folder: Path) -> tuple[str, str, dict[str, float]]:
    try:
        uri = f"{(folder / STUDY).resolve().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=1)) as table:
            table.execute("PRAGMA trusted_schema = OFF")
            until = time.monotonic() + QUERY_SECONDS
            table.set_progress_handler(lambda: int(time.monotonic() > until), 10_000)
            jobs = table.execute("SELECT id, status, error, result FROM jobs LIMIT 100000").fetchall()
            arms = dict(table.execute("SELECT job, arm FROM runs LIMIT 100000").fetchall())
        counts = Counter(status for _, status, _, _ in jobs)
        scores: dict[str, float] = {}
        for job, status, _, result in jobs:
            if status == "done" and job in arms:
                arm = str(arms[job])
                scores[arm] = max(scores.get(arm, 0.0), float(parse_json(result, STUDY)["map50"]))
    except (sqlite3.Error, InputError, ValueError, KeyError, TypeError, OverflowError) as error:
        return "failed", f"its table cannot be read ({error})", {}
    detail = f"{counts['done']} of {len(jobs)} jobs done"
    if counts["failed"]:
        return "failed", f"{detail}, {counts['failed']} failed", scores
    return ("done", "", scores) if counts["done"] == len(jobs) else ("interrupted", detail, scores)


def _stages(folder: Path) -> list[tuple[Path, StageResult | None]]:
    return [(path, read_stage(path)) for path in _folders(folder / STAGES)]


def _steps(folder: Path, stage: str) -> int:
    try:
        recipe = load_recipe(folder / RECIPE, [])
    except InputError:
        return 0
    return {"teacher": recipe.teacher, "quantized_teacher": recipe.quantized_teacher}.get(stage, recipe.student).steps


def _log_time(stage: Path) -> float:
    return (stage / LOG).stat().st_mtime if _is_file(stage / LOG) else 0.0


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir() and not folder.is_symlink():
        yield from sorted(Path(entry.path) for entry in _entries(folder) if entry.is_dir(follow_symlinks=False))


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # not ours to read, or gone in between
        return []
