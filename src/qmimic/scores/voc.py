"""Pascal VOC average precision by the rules of the development kit's `VOCevaldet.m`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmimic.data.sample import Sample
from qmimic.detections import Detections
from qmimic.scores.matches import IOU, match


@dataclass(frozen=True)
class ClassScore:
    """One class on one split.

    Attributes:
        ap07: 11-point average precision (VOC 2007), 0..1; NaN without positives.
        ap: average precision as the area under the curve (VOC 2010 on), 0..1; NaN without positives.
        positives: number of boxes to be found: not difficult, not crowd, with area.
    """

    ap07: float
    ap: float
    positives: int


@dataclass(frozen=True)
class VocScore:
    """Average precision of every class, and means over the classes that have positives.

    Attributes:
        map07: mean of `ap07`; NaN if no class has positives.
        map_area: mean of `ap`; NaN if no class has positives.
        per_class: class name to its scores, in the order of the classes.
    """

    map07: float
    map_area: float
    per_class: dict[str, ClassScore]


def voc_ap(
    samples: Sequence[Sample], detections: Mapping[str, Detections], classes: Sequence[str], iou: float = IOU
) -> VocScore:
    """VOC scores of a split.

    Detections are matched by `qmimic.scores.matches.match`.

    Args:
        samples: all images of the split, with or without detections.
        detections: detections by image id; images that are absent have none.
        classes: class names; the index is the label.
        iou: least overlap of a hit; equality is enough, as in the devkit.
    """
    found = match(samples, detections, len(classes), iou)
    label, hit, ignored, positives = found.label, found.hit, found.ignored, found.positives
    by_class = np.argsort(label, kind="stable")
    bounds = np.searchsorted(label[by_class], np.arange(len(classes) + 1))
    by_index = []
    for index in range(len(classes)):
        rows = by_class[bounds[index] : bounds[index + 1]]
        rows = rows[~ignored[rows]]
        by_index.append(_score_class(hit[rows], int(positives[index])))
    per_class = dict(zip(classes, by_index, strict=True))
    present = [scores for scores in by_index if scores.positives]
    if not present:
        return VocScore(float("nan"), float("nan"), per_class)
    return VocScore(
        float(np.mean([scores.ap07 for scores in present])),
        float(np.mean([scores.ap for scores in present])),
        per_class,
    )


def average_precision_07(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """11-point average precision of a curve [D]: mean over t = 0, 0.1, ... 1 of the best precision at recall >= t.

    The thresholds are the doubles k * 0.1, as in ports of the devkit: 3 * 0.1 is slightly above 0.3.
    """
    from_here = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    first = np.searchsorted(recall, np.arange(11) * 0.1)
    return float(from_here[first].mean())


def average_precision(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Area under a curve [D], with precision made monotonically falling (VOC 2010 on)."""
    from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * from_here).sum())


def _score_class(hit: NDArray[np.bool_], positives: int) -> ClassScore:
    if not positives:
        return ClassScore(float("nan"), float("nan"), 0)
    found = np.cumsum(hit)
    recall, precision = found / positives, found / np.arange(1, len(hit) + 1)
    return ClassScore(average_precision_07(recall, precision), average_precision(recall, precision), positives)
