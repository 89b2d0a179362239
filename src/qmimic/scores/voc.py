"""Pascal VOC average precision by the rules of the development kit's `VOCevaldet.m`, without loops over boxes.

In VOC's coordinates (1-based, inclusive) our box (x1, y1, x2, y2) is (x1 + 1, y1 + 1, x2, y2), and VOC's width
xmax - xmin + 1 is our x2 - x1. The devkit's overlap is therefore plain intersection over union of our boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qmimic.data.sample import Sample, has_area
from qmimic.detections import Detections

PAIRS_AT_ONCE = 1 << 21  # overlaps computed in one piece: about 200 MB of temporaries

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class ClassScore:
    """One class on one split.

    Attributes:
        ap07: 11-point average precision (VOC 2007), 0..1; NaN without positives.
        ap: average precision as the area under the curve (VOC 2010 on), 0..1; NaN without positives.
        positives: boxes to be found: neither difficult, nor crowd, nor without area.
    """

    ap07: float
    ap: float
    positives: int


@dataclass(frozen=True)
class VocScore:
    """Average precision of every class, and the means over the classes that have positives.

    Attributes:
        map07: mean of `ap07`; NaN if no class has positives.
        map_area: mean of `ap`; NaN if no class has positives.
        per_class: class name to its scores, in the order of the classes.
    """

    map07: float
    map_area: float
    per_class: dict[str, ClassScore]


def voc_ap(
    samples: Sequence[Sample], detections: Mapping[str, Detections], classes: Sequence[str], iou: float = 0.5
) -> VocScore:
    """VOC scores of a split.

    Every detection looks for the labelled box of its class and image that it overlaps most (the first of equals).
    With an overlap of at least `iou` it is a hit, or counts for nothing if that box is difficult or crowd, or is
    false if a detection of higher score has taken that box before; below `iou` it is false. Detections of equal score
    keep the order of `samples`, and within an image their own.

    Args:
        samples: all images of the split, with or without detections.
        detections: detections by image id; images that are absent have none.
        classes: class names; the index is the label.
        iou: least overlap of a hit; equality is enough, as in the devkit.
    """
    truth = _Truth.of(samples, len(classes))
    image, label, box, score = _flatten(samples, detections)
    best, overlap = _best_match(truth, image * len(classes) + label, box)

    # One order for all classes: by falling score, ties as they came.
    order = np.argsort(-score, kind="stable")
    label, best, close = label[order], best[order], overlap[order] >= iou
    ignored = np.zeros(len(order), np.bool_)
    ignored[close] = truth.ignored[best[close]]
    candidates = np.flatnonzero(close & ~ignored)
    hit = np.zeros(len(order), np.bool_)
    hit[candidates[np.unique(best[candidates], return_index=True)[1]]] = True

    positives = np.bincount(truth.label[~truth.ignored], minlength=len(classes))
    by_class = np.argsort(label, kind="stable")
    bounds = np.searchsorted(label[by_class], np.arange(len(classes) + 1))
    per_class: dict[str, ClassScore] = {}
    for index, name in enumerate(classes):
        rows = by_class[bounds[index] : bounds[index + 1]]
        rows = rows[~ignored[rows]]
        per_class[name] = _score_class(hit[rows], int(positives[index]))
    present = [scores for scores in per_class.values() if scores.positives]
    if not present:
        return VocScore(float("nan"), float("nan"), per_class)
    return VocScore(
        float(np.mean([scores.ap07 for scores in present])),
        float(np.mean([scores.ap for scores in present])),
        per_class,
    )


def average_precision_07(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """11-point average precision of a curve [D]: mean over t = 0, 0.1, ... 1 of the best precision at recall >= t.

    The thresholds are the doubles k * 0.1, as in the devkit's transcriptions: 3 * 0.1 lies just above 3 / 10.
    """
    from_here = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    first = np.searchsorted(recall, np.arange(11) * 0.1)
    return float(from_here[first].mean())


def average_precision(recall: NDArray[np.float64], precision: NDArray[np.float64]) -> float:
    """Area under a curve [D] after precision is made falling (VOC 2010 on)."""
    from_here = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * from_here).sum())


def _score_class(hit: NDArray[np.bool_], positives: int) -> ClassScore:
    if not positives:
        return ClassScore(float("nan"), float("nan"), 0)
    found = np.cumsum(hit)
    recall, precision = found / positives, found / np.arange(1, len(hit) + 1)
    return ClassScore(average_precision_07(recall, precision), average_precision(recall, precision), positives)


@dataclass(frozen=True)
class _Truth:
    """Labelled boxes of a split, sorted by group = image * classes + label.

    Attributes:
        boxes: float64 [G, 4].
        label: int64 [G].
        ignored: bool [G].
        starts: int64 [images * classes + 1], where each group begins.
    """

    boxes: NDArray[np.float64]
    label: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, samples: Sequence[Sample], classes: int) -> "_Truth":
        kept = [has_area(sample.boxes) for sample in samples]
        image = np.repeat(np.arange(len(samples)), [int(keep.sum()) for keep in kept])
        box = _join([sample.boxes[keep] for sample, keep in zip(samples, kept, strict=True)], (0, 4), np.float64)
        label = _join([sample.labels[keep] for sample, keep in zip(samples, kept, strict=True)], (0,), np.int64)
        ignored = [(sample.difficult | sample.crowd)[keep] for sample, keep in zip(samples, kept, strict=True)]
        group = image * classes + label
        order = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[order], np.arange(len(samples) * classes + 1))
        return cls(box[order], label[order], _join(ignored, (0,), np.bool_)[order], starts)


def _best_match(
    truth: _Truth, group: NDArray[np.int64], boxes: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Row of `truth` that each detection overlaps most, int64 [D], and that overlap, float64 [D]; 0 and -1 if none."""
    first, count = truth.starts[group], truth.starts[group + 1] - truth.starts[group]
    best, overlap = np.zeros(len(group), np.int64), np.full(len(group), -1.0)
    rows = np.flatnonzero(count)
    # Pieces of whole detections with at most PAIRS_AT_ONCE pairs, one detection at least.
    piece = np.cumsum(count[rows]) // PAIRS_AT_ONCE
    for some in np.split(rows, np.flatnonzero(np.diff(piece)) + 1) if len(rows) else []:
        ends = np.cumsum(count[some])
        begins = ends - count[some]
        pairs = np.arange(ends[-1])
        target = pairs + np.repeat(first[some] - begins, count[some])
        values = _iou(np.repeat(boxes[some], count[some], axis=0), truth.boxes[target])
        overlap[some] = np.maximum.reduceat(values, begins)
        is_best = values == np.repeat(overlap[some], count[some])
        best[some] = np.minimum.reduceat(np.where(is_best, target, len(truth.boxes)), begins)
    return best, overlap


def _iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes [N, 4] with boxes [N, 4], row by row, [N]; b must have area.

    Never NaN, whatever a detector says: 0 for boxes that share nothing, turned inside out or not finite.
    """
    sides = (np.minimum(a[:, 2:], b[:, 2:]) - np.maximum(a[:, :2], b[:, :2])).clip(0)
    shared: NDArray[np.float64] = sides.prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - shared
    overlap: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=shared > 0)
    return overlap


def _flatten(
    samples: Sequence[Sample], detections: Mapping[str, Detections]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """All detections of a split in the order of its images: image index [D], label [D], box [D, 4], score [D]."""
    found = [(row, detections[sample.image_id]) for row, sample in enumerate(samples) if sample.image_id in detections]
    image = np.repeat(np.array([row for row, _ in found], np.int64), [len(one.scores) for _, one in found])
    return (
        image,
        _join([one.labels for _, one in found], (0,), np.int64),
        _join([one.boxes for _, one in found], (0, 4), np.float64),
        _join([one.scores for _, one in found], (0,), np.float64),
    )


def _join(parts: Sequence[NDArray[np.generic]], empty: tuple[int, ...], dtype: type[T]) -> NDArray[T]:
    """The parts one after another; an empty array of shape `empty` if there are none."""
    return np.concatenate([np.empty(empty, dtype), *parts]).astype(dtype)
