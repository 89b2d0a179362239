"""Every detection of a split matched to the ground truth by the rules of Pascal VOC, without loops over boxes.

Our box (x1, y1, x2, y2) is (x1 + 1, y1 + 1, x2, y2) in VOC's coordinates (1-based, inclusive), and VOC's width
xmax - xmin + 1 is our x2 - x1. So the devkit's overlap is plain intersection over union of our boxes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from qmimic.data.sample import Sample, has_area
from qmimic.detections import Detections

IOU = 0.5
PAIRS_AT_ONCE = 1 << 21  # overlaps computed at once: about 200 MB of temporaries

T = TypeVar("T", bound=np.generic)


@dataclass(frozen=True)
class Truth:
    """Labelled boxes of a split that have area, sorted by group, which is image * classes + label.

    Attributes:
        image: int64 [G], index of the image in the split.
        boxes: float64 [G, 4], xyxy, pixels.
        label: int64 [G].
        ignored: bool [G], difficult or crowd: detections on them do not count.
        starts: int64 [images * classes + 1], where each group begins.
        images: number of images.
    """

    image: NDArray[np.int64]
    boxes: NDArray[np.float64]
    label: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    starts: NDArray[np.int64]
    images: int

    @classmethod
    def of(cls, samples: Sequence[Sample], classes: int) -> "Truth":
        """The truth of a split's samples; `classes` is the number of classes."""
        own = list(samples)
        kept = [has_area(sample.boxes) for sample in own]
        image = np.repeat(np.arange(len(own)), [int(keep.sum()) for keep in kept])
        box = _join([sample.boxes[keep] for sample, keep in zip(own, kept, strict=True)], (0, 4), np.float64)
        label = _join([sample.labels[keep] for sample, keep in zip(own, kept, strict=True)], (0,), np.int64)
        ignored = [sample.ignored[keep] for sample, keep in zip(own, kept, strict=True)]
        group = image * classes + label
        order = np.argsort(group, kind="stable")
        starts = np.searchsorted(group[order], np.arange(len(own) * classes + 1))
        return cls(image[order], box[order], label[order], _join(ignored, (0,), np.bool_)[order], starts, len(own))


@dataclass(frozen=True)
class Matches:
    """Detections of a split in falling order of score, ties in their original order, and what became of each.

    Attributes:
        truth: the labelled boxes.
        classes: number of classes.
        image: int64 [D], index of the image in the split.
        label: int64 [D].
        box: float64 [D, 4], xyxy, pixels.
        score: float64 [D].
        target: int64 [D], row of the box in `truth`, of its class and image, that it overlaps most; 0 if there is none.
        overlap: float64 [D], that overlap; -1 if there is none.
        hit: bool [D], whether it is the first to reach the IoU with a box that counts.
        ignored: bool [D], whether its box does not count; then neither does the detection.
    """

    truth: Truth
    classes: int
    image: NDArray[np.int64]
    label: NDArray[np.int64]
    box: NDArray[np.float64]
    score: NDArray[np.float64]
    target: NDArray[np.int64]
    overlap: NDArray[np.float64]
    hit: NDArray[np.bool_]
    ignored: NDArray[np.bool_]

    @property
    def positives(self) -> NDArray[np.int64]:
        """Boxes to be found, by class, int64 [classes]."""
        return np.bincount(self.truth.label[~self.truth.ignored], minlength=self.classes)


def match(samples: Sequence[Sample], detections: Mapping[str, Detections], classes: int, iou: float = IOU) -> Matches:
    """Match detections to labelled boxes as VOC does.

    Each detection is compared with the labelled box of its class and image that it overlaps most (the first of equals).
    If the overlap is below `iou`, it is false. Otherwise it does not count if that box is difficult or crowd, is false
    if a detection of higher score has taken that box already, and else is a hit. Detections of equal score are ordered
    as `samples` are, and as given within an image.

    Args:
        samples: all images of the split, with or without detections.
        detections: detections by image id; images that are absent have none.
        classes: number of classes.
        iou: least overlap of a hit; equality is enough, as in the devkit.
    """
    truth = Truth.of(samples, classes)
    image, label, box, score = _flatten(samples, detections)
    best, overlap = _best_match(truth, image * classes + label, box)
    # One order for all classes: by falling score, ties in their original order.
    order = np.argsort(-score, kind="stable")
    best, close = best[order], overlap[order] >= iou
    ignored = np.zeros(len(order), np.bool_)
    ignored[close] = truth.ignored[best[close]]
    candidates = np.flatnonzero(close & ~ignored)
    hit = np.zeros(len(order), np.bool_)
    hit[candidates[np.unique(best[candidates], return_index=True)[1]]] = True
    return Matches(
        truth, classes, image[order], label[order], box[order], score[order], best, overlap[order], hit, ignored
    )


def _best_match(
    truth: Truth, group: NDArray[np.int64], boxes: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Row of `truth` that each detection overlaps most, int64 [D], and that overlap, float64 [D]; 0 and -1 if none."""
    first, count = truth.starts[group], truth.starts[group + 1] - truth.starts[group]
    best, overlap = np.zeros(len(group), np.int64), np.full(len(group), -1.0)
    rows = np.flatnonzero(count)
    # Pieces of whole detections with at most PAIRS_AT_ONCE pairs, but at least one detection.
    piece = np.cumsum(count[rows]) // PAIRS_AT_ONCE
    for some in np.split(rows, np.flatnonzero(np.diff(piece)) + 1) if len(rows) else []:
        ends = np.cumsum(count[some])
        begins = ends - count[some]
        pairs = np.arange(ends[-1])
        target = pairs + np.repeat(first[some] - begins, count[some])
        values = pair_iou(np.repeat(boxes[some], count[some], axis=0), truth.boxes[target])
        overlap[some] = np.maximum.reduceat(values, begins)
        is_best = values == np.repeat(overlap[some], count[some])
        best[some] = np.minimum.reduceat(np.where(is_best, target, len(truth.boxes)), begins)
    return best, overlap


def pair_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes [N, 4] with boxes [N, 4], row by row, [N]; b must have area.

    Never NaN: 0 for boxes that do not overlap, that are turned inside out, or that are not finite.
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
    """The parts concatenated; an empty array of shape `empty` if there are none."""
    return np.concatenate([np.empty(empty, dtype), *parts]).astype(dtype)
