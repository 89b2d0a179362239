"""Running a study's jobs side by side, each in its own process, one seed after another."""

import contextlib
import itertools
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from qmimic.files import appending, open_file
from qmimic.run.folder import BANK, KEY
from qmimic.run.lock import exclusive_lock
from qmimic.study.same_data import check_same_data
from qmimic.study.spec import Run, Study, jobs_of
from qmimic.study.table import JobRow, plan, read_jobs, update

POLL_SECONDS = 0.3
LOG_END = 1 << 16  # bytes read from the end of a log
BANK_NAME = re.compile(rf"{KEY}\.bin")
NEED_FAILED = "The job that it depends on failed: "


class Worker(Protocol):
    """A running job, wherever it runs."""

    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""

    def stop(self) -> None:
        """End it, and wait until it has ended."""


class Process:
    """A job as a process on this machine; of several GPUs, each takes one in turn."""

    _turns = itertools.count()

    def __init__(self, folder: Path, job: str, log: Path) -> None:
        with appending(log) as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "qmimic.study.worker", str(folder), job, str(next(self._turns))],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )

    def exit_code(self) -> int | None:
        """See `Worker`."""
        return self._process.poll()

    def stop(self) -> None:
        """See `Worker`."""
        self._process.terminate()
        self._process.wait()


Start = Callable[[Path, str, Path], Worker]


def run_study(
    study: Study,
    runs: tuple[Run, ...],
    folder: Path,
    workers: int,
    show: Callable[[list[JobRow]], None],
    start: Start = Process,
) -> list[JobRow]:
    """Compute all jobs of a study that are not done; safe to kill at any moment and call again.

    Args:
        study: as read.
        runs: of the study, all of them.
        folder: of the table, the stages and the logs.
        workers: jobs at a time.
        show: called about three times a second with all jobs.
        start: how a job is started.

    Returns:
        All jobs: done, or failed with the reason.

    Raises:
        InputError: another process runs this study, the folder cannot be written, or the data are others than those of
            finished jobs.
    """
    with exclusive_lock(folder):
        check_same_data(folder, runs)
        plan(folder, study, runs)
        (folder / "logs").mkdir(exist_ok=True)
        active: dict[str, Worker] = {}
        began: dict[str, float] = {}
        of_seed: dict[int, set[str]] = {}
        for run in runs:
            of_seed.setdefault(run.seed, set()).update(job.id for job in jobs_of(run))
        try:
            while True:
                for job, worker in list(active.items()):
                    code = worker.exit_code()
                    if code is not None:
                        del active[job]
                        _settle(folder, job, code)
                jobs = _without_hope(folder)
                show(jobs)
                settled = {job.id for job in jobs if job.status in ("done", "failed")}
                finished = [seed for seed, own in of_seed.items() if own <= settled]
                if finished:
                    _remove_banks(folder / BANK, min((began[job] for job in active), default=math.inf))
                    for seed in finished:
                        del of_seed[seed]
                for row in ready(jobs)[: workers - len(active)]:
                    update(folder, row.id, status="running")
                    began[row.id] = time.time()
                    active[row.id] = start(folder, row.id, folder / "logs" / f"{row.id}.log")
                if not active:
                    return jobs
                time.sleep(POLL_SECONDS)
        finally:
            for job, worker in active.items():
                worker.stop()
                if any(row.id == job and row.status == "running" for row in read_jobs(folder)):
                    update(folder, job, status="waiting")


def ready(jobs: list[JobRow]) -> list[JobRow]:
    """Waiting jobs whose prerequisite is done, in the order of the plan."""
    done = {job.id for job in jobs if job.status == "done"}
    return [job for job in jobs if job.status == "waiting" and (not job.needs or job.needs in done)]


def _remove_banks(folder: Path, before: float) -> None:
    """Remove the banks that nothing has been written into since a time; each may have hundreds of megabytes.

    A bank serves one teacher, and a teacher one seed. One that is still read stays open there; should it be wanted
    again, it is filled again.
    """
    with contextlib.suppress(FileNotFoundError):  # there are none, or another process has removed it
        for path in folder.iterdir() if not folder.is_symlink() else ():
            if BANK_NAME.fullmatch(path.name) and path.lstat().st_mtime < before:
                path.unlink()


def _settle(folder: Path, job: str, code: int) -> None:
    """Mark a job that ended without a result as failed, with the reason from its log."""
    row = next(row for row in read_jobs(folder) if row.id == job)
    if row.status == "running":
        log = folder / "logs" / f"{job}.log"
        lines = _end(log).strip().splitlines() or ["no output"]
        update(folder, job, status="failed", error=f"The process ended with code {code}: {lines[-1]} ({log})")


def _end(log: Path) -> str:
    """The last part of a job's output."""
    with open_file(log) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - LOG_END))
        return file.read(LOG_END).decode("utf-8", "replace")


def _without_hope(folder: Path) -> list[JobRow]:
    """All jobs, after marking those as failed that depend, directly or not, on a failed one."""
    while True:
        jobs = read_jobs(folder)
        failed = {job.id: job for job in jobs if job.status == "failed"}
        hopeless = [job for job in jobs if job.status == "waiting" and job.needs in failed]
        if not hopeless:
            return jobs
        for job in hopeless:
            reason = failed[job.needs].error.removeprefix(NEED_FAILED)
            update(folder, job.id, status="failed", error=NEED_FAILED + reason)
