"""What is shown while a study runs: how much is done, what is running, and the time left."""

import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qmimic.study.table import JobRow, names

LINE_SECONDS = 60  # seconds between lines where there is no terminal


class View:
    """A table of the running jobs; a context manager.

    Args:
        console: where to draw; if it is not a terminal, a line is printed every minute instead.
        folder: of the study.
        quiet: draw and print nothing.
        each: print a line for each job that ends.
    """

    def __init__(self, console: Console, folder: Path, quiet: bool = False, each: bool = False) -> None:
        self.console, self.folder, self.quiet, self.each = console, folder, quiet, each
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._names: dict[str, str] = {}
        self._ended: set[str] | None = None
        self._began, self._first_done, self._line = time.monotonic(), -1, 0.0

    def __enter__(self) -> "View":
        if self.console.is_terminal and not self.quiet:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, jobs: list[JobRow]) -> None:
        """Draw the jobs' present state."""
        if self._first_done < 0:
            self._first_done = sum(job.status == "done" for job in jobs)
            self._names = names(self.folder)
        if self.each:
            self._tell(jobs)
        if self.quiet:
            return
        title = self._title(jobs)
        if self.console.is_terminal:
            table = Table("at work", "step", title=Text(title), title_justify="left")
            for job in jobs:
                if job.status == "running":
                    table.add_row(
                        Text(self._names.get(job.id, job.kind)), f"{job.step}/{job.steps}" if job.steps else "starting"
                    )
            self._live.update(table, refresh=True)
        elif time.monotonic() - self._line >= LINE_SECONDS:
            self._line = time.monotonic()
            self.console.print(title, highlight=False, markup=False)

    def _tell(self, jobs: list[JobRow]) -> None:
        ended = {job.id for job in jobs if job.status in ("done", "failed")}
        for job in jobs if self._ended is not None else ():
            if job.id in ended - (self._ended or set()):
                name = self._names.get(job.id, job.kind)
                self.console.print(f"{name}: {job.status} after {job.seconds:.1f} s", highlight=False, markup=False)
        self._ended = ended

    def _title(self, jobs: list[JobRow]) -> str:
        done, failed = (sum(job.status == status for job in jobs) for status in ("done", "failed"))
        parts = [f"{done} of {len(jobs)} jobs done"]
        if failed:
            parts.append(f"{failed} failed")
        fresh, passed = done - self._first_done, time.monotonic() - self._began
        if fresh:
            minutes = passed / fresh * (len(jobs) - done - failed) / 60
            parts.append(f"about {minutes:.0f} min left")
        return ", ".join(parts)
