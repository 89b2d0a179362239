"""Means over repetitions, their intervals, and how both are printed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t as student_t

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over repetitions.

    Attributes:
        count: number of repetitions; mean: their mean; error: its standard error (NaN for a single one).
    """

    count: int
    mean: float
    error: float

    @property
    def margin(self) -> float:
        """Half the width of the 95 % interval by Student's t; NaN for a single repetition."""
        if self.count < 2:
            return math.nan
        return float(student_t.ppf(0.5 + CONFIDENCE / 2, self.count - 1)) * self.error


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and standard error of repetitions."""
    count = len(values)
    if not count:
        return Estimate(0, math.nan, math.nan)
    error = float(np.std(values, ddof=1)) / math.sqrt(count) if count > 1 else math.nan
    return Estimate(count, float(np.mean(values)), error)


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash for None."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def interval(value: Estimate) -> str:
    """A gain with its interval, in points: `+1.2 [-0.3, +2.7]`."""
    if value.count < 2:
        return "-" if math.isnan(value.mean) else f"{100 * value.mean:+.1f}"
    low, high = value.mean - value.margin, value.mean + value.margin
    return f"{100 * value.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
