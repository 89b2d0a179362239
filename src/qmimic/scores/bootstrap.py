"""How far a score would move with other pictures: mAP on resamples of a split's images (Efron and Tibshirani, 1993).

Detections are matched once. Drawing an image k times means counting its boxes and detections k times, so a resample is
a weight for each image, and its mAP is a few weighted sums.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmimic.scores.matches import Matches
from qmimic.scores.statistics import CONFIDENCE

RESAMPLES = 1000
AT_ONCE = 1 << 23  # weights of detections computed at once


@dataclass(frozen=True)
class Interval:
    """A value and its interval over resamples of the images.

    Attributes:
        value: on the images as they are.
        low, high: bounds of the middle 95 % of the resamples.
    """

    value: float
    low: float
    high: float


def draws(images: int, seed: int = 0, resamples: int = RESAMPLES) -> NDArray[np.uint8]:
    """How often each image is drawn in each resample, [resamples, images]; the same seed gives the same draws."""
    random, even = np.random.default_rng(seed), np.full(images, 1 / images)
    drawn = np.empty((resamples, images), np.uint8)  # one by one: all at once would be large for many images
    for row in drawn:
        row[:] = random.multinomial(images, even)
    return drawn


def mean_ap(matches: Matches, weights: NDArray[np.uint8]) -> NDArray[np.float64]:
    """VOC mAP (area) of weighted images, [R]: as if each image were in the split as often as its weight says.

    It is exact except for ties: among detections of equal score, those of an image's copies stay together. The mean is
    over the classes that have positives in the resample; it is NaN where no class has any.

    Args:
        matches: of the split's detections.
        weights: how often each image counts, [R, images], whole numbers.
    """
    truth = matches.truth
    groups = []
    for label in range(matches.classes):
        own = (truth.label == label) & ~truth.ignored
        positives = np.bincount(truth.image[own], minlength=truth.images).astype(np.float32)
        rows = np.flatnonzero((matches.label == label) & ~matches.ignored)
        hits = np.flatnonzero(matches.hit[rows])
        if positives.any():  # whatever follows the last hit changes nothing
            groups.append((positives, matches.image[rows[: hits[-1] + 1] if len(hits) else rows[:0]], hits))
    values = np.full(len(weights), np.nan)
    step = max(1, AT_ONCE // max(1, truth.images, *(len(images) for _, images, _ in groups)))
    for first in range(0, len(weights) if groups else 0, step):
        part = weights[first : first + step].astype(np.float32)
        wanted = np.stack([part @ positives for positives, _, _ in groups]).astype(np.float64)
        areas = np.stack([_areas(part[:, images], hits) for _, images, hits in groups])
        shares = np.divide(areas, wanted, out=np.full_like(areas, np.nan), where=wanted > 0)
        known = (wanted > 0).sum(0)
        values[first : first + step] = np.divide(
            np.nansum(shares, 0), known, out=np.full(len(part), np.nan), where=known > 0
        )
    return values


def interval(value: float, resampled: NDArray[np.float64]) -> Interval:
    """The interval of a value, or of a difference of values on the same resamples; NaNs are left out."""
    known = resampled[np.isfinite(resampled)]
    if not len(known):
        return Interval(value, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(value, float(low), float(high))


def _areas(weights: NDArray[np.float32], hits: NDArray[np.int64]) -> NDArray[np.float64]:
    """Areas under the precision envelopes, times the number of positives, [R]; from weighted detections [R, D]."""
    seen = np.cumsum(weights, 1, dtype=np.float64)[:, hits]
    own = weights[:, hits]
    found = np.cumsum(own, 1, dtype=np.float64)
    precision = np.divide(found, seen, out=np.zeros_like(found), where=seen > 0)
    envelope = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
    areas: NDArray[np.float64] = (own * envelope).sum(1)
    return areas
