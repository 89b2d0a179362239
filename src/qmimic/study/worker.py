"""One job of a study, wherever it runs; as a separate process: python -m qmimic.study.worker FOLDER JOB TURN."""

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from qmimic.config import Recipe
from qmimic.errors import InputError
from qmimic.run.device import take_turn
from qmimic.run.folder import StageResult
from qmimic.run.lock import exclusive_lock
from qmimic.run.prepare import Prepared, prepare
from qmimic.run.stages import Teachers, labels_of, teachers_of, train_student, train_teacher
from qmimic.study.same_data import data_of
from qmimic.study.table import recipe_of, update
from qmimic.training.loop import Watcher

REPORT_EVERY = 20  # steps
ORPHANED = 3  # exit code
ORPHANS_END = 120.0  # seconds


class Reporter:
    """A watcher that prints messages and reports the job's progress.

    Args:
        note: called now and then with the steps done and the total.
    """

    def __init__(self, note: Callable[[int, int], None]) -> None:
        self.note = note
        self.steps = 0

    def start(self, stage: str, steps: int, done: int) -> None:
        """See `Watcher`."""
        self.steps = steps
        self.note(done, steps)

    def step(self, step: int, images: int, loss: float) -> None:
        """See `Watcher`."""
        if step % REPORT_EVERY == 0:
            self.note(step, self.steps)

    def scored(self, step: int, map50: float) -> None:
        """See `Watcher`."""
        print(f"step {step}/{self.steps}  mAP {100 * map50:.1f}", flush=True)

    def say(self, text: str) -> None:
        """See `Watcher`."""
        print(text, flush=True)


class Child(Reporter):
    """A reporter that also ends the process when the study that started it is gone."""

    def __init__(self, note: Callable[[int, int], None]) -> None:
        super().__init__(note)
        self.parent = os.getppid()

    def step(self, step: int, images: int, loss: float) -> None:
        """See `Watcher`."""
        if os.getppid() != self.parent:
            sys.exit(ORPHANED)
        super().step(step, images, loss)


def outcome(folder: Path, job: str, kind: str, recipe: Recipe, watcher: Watcher) -> dict[str, str | float]:
    """Compute a job, unless it is computed already, and give its row; a failure is a row too.

    Args:
        folder: of the study.
        job: its id.
        kind: teacher, quantized or student.
        recipe: of a run that needs it.
        watcher: notified of progress.
    """
    began = time.monotonic()
    try:
        # The processes of a killed study end at their next step; until then they own the job.
        with exclusive_lock(folder / "jobs" / job, patience=ORPHANS_END):
            prepared = prepare(recipe)
            result = {
                **asdict(work(kind, prepared, watcher)),
                "data": data_of(kind, prepared.dataset, prepared.unlabelled),
            }
    except InputError as error:
        return {"status": "failed", "error": str(error)}
    return {"status": "done", "result": json.dumps(result), "seconds": time.monotonic() - began}


def work(kind: str, prepared: Prepared, watcher: Watcher) -> StageResult:
    """Compute a job's stage, after those it needs. Raises: as the stages."""
    recipe = prepared.recipe
    if kind == "student" and not recipe.needs_teachers:
        return train_student(prepared, "student", None, watcher).result
    if kind == "teacher":
        return train_teacher(prepared, watcher).result
    teachers = teachers_of(prepared, recipe.needs_grid, watcher)
    if kind == "quantized":
        assert isinstance(teachers, Teachers), "a file is nobody's job"
        assert teachers.quantized, "a run without a grid has no job of this kind"
        return teachers.quantized.result
    return train_student(prepared, "student", teachers, watcher, labels_of(prepared, teachers, watcher)).result


def main(folder: Path, job: str, turn: int = 0) -> int:
    """Compute a job in this process, the turn-th of the study, and write its row; gives the exit code."""
    take_turn(turn)
    kind, recipe = recipe_of(folder, job)
    watcher = Child(lambda step, steps: update(folder, job, step=step, steps=steps))
    update(folder, job, **outcome(folder, job, kind, recipe, watcher))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
