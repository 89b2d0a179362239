"""Times of several things in one alternating run, so that what slows the machine slows all of them."""

import time
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

WARM_UP = 5


def alternate(
    runs: Mapping[str, Callable[[], object]], rounds: int = 60, watch: Callable[[int], None] = lambda _: None
) -> dict[str, NDArray[np.float64]]:
    """Seconds that each of several calls takes, [rounds], one call of each after the other.

    Args:
        runs: by name; each is called a few times before the clock starts.
        rounds: how often.
        watch: told how many rounds are done.
    """
    seconds = {name: np.zeros(rounds) for name in runs}
    for number in range(-WARM_UP, rounds):
        for name, run in runs.items():
            run()  # the caches are its own again, and threads of the one before have stopped waiting for work
            start = time.perf_counter()
            run()
            if number >= 0:
                seconds[name][number] = time.perf_counter() - start
        watch(max(0, number + 1))
    return seconds
