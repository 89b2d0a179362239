"""Where a stage's numbers go besides its own log: TensorBoard, MLflow, Trackio, Weights & Biases.

A tracker is a convenience: each has its own thread, for which training never waits once the tracker is open, and one
that fails is reported once and dropped. After a kill they are opened again: each stage is one run of the tracker, which
has each number of the stage's log exactly once.

Accelerate's trackers for these four are not used: they log from the training loop, so an unreachable server stops it;
they open one run for a whole process; and after a kill, numbers that were logged twice appear as two points.
"""

import contextlib
import io
import logging
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from qmimic import tables
from qmimic.errors import InputError
from qmimic.tables import Table

OPENS, CLOSES = 15.0, 20.0  # most seconds that a stage waits, at its start and at its end


@dataclass(frozen=True)
class Subject:
    """What is tracked: a stage of a run.

    Attributes:
        run: name of the run; project or experiment of a tracker.
        stage: name of the stage.
        key: its fingerprint, by which a tracker finds it again after a kill.
        folder: of the stage.
        store: the run folder.
        settings: the resolved recipe, dotted keys to plain values.
    """

    run: str
    stage: str
    key: str
    folder: Path
    store: Path
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Past:
    """What a killed process left.

    Attributes:
        steps_done: of the last checkpoint, from which the stage continues; 0: it starts anew.
        lines: of the stage's log, including those of later steps.
    """

    steps_done: int = 0
    lines: tuple[Mapping[str, Any], ...] = ()


class Tracker(Protocol):
    """An open tracker."""

    def holds(self, name: str, step: int) -> bool:
        """Whether it already had this number of this step when it was opened."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step."""

    def close(self, scores: Mapping[str, float] | None) -> None:
        """The stage has ended, with these scores or without scores."""


class _TensorBoard:
    def __init__(self, subject: Subject, past: Past) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # It hides what was written earlier for later steps.
        self._writer = SummaryWriter(str(subject.folder / "tensorboard"), purge_step=past.steps_done + 1)
        self._step = self._kept = past.steps_done
        if not past.steps_done:
            text = "\n".join(f"    {key}: {value}" for key, value in subject.settings.items())
            self._writer.add_text("recipe", text, 0)

    def holds(self, name: str, step: int) -> bool:
        return step <= self._kept

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._step = step
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, scores: Mapping[str, float] | None) -> None:
        for name, value in (scores or {}).items():
            self._writer.add_scalar(f"final/{name}", value, self._step)
        self._writer.close()


class _MLflow:
    """In `mlflow.db` of the run folder, unless MLFLOW_TRACKING_URI names another place."""

    def __init__(self, subject: Subject, past: Past) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunStatus
        from mlflow.exceptions import MlflowException

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it reports on its tables
        self._metric, self._ended = Metric, RunStatus
        self._client = MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or _mlflow_file(subject.store))
        self._step, self._last = past.steps_done, dict[str, int]()
        with contextlib.suppress(MlflowException):  # it exists already
            self._client.create_experiment(subject.run)
        experiment = self._client.get_experiment_by_name(subject.run).experiment_id
        found = self._client.search_runs([experiment], f"tags.`qmimic.key` = '{subject.key}'", max_results=1)
        if found:
            self._run = found[0].info.run_id
            self._client.update_run(self._run, status=RunStatus.to_string(RunStatus.RUNNING))
            for name in found[0].data.metrics:
                self._last[name] = max(one.step for one in self._client.get_metric_history(self._run, name))
            return
        tags = {"qmimic.key": subject.key}
        self._run = self._client.create_run(experiment, tags=tags, run_name=subject.stage).info.run_id
        settings = [Param(key, str(value)[:6000]) for key, value in subject.settings.items()]
        for first in range(0, len(settings), 100):  # the protocol's limit for one call
            self._client.log_batch(self._run, params=settings[first : first + 100])

    def holds(self, name: str, step: int) -> bool:
        return step <= self._last.get(name, -1)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._step = step
        now = int(1000 * time.time())
        self._client.log_batch(self._run, [self._metric(name, value, now, step) for name, value in values.items()])

    def close(self, scores: Mapping[str, float] | None) -> None:
        now = int(1000 * time.time())
        final = [self._metric(f"final/{name}", value, now, self._step) for name, value in (scores or {}).items()]
        if final:
            self._client.log_batch(self._run, final)
        status = self._ended.KILLED if scores is None else self._ended.FINISHED
        self._client.set_terminated(self._run, self._ended.to_string(status))


def _mlflow_file(store: Path) -> str:
    """The address of a run folder's MLflow file; made under another name first: a kill would leave half a file."""
    from mlflow import MlflowClient

    path = store.resolve() / "mlflow.db"
    if not path.exists():
        with tempfile.TemporaryDirectory(dir=store, prefix=".mlflow-") as folder:
            made = Path(folder) / path.name
            MlflowClient(f"sqlite:///{made}").search_experiments()
            with contextlib.suppress(FileExistsError):  # another job of a study was faster
                path.hardlink_to(made)
    return f"sqlite:///{path}"


class _Trackio:
    """Local, in TRACKIO_DIR or Trackio's own folder, unless TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say otherwise."""

    def __init__(self, subject: Subject, past: Past) -> None:
        import trackio

        name = f"{subject.stage}-{subject.key}"
        quiet = {"auto_log_gpu": False, "auto_log_cpu": False, "embed": False}
        self._run = trackio.init(subject.run, name, config=dict(subject.settings), resume="allow", **quiet)
        self._step = past.steps_done
        # It cannot be asked what it has; it stores what it is sent within a second.
        self._told = {(line["step"], name) for line in past.lines for name in line}

    def holds(self, name: str, step: int) -> bool:
        return (step, name) in self._told

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._step = step
        self._run.log(dict(values), step=step)

    def close(self, scores: Mapping[str, float] | None) -> None:
        if scores:
            self._run.log({f"final/{name}": value for name, value in scores.items()}, step=self._step)
        self._run.finish()


class _WandB:
    """Offline in the run folder, to be sent by `wandb sync`; WANDB_MODE=online sends it at once."""

    def __init__(self, subject: Subject, past: Past) -> None:
        import wandb

        name = f"{subject.stage}-{subject.key}"
        mode = os.environ.get("WANDB_MODE") or "offline"
        before = list((subject.store / "wandb").glob(f"offline-run-*-{name}"))
        self._run = wandb.init(
            project=subject.run,
            name=subject.stage,
            id=name,
            dir=subject.store,
            config=dict(subject.settings),
            mode=mode,
            resume="allow",
            settings=wandb.Settings(silent=True, console="off"),
        )
        # Offline runs cannot be resumed: the new folder gets the whole log and replaces the killed run's.
        for folder in before if mode == "offline" else ():
            shutil.rmtree(folder, ignore_errors=True)

    def holds(self, name: str, step: int) -> bool:
        return step < int(self._run.starting_step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self, scores: Mapping[str, float] | None) -> None:
        self._run.summary.update({f"final/{name}": value for name, value in (scores or {}).items()})
        self._run.finish(exit_code=int(scores is None))


TRACKERS: Table[Callable[[Subject, Past], Tracker]] = tables.TRACKERS


def require(names: Iterable[str]) -> None:
    """Check that trackers are installed.

    Raises:
        InputError: one of them is not.
    """
    for name in names:
        if find_spec(name) is None:
            extra = "train" if name == "tensorboard" else name
            raise InputError(
                f"run.trackers names {name}, which is not installed: pip install 'qmimic[{extra}]', or leave it out."
            )


class _Courier:
    """One tracker in its thread. Its `fault` is None while it works."""

    def __init__(self, name: str, subject: Subject, past: Past) -> None:
        self.name = name
        self.fault: str | None = None
        self.told = False
        self.opened = threading.Event()
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(subject, past), name=name, daemon=True)
        self._thread.start()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step that the tracker does not have yet."""
        self._calls.put(lambda tracker: _log(tracker, values, step))

    def close(self, scores: Mapping[str, float] | None) -> None:
        """The stage has ended."""
        self._calls.put(lambda tracker: tracker.close(scores))
        self._calls.put(None)

    def wait(self, seconds: float) -> None:
        """Wait until everything is sent, but at most this many seconds."""
        self._thread.join(max(0.0, seconds))
        if self._thread.is_alive():
            self.fault = self.fault or "it does not answer"

    def _work(self, subject: Subject, past: Past) -> None:
        try:
            tracker = TRACKERS[self.name](subject, past)
            for line in past.lines:
                if line["step"] <= past.steps_done:
                    _log(tracker, {name: value for name, value in line.items() if name != "step"}, line["step"])
            self.opened.set()
            while (call := self._calls.get()) is not None:
                call(tracker)
        # Foreign libraries, servers and disks may fail in any way; training goes on.
        except (Exception, SystemExit) as error:
            self.fault = " ".join(str(error).split())[:200] or type(error).__name__
        finally:
            self.opened.set()


def _log(tracker: Tracker, values: Mapping[str, float], step: int) -> None:
    missing = {name: value for name, value in values.items() if not tracker.holds(name, step)}
    if missing:
        tracker.log(missing, step)


class Trackers:
    """All trackers of a stage; a context manager.

    Args:
        names: of `TRACKERS`.
        subject: the stage.
        say: called once for each tracker that fails.
    """

    def __init__(self, names: Iterable[str], subject: Subject, say: Callable[[str], None]) -> None:
        self._names, self._subject, self._say = tuple(names), subject, say
        self._couriers: list[_Courier] = []
        self._scores: dict[str, float] | None = None

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_: object) -> None:
        until = time.monotonic() + CLOSES
        with contextlib.redirect_stdout(io.StringIO()):
            for courier in self._couriers:
                courier.close(self._scores)
            for courier in self._couriers:
                courier.wait(until - time.monotonic())
        self._tell()

    def begin(self, past: Past) -> None:
        """Open them."""
        until = time.monotonic() + OPENS
        with contextlib.redirect_stdout(io.StringIO()):  # some print a greeting
            self._couriers = [_Courier(name, self._subject, past) for name in self._names]
            for courier in self._couriers:
                courier.opened.wait(max(0.0, until - time.monotonic()))
        self._tell()

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Numbers of a step."""
        for courier in self._couriers:
            if courier.fault is None:
                courier.log(values, step)
        self._tell()

    def end(self, scores: Mapping[str, float]) -> None:
        """The stage has ended; its scores are passed on when the trackers close."""
        if not self._couriers:
            self.begin(Past())  # a stage without steps
        self._scores = dict(scores)

    def _tell(self) -> None:
        for courier in self._couriers:
            if courier.fault is not None and not courier.told:
                courier.told = True
                self._say(f"The tracker {courier.name} failed ({courier.fault}); training goes on without it.")
