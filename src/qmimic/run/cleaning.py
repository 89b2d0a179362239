"""Taking back the disk that runs hold: what can be made again, or runs as a whole; never one at work, never a link.

Only names that qmimic itself makes are removed. What else lies in a run folder is somebody's, stays, and is named.
"""

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qmimic.arms import ARMS, STUDENT, TEACHER_STAGES
from qmimic.data.splits import UNLABELLED
from qmimic.errors import InputError
from qmimic.run.folder import (
    BANK,
    DEPLOY,
    KEY,
    LABELS,
    LABELS_FACTS,
    LABELS_PICTURE,
    STAGE_RESULT,
    STAGES,
    TRACKERS,
    read_run,
)
from qmimic.run.listing import PIXELS, WINNER, kind_of, list_runs, look, usage
from qmimic.run.lock import exclusive_lock, taken
from qmimic.runtime.formats import FORMATS
from qmimic.training.log import LOG

WHOLE = "whole"
NAME = r"[A-Za-z0-9_.-]+"
STAGE = rf"{STAGES}/{NAME}-{KEY}"
MADE = re.compile(rf"{NAME}-{KEY}")  # folders of stages
# What export writes: files of every format, the proofs of them, and C source.
DEPLOYED = (*(suffix for one in FORMATS.values() for suffix in one.suffixes), ".json", ".h", ".c")
FILES = re.compile(  # that we make, by their path below a run's, a fit's or a study's folder
    "|".join(
        (
            r"(recipe|study)\.yaml|(environment|data|results|fit|costs)\.json|failed\.txt|results\.md|report\.(html|md)",
            rf"(curves|examples|front|report-{NAME})\.png|study\.sqlite(-[a-z]+)?|mlflow\.db",
            rf"({'|'.join((*TEACHER_STAGES, *ARMS, STUDENT))})\.safetensors",
            rf"({BANK}|{PIXELS})/{KEY}\.bin|logs/{NAME}\.log",
            rf"report/((data|latency|matching)\.json|{NAME}-{KEY}\.safetensors)",
            rf"{LABELS_FACTS}|{LABELS}/{KEY}/(labels\.json|{LABELS_PICTURE}|instances_{UNLABELLED}\.json)",
            rf"{DEPLOY}/{NAME}({'|'.join(map(re.escape, DEPLOYED))})",
            rf"{STAGE}/(detector\.safetensors|result\.json|log\.jsonl|checkpoints/step-\d+\.safetensors)",
            rf"({STAGE}/tensorboard|{'|'.join(TRACKERS)})/.+",  # what trackers write, they name
            r"(.*/)?\.[^/]{0,16}-[0-9a-f]{16}(\.[a-z]+)?",  # what a killed process was about to write
        )
    )
)
FOLDERS = re.compile(  # that go if nothing is left in them
    rf"{STAGES}|{LABELS}(/{KEY})?|{BANK}|{PIXELS}|{WINNER}|{DEPLOY}|report|logs|{STAGE}(/checkpoints|/tensorboard(/.+)?)?"
    rf"|({'|'.join(TRACKERS)})(/.+)?"
)
CACHES = (BANK, PIXELS)  # made again when they are needed
PARTS = (*CACHES, STAGES, WHOLE)
KEPT = (STAGE_RESULT, LOG)  # of a stage: what reports read
SHOWN = 5  # names of what stays


@dataclass(frozen=True)
class Removal:
    """What would go.

    Attributes:
        run: the run's folder, which is locked while it goes.
        part: bank, pixels, stages or whole.
        paths: files, and folders that hold nothing else; no links.
        bytes: that they take on disk.
    """

    run: Path
    part: str
    paths: tuple[Path, ...]
    bytes: int


def plan_cleaning(folder: Path, names: Sequence[str], parts: Sequence[str]) -> tuple[list[Removal], list[str]]:
    """What cleaning would remove, and sentences about what stays although it was asked for.

    Args:
        folder: of the runs.
        names: of runs in it, or paths of runs; none: all of them.
        parts: of `PARTS`.

    Raises:
        InputError: a name is no run's, or whole runs are to go and none is named.
    """
    if WHOLE in parts and not names:
        raise InputError("--all removes whole runs; name them.")
    runs = [_named(folder, name) for name in names] if names else [one.folder for one in list_runs(folder)]
    removals: list[Removal] = []
    stays: list[str] = []
    for run in dict.fromkeys(runs):
        if taken(run) or taken(run / WINNER):
            stays.append(f"{run} is at work and stays as it is.")
            continue
        for part in [WHOLE] if WHOLE in parts else parts:
            if part == STAGES and not _has_ended(run):
                stays.append(f"{run} has not finished, so its stages stay; --all removes the whole run.")
                continue
            paths, kept = _made(run, _paths(run, part))
            if kept:
                names = ", ".join(str(path.relative_to(run)) for path in kept[:SHOWN])
                more = f" and {len(kept) - SHOWN} more" if len(kept) > SHOWN else ""
                stays.append(f"{run} keeps what qmimic did not make: {names}{more}.")
            size = sum(usage(path) if path.is_dir() else path.lstat().st_blocks * 512 for path in paths)
            if paths:
                removals.append(Removal(run, part, tuple(paths), size))
    return removals, stays


def clean(removals: Sequence[Removal]) -> int:
    """Remove what was planned; bytes that it held.

    Raises:
        InputError: a run has come to work since, or a folder cannot be written.
    """
    freed = 0
    for removal in removals:
        if not kind_of(removal.run):
            continue  # it has gone since
        with exclusive_lock(removal.run, writes=False):
            for path in _made(removal.run, removal.paths)[0]:  # something may have come since
                try:
                    if path.is_dir() and not path.is_symlink():
                        shutil.rmtree(path)
                    else:
                        path.unlink(missing_ok=True)
                except OSError as error:
                    raise InputError(
                        f"Cannot remove {error.filename or path}: {error.strerror or error}; check its permissions."
                    ) from error
        freed += removal.bytes
    return freed


def _made(run: Path, paths: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """What qmimic made of some files and folders, and what else lies there; a folder in whole if it is all ours."""
    made: list[Path] = []
    others: list[Path] = []
    for path in paths:
        name = "" if path == run else path.relative_to(run).as_posix().removeprefix(f"{WINNER}/")
        if path.is_symlink():
            others.append(path)
        elif path.is_dir():
            own, kept = _made(run, sorted(path.iterdir()))
            whole = not kept and (own or not name or FOLDERS.fullmatch(name))
            made += [path] if whole else own
            others += kept if own or kept or whole else [path]
        else:
            (made if path.is_file() and FILES.fullmatch(name) else others).append(path)
    return made, others


def _named(folder: Path, name: str) -> Path:
    for path in (folder / name, Path(name)):
        if kind_of(path):
            return path
    there = [one.name for one in list_runs(folder)] if folder.is_dir() else []
    known = f"; there are {', '.join(there)}" if there else ""
    raise InputError(f"{folder / name} is not a run folder of qmimic{known}.")


def _has_ended(run: Path) -> bool:
    return kind_of(run) == "run" and look(run, run.name).status == "done"


def _paths(run: Path, part: str) -> Iterator[Path]:
    if part == WHOLE:
        yield run
    elif part == STAGES:
        wanted = {f"{result.name}-{result.key}" for result in read_run(run).results}
        for stage in _children(run / STAGES):
            if not MADE.fullmatch(stage.name):
                continue  # not of our making
            if stage.name in wanted:
                yield from (own for own in _children(stage) if own.name not in KEPT)
            else:
                yield stage
    else:
        folders = [run, run / WINNER] if kind_of(run) == "fit" else [run]
        for folder in folders:
            if (folder / part).is_dir() and not folder.is_symlink() and not (folder / part).is_symlink():
                yield folder / part


def _children(folder: Path) -> list[Path]:
    if not folder.is_dir() or folder.is_symlink():
        return []
    return sorted(path for path in folder.iterdir() if not path.is_symlink())
