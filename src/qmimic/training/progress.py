"""Progress for the user: on a terminal a bar with loss, mAP, images/s and time left, elsewhere plain lines."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from qmimic.errors import printable


class Silent:
    """Says nothing."""

    def start(self, stage: str, steps: int, done: int) -> None:
        """See `Watcher`."""

    def step(self, step: int, images: int, loss: float) -> None:
        """See `Watcher`."""

    def scored(self, step: int, map50: float) -> None:
        """See `Watcher`."""

    def say(self, text: str) -> None:
        """See `Watcher`."""


class Screen(Console):
    """A console that raises when its reader is gone, like any other stream (rich would exit with code 1)."""

    def on_broken_pipe(self) -> None:
        """Called by rich."""
        raise BrokenPipeError


class Bar:
    """A bar for the stage that is training; a context manager.

    Args:
        console: where to draw; if it is not a terminal, a line is printed at each mAP instead.
        timed: whether to say how long each stage took.
    """

    def __init__(self, console: Console, timed: bool = False) -> None:
        self.console, self.timed = console, timed
        self._bar = Progress(
            TextColumn("{task.description:<18}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._stage, self._steps, self._score, self._loss = "", 0, "", 0.0
        self._began, self._images = 0.0, 0

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._time()
        self._bar.stop()

    def start(self, stage: str, steps: int, done: int) -> None:
        """See `Watcher`."""
        self._time()
        self._stage, self._steps, self._score = stage, steps, ""
        self._began, self._images = time.monotonic(), 0
        if done:
            self.say(f"{stage}: continuing from step {done} of {steps}.")
        self._task = self._bar.add_task(stage.replace("_", " "), total=steps, completed=done, numbers="")

    def step(self, step: int, images: int, loss: float) -> None:
        """See `Watcher`."""
        self._images += images
        self._loss = loss if step == 1 else 0.95 * self._loss + 0.05 * loss
        if self._task is not None:
            self._bar.update(self._task, completed=step, numbers=self._numbers())

    def scored(self, step: int, map50: float) -> None:
        """See `Watcher`."""
        self._score = f"mAP {100 * map50:.1f}  "
        if not self.console.is_terminal:
            self.console.print(
                f"{self._stage:<18} step {step}/{self._steps}  {self._numbers()}", highlight=False, markup=False
            )

    def say(self, text: str) -> None:
        """See `Watcher`."""
        self.console.print(printable(text), highlight=False, soft_wrap=not self.console.is_terminal, markup=False)

    def _time(self) -> None:
        if self.timed and self._stage:
            self.say(f"{self._stage}: {time.monotonic() - self._began:.1f} s.")

    def _numbers(self) -> str:
        speed = self._images / max(1e-6, time.monotonic() - self._began)
        return f"loss {self._loss:.3f}  {self._score}{speed:.0f} images/s"
