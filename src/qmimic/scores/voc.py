"""VOC mAP by the devkit's rules: inclusive pixels, `difficult` ignored, 11-point (VOC07) and area average precision."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmimic.data.sample import Sample
from qmimic.detections import Detections

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ClassAP:
    """Average precision of one class, 0..1.

    Attributes:
        ap07: by the 11-point rule; ap: area under the precision envelope.
        positives: ground-truth boxes that count.
    """

    ap07: float
    ap: float
    positives: int


def voc_ap(
    samples: Sequence[Sample], found: Mapping[str, Detections], classes: Sequence[str], iou: float = 0.5
) -> dict[str, ClassAP]:
    """Average precision of every class that has a box that counts.

    A detection is matched to the box it overlaps most, if by at least `iou`; on a difficult (or crowd) box it counts
    for nothing, on a box already taken it is false. Boxes without area count for nothing. Equal scores keep the order
    of the images.

    Args:
        samples: the split.
        found: detections by image id; images without an entry have none.
        classes: names; the index is the label.
        iou: threshold, of inclusive-pixel overlaps.
    """
    results = {}
    for label, name in enumerate(classes):
        scores, hits, positives = [np.zeros(0)], [np.zeros(0, np.int8)], 0
        for sample in samples:
            solid = ((sample.boxes[:, 2:] - sample.boxes[:, :2]) > 0).all(1)
            own = (sample.labels == label) & solid
            skip = (sample.difficult | sample.crowd)[own]
            positives += int((~skip).sum())
            detections = found.get(sample.image_id)
            if detections is None:
                continue
            mine = detections.labels == label
            order = np.argsort(-detections.scores[mine].astype(np.float64), kind="stable")
            scores.append(detections.scores[mine].astype(np.float64)[order])
            hits.append(_judge(detections.boxes[mine][order], sample.boxes[own], skip, iou))
        if not positives:
            continue
        all_scores, all_hits = np.concatenate(scores), np.concatenate(hits)
        ranked = all_hits[np.argsort(-all_scores, kind="stable")]
        true, false = np.cumsum(ranked == 1), np.cumsum(ranked == 0)
        recall = true / positives
        precision = true / np.maximum(true + false, 1)
        results[name] = ClassAP(_eleven_points(recall, precision), _area(recall, precision), positives)
    return results


def _judge(
    boxes: NDArray[np.float32], truth: NDArray[np.float32], skip: NDArray[np.bool_], iou: float
) -> NDArray[np.int8]:
    """1 for a true, 0 for a false, -1 for an ignored detection; boxes in falling order of score."""
    verdict = np.zeros(len(boxes), np.int8)
    if not len(truth) or not len(boxes):
        return verdict
    overlap = inclusive_iou(boxes.astype(np.float64), truth.astype(np.float64))
    best = overlap.argmax(1)
    taken = np.zeros(len(truth), np.bool_)
    for row, column in enumerate(best):
        if overlap[row, column] < iou:
            continue
        if skip[column]:
            verdict[row] = -1
        elif not taken[column]:
            taken[column] = True
            verdict[row] = 1
    return verdict


def inclusive_iou(a: Floats, b: Floats) -> Floats:
    """The devkit's IoU of boxes a [N, 4] and b [M, 4], [N, M].

    In VOC's own coordinates (xmin = x1 + 1, xmax = x2) a box is xmax - xmin + 1 = x2 - x1 wide, so in ours the
    inclusive rule is the plain one.
    """
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    overlap = np.clip(high - low, 0, None).prod(-1)
    areas = (a[:, 2:] - a[:, :2]).prod(-1)[:, None] + (b[:, 2:] - b[:, :2]).prod(-1)[None]
    result: Floats = overlap / np.maximum(areas - overlap, 1e-12)
    return result


def _eleven_points(recall: Floats, precision: Floats) -> float:
    points = [precision[recall >= t].max(initial=0.0) for t in np.arange(11) / 10]
    return float(np.mean(points))


def _area(recall: Floats, precision: Floats) -> float:
    recall = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    return float((np.diff(recall) * envelope[1:]).sum())
