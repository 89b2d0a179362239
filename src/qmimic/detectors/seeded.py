"""Weights that depend on a seed alone, drawn without a trace in a script's own random numbers."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While the body runs, torch's default generator on the CPU starts at a seed; then it goes on as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
