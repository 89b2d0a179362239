"""Taking back the disk that runs hold: what can be made again, or runs as a whole; never one at work, never a link."""

import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qmimic.errors import InputError
from qmimic.run.folder import STAGE_RESULT, STAGES, read_run
from qmimic.run.listing import BANK, PIXELS, WINNER, kind_of, list_runs, look, usage
from qmimic.run.lock import exclusive_lock, taken
from qmimic.training.log import LOG

WHOLE = "whole"
MADE = re.compile(r"[A-Za-z0-9_.-]+-[0-9a-f]{12}")  # folders of stages
CACHES = (BANK, PIXELS)  # made again when they are needed
PARTS = (*CACHES, STAGES, WHOLE)
KEPT = (STAGE_RESULT, LOG)  # of a stage: what reports read


@dataclass(frozen=True)
class Removal:
    """What would go.

    Attributes:
        run: the run's folder, which is locked while it goes.
        part: bank, pixels, stages or whole.
        paths: files and folders, no links.
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
                stays.append(f"{run} has not ended: its stages are its work, and stay; --all removes the whole.")
                continue
            paths = tuple(_paths(run, part))
            size = sum(usage(path) if path.is_dir() else path.lstat().st_blocks * 512 for path in paths)
            if paths:
                removals.append(Removal(run, part, paths, size))
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
            for path in removal.paths:
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
