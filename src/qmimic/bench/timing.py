"""Times of several things in one alternating run, so that whatever slows the machine slows all of them alike."""

import os
import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

WARM_UP = 5
BUSY = 1.5  # processes per core that want to run; what has just ended here counts as one


def alternate(
    runs: Mapping[str, Callable[[], object]], rounds: int = 60, watch: Callable[[int], None] = lambda _: None
) -> dict[str, NDArray[np.float64]]:
    """Seconds that each of several calls takes, [rounds] for each name; every round calls each once, in turn.

    Args:
        runs: by name; each is called a few times before the clock starts.
        rounds: how often.
        watch: called with the number of rounds done.
    """
    seconds = {name: np.zeros(rounds) for name in runs}
    for number in range(-WARM_UP, rounds):
        for name, run in runs.items():
            run()  # fills the caches; threads of the call before have stopped waiting for work by now
            start = time.perf_counter()
            run()
            if number >= 0:
                seconds[name][number] = time.perf_counter() - start
        watch(max(0, number + 1))
    return seconds


def is_busy() -> bool:
    """Whether other programs have kept the machine busy for the last minute, so that times are too long."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > BUSY * (os.cpu_count() or 1)
