"""The study's table: one SQLite file, written by many processes, which survives a kill at any moment.

`jobs` holds what is computed; the view `results` has one row per run, in columns for analysis.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qmimic.config import Recipe, explain
from qmimic.errors import InputError
from qmimic.files import check_one_name, is_there, open_file, parse_json
from qmimic.run.folder import STAGE_RESULT, stage_folder
from qmimic.study.spec import Run, Study, jobs_of

FILE = "study.sqlite"
# One row per run. Read by this query, never by the file's own view, which a stranger may have written.
RESULTS = """
SELECT runs.arm, runs.point, runs.seed, runs.fold, runs.teacher, job.status, job.error, job.seconds,
    json_extract(job.result, '$.backbone') AS backbone,
    json_extract(job.result, '$.map50') AS map50,
    json_extract(job.result, '$.map07') AS map07,
    json_extract(job.result, '$.coco_map') AS coco_map,
    json_extract(job.result, '$.matching') AS matching,
    json_extract(job.result, '$.matching_nonzero') AS matching_nonzero,
    json_extract(job.result, '$.parameters') AS parameters,
    json_extract(job.result, '$.macs') AS macs,
    json_extract(job.result, '$.bytes') AS bytes,
    json_extract(teacher.result, '$.map50') AS teacher_map50,
    json_extract(quantized.result, '$.map50') AS quantized_map50,
    json_extract(quantized.result, '$.map50_before') AS quantized_map50_before
FROM runs JOIN jobs AS job ON job.id = runs.job
LEFT JOIN jobs AS teacher ON teacher.id = runs.teacher
LEFT JOIN jobs AS quantized ON quantized.id = runs.quantized
ORDER BY runs.rowid
"""
SCHEMA = f"""
CREATE TABLE IF NOT EXISTS study (description TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, needs TEXT NOT NULL, recipe TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'waiting', error TEXT NOT NULL DEFAULT '',
    step INTEGER NOT NULL DEFAULT 0, steps INTEGER NOT NULL DEFAULT 0, seconds REAL NOT NULL DEFAULT 0,
    result TEXT NOT NULL DEFAULT '{{}}'
);
CREATE TABLE IF NOT EXISTS runs (
    arm TEXT NOT NULL, point TEXT NOT NULL, seed INTEGER NOT NULL, fold INTEGER NOT NULL,
    job TEXT NOT NULL, teacher TEXT NOT NULL, quantized TEXT NOT NULL
);
DROP VIEW IF EXISTS results;
CREATE VIEW results AS
{RESULTS};
"""


# The jobs that the runs want; others are set aside.
OF_RUNS = "SELECT job FROM runs UNION SELECT teacher FROM runs UNION SELECT quantized FROM runs"


@dataclass(frozen=True)
class JobRow:
    """A job at present: `status` is waiting, running, done or failed."""

    id: str
    kind: str
    needs: str
    status: str
    error: str
    step: int
    steps: int
    seconds: float


@contextmanager
def opened(folder: Path) -> Iterator[sqlite3.Connection]:
    """The table of a study's folder; what the `with` body wrote is committed if it does not raise.

    Raises:
        InputError: the file is not a table, or cannot be written.
    """
    if is_there(folder / FILE):
        with open_file(folder / FILE, folder) as file:
            check_one_name(folder / FILE, os.fstat(file.fileno()))
    try:
        with closing(sqlite3.connect(folder / FILE, timeout=60)) as connection, connection:
            connection.execute("PRAGMA trusted_schema = OFF")
            connection.row_factory = sqlite3.Row
            yield connection
    except sqlite3.Error as error:
        raise InputError(f"{folder / FILE} cannot be used ({error}); free some space, or remove the file.") from error


def plan(folder: Path, study: Study, runs: Iterable[Run]) -> None:
    """Make the table hold exactly these runs. Done jobs stay, wanted or not; all others wait, even failed ones.

    What is done and not wanted any more is set aside: it counts again when its arm, setting or seed comes back.
    Jobs are planned seed by seed, so that a study cut short has complete pairs; runs keep their order.
    """
    runs = tuple(runs)
    seeds = list(dict.fromkeys(run.seed for run in runs))
    with opened(folder) as table:
        table.executescript(SCHEMA)
        table.execute("DELETE FROM study")
        table.execute("INSERT INTO study VALUES (?)", (study.model_dump_json(),))
        table.execute("DELETE FROM runs")
        wanted = set()
        for run in sorted(runs, key=lambda run: (seeds.index(run.seed), run.fold)):
            for job in jobs_of(run):
                wanted.add(job.id)
                table.execute(
                    "INSERT INTO jobs (id, kind, needs, recipe) VALUES (?, ?, ?, ?) "
                    # The folder may have moved, and the table may be older than what a job needs.
                    "ON CONFLICT (id) DO UPDATE SET recipe = excluded.recipe, needs = excluded.needs",
                    (job.id, job.kind, job.needs, job.recipe.model_dump_json()),
                )
        for run in runs:
            ids = {job.kind: job.id for job in jobs_of(run)}
            table.execute(
                "INSERT INTO runs VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    run.arm,
                    json.dumps(run.point, sort_keys=True),
                    run.seed,
                    run.fold,
                    ids["student"],
                    ids.get("teacher", ""),
                    ids.get("quantized", ""),
                ),
            )
        for row in table.execute("SELECT id FROM jobs").fetchall():
            if row["id"] not in wanted:
                table.execute("DELETE FROM jobs WHERE id = ? AND status != 'done'", (row["id"],))
        table.execute("UPDATE jobs SET status = 'waiting', error = '' WHERE status IN ('running', 'failed')")
        _want_lost_teachers(table, folder)


def _want_lost_teachers(table: sqlite3.Connection, folder: Path) -> None:
    """Make finished teachers wait again if a student is waiting for them and their stages are gone.

    So a table without its stages can be continued: its results are kept, and no two students train their shared
    teacher at once.
    """
    needed = table.execute(
        "SELECT DISTINCT teacher.id, teacher.result FROM runs JOIN jobs AS job ON job.id = runs.job "
        "JOIN jobs AS teacher ON teacher.id IN (runs.teacher, runs.quantized) "
        "WHERE job.status = 'waiting' AND teacher.status = 'done'"
    )
    for row in needed.fetchall():
        result = parse_json(row["result"], str(folder / FILE))
        if not (stage_folder(folder, result["name"], result["key"]) / STAGE_RESULT).is_file():
            table.execute("UPDATE jobs SET status = 'waiting' WHERE id = ?", (row["id"],))


def read_study(folder: Path) -> Study:
    """The study that a folder was made from.

    Raises:
        InputError: it is not a study's folder.
    """
    if not (folder / FILE).is_file():
        raise InputError(f"{folder} is not a study; name the folder that `qmimic study` wrote.")
    with opened(folder) as table:
        row = table.execute("SELECT description FROM study").fetchone()
    if row is None:
        raise InputError(f"{folder / FILE} does not describe a study; run the study again.")
    try:
        return Study.model_validate_json(row["description"])
    except ValidationError as error:
        raise InputError(f"{folder / FILE} describes an invalid study: {explain(error)}") from error


def read_jobs(folder: Path) -> list[JobRow]:
    """All jobs of the runs in the order in which they were planned."""
    with opened(folder) as table:
        rows = table.execute(
            "SELECT id, kind, needs, status, error, step, steps, seconds FROM jobs "
            f"WHERE id IN ({OF_RUNS}) ORDER BY rowid"
        )
        return [JobRow(**row) for row in rows.fetchall()]


def data_of_done(folder: Path) -> dict[str, str]:
    """What finished jobs were computed on, by id, where the table says so; see `same_data.data_of`."""
    if not is_there(folder / FILE):
        return {}
    with opened(folder) as table:
        table.executescript(SCHEMA)
        rows = table.execute("SELECT id, json_extract(result, '$.data') AS data FROM jobs WHERE status = 'done'")
        return {row["id"]: row["data"] for row in rows.fetchall() if row["data"]}


def set_aside(folder: Path) -> int:
    """How many jobs are done that no run wants any more, see `plan`."""
    with opened(folder) as table:
        row = table.execute(f"SELECT count(*) FROM jobs WHERE id NOT IN ({OF_RUNS})").fetchone()
        return int(row[0])


def read_results(folder: Path) -> list[dict[str, Any]]:
    """The rows of `results`, one per run."""
    with opened(folder) as table:
        return [{**row, "point": parse_json(row["point"], str(folder / FILE))} for row in table.execute(RESULTS)]


def names(folder: Path) -> dict[str, str]:
    """A description of every student's job by id, from the first run that needs it: arm, point, seed and fold."""
    with opened(folder) as table:
        rows = table.execute("SELECT job, arm, point, seed, fold FROM runs ORDER BY rowid DESC").fetchall()
    found = {}
    for row in rows:
        point = "".join(f" {key}={value}" for key, value in parse_json(row["point"], str(folder / FILE)).items())
        found[row["job"]] = f"{row['arm']}{point}, seed {row['seed']}, fold {row['fold']}"
    return found


def recipe_of(folder: Path, job: str) -> tuple[str, Recipe]:
    """A job's kind and recipe.

    Raises:
        InputError: the study has no such job.
    """
    with opened(folder) as table:
        row = table.execute("SELECT kind, recipe FROM jobs WHERE id = ?", (job,)).fetchone()
    if row is None:
        raise InputError(f"{folder / FILE} has no job {job}; run the study again.")
    return row["kind"], Recipe.model_validate_json(row["recipe"])


def update(folder: Path, job: str, **values: str | int | float) -> None:
    """Set columns of a job."""
    columns = ", ".join(f"{name} = ?" for name in values)
    with opened(folder) as table:
        table.execute(f"UPDATE jobs SET {columns} WHERE id = ?", (*values.values(), job))
