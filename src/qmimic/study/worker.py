"""One job of a study in a process of its own: python -m qmimic.study.worker FOLDER JOB."""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from qmimic.errors import InputError
from qmimic.pipeline.lock import alone
from qmimic.pipeline.prepare import prepare
from qmimic.pipeline.stages import StageResult, Teachers, needs_teachers, quantize_teacher, train_student, train_teacher
from qmimic.study.table import recipe_of, update

REPORT_EVERY = 20  # steps
ORPHANED = 3  # exit code
ORPHANS_END = 120.0  # seconds


class Reporter:
    """A watcher that keeps the job's row up to date, and ends the process when the study that started it is gone."""

    def __init__(self, folder: Path, job: str) -> None:
        self.folder, self.job = folder, job
        self.parent = os.getppid()
        self.steps = 0

    def start(self, stage: str, steps: int, done: int) -> None:
        """See `Watcher`."""
        self.steps = steps
        update(self.folder, self.job, step=done, steps=steps)

    def step(self, step: int, images: int, loss: float) -> None:
        """See `Watcher`."""
        if os.getppid() != self.parent:
            sys.exit(ORPHANED)
        if step % REPORT_EVERY == 0:
            update(self.folder, self.job, step=step)

    def scored(self, step: int, map50: float) -> None:
        """See `Watcher`."""
        print(f"step {step}/{self.steps}  mAP {100 * map50:.1f}", flush=True)

    def say(self, text: str) -> None:
        """See `Watcher`."""
        print(text, flush=True)


def work(folder: Path, job: str) -> StageResult:
    """Compute a job, or find it computed. Raises: as the stages."""
    kind, recipe = recipe_of(folder, job)
    watcher = Reporter(folder, job)
    prepared = prepare(recipe)
    if kind == "student" and not needs_teachers(recipe):
        return train_student(prepared, "student", None, watcher).result
    teacher = train_teacher(prepared, watcher)
    if kind == "teacher":
        return teacher.result
    quantized = quantize_teacher(prepared, teacher, watcher)
    if kind == "quantized":
        return quantized.result
    return train_student(prepared, "student", Teachers(teacher, quantized), watcher).result


def main(folder: Path, job: str) -> int:
    """Compute a job and write its row; what is wrong with it is a row as well, not a failure of this process."""
    began = time.monotonic()
    try:
        # A killed study's processes end at their next step; until then the job is theirs.
        with alone(folder / "jobs" / job, patience=ORPHANS_END):
            result = work(folder, job)
    except InputError as error:
        update(folder, job, status="failed", error=str(error))
        return 0
    update(folder, job, status="done", result=json.dumps(asdict(result)), seconds=time.monotonic() - began)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
