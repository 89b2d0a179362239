"""How many threads a run computes on: where others are at work, fewer, since threads that wait for each other crawl."""

import os
from pathlib import Path

from qmimic.config import RunConfig
from qmimic.errors import InputError
from qmimic.files import read_json
from qmimic.run.folder import ENVIRONMENT


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def choose(config: RunConfig, folder: Path, load: float | None = None, here: int = 1) -> tuple[int, str]:
    """The number of threads of a process, and a sentence where it is not what anybody would expect; empty otherwise.

    With another number, sums are taken in another order, and the weights differ in the last digits. So a run that goes
    on keeps the number that it began with.

    Args:
        config: its `threads` are taken as they are, if there are any.
        folder: of the run.
        load: processes that want a core, on average over the last minute; None: the system's figure.
        here: processes of the run on this machine, which share its cores.
    """
    if config.threads:
        return config.threads, ""
    most, before = max(1, cores() // here), _kept(folder)
    if before:
        said = f"{before} of {most} threads, as before; another run.threads would give slightly other weights."
        if before > most:
            said = f"{most} of the {before} threads that the run began with: its weights will be slightly other ones."
        return min(before, most), said if before != most else ""
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    threads = min(most, max(1, int((cores() - load) / here + 0.5)))
    if threads == most:
        return most, ""
    return threads, (
        f"{threads} of {most} threads: others want {load:.1f} of {cores()} cores, and threads that wait for each other "
        f"are slower than one; run.threads={most} uses them anyway."
    )


def _kept(folder: Path) -> int | None:
    """The number that a run in this folder was begun with."""
    try:
        number = read_json(folder / ENVIRONMENT).get("threads")
    except (InputError, AttributeError):
        return None
    return number if isinstance(number, int) and number > 0 else None
