"""COCO average precision through faster-coco-eval; the tests compare it with pycocotools."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from qmimic.data.sample import Sample, has_area
from qmimic.detections import Detections

IOU_50, IOU_75 = 0, 5  # rows of the precision table: IoU 0.50, 0.55, ... 0.95
AREAS = ("all", "small", "medium", "large")


@dataclass(frozen=True)
class CocoScore:
    """COCO's six numbers of average precision, each 0..1; NaN where the split has no such boxes.

    Attributes:
        ap: mean over IoU 0.50, 0.55, ... 0.95 and over the classes that have boxes; at most 100 detections per image.
        ap50, ap75: at IoU 0.50 and 0.75.
        small, medium, large: `ap` of boxes below 32x32, up to 96x96, and larger, in pixels of the original image.
        per_class: class name to `ap` of that class, in the order of the classes.
    """

    ap: float
    ap50: float
    ap75: float
    small: float
    medium: float
    large: float
    per_class: dict[str, float]


def coco_ap(samples: Sequence[Sample], detections: Mapping[str, Detections], classes: Sequence[str]) -> CocoScore:
    """COCO scores of a split.

    Difficult boxes count as crowd, since COCO has no flag for them: detections on crowd boxes count neither for nor
    against. Boxes without area are left out. The area of a box is width times height.

    Args:
        samples: all images of the split, with or without detections.
        detections: detections by image id; images that are absent have none.
        classes: class names; the index is the label.
    """
    truth = COCO(_ground_truth(samples, classes))
    found = truth.loadRes(_results(samples, detections))
    evaluation = COCOeval_faster(truth, found, iouType="bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    # [IoU, recall, class, area, detections per image]; -1 where there is nothing to find.
    precision: NDArray[np.float64] = evaluation.eval["precision"][..., -1]
    every, small, medium, large = (_mean(precision[..., AREAS.index(name)]) for name in AREAS)
    per_class = {name: _mean(precision[:, :, index, 0]) for index, name in enumerate(classes)}
    ap50, ap75 = _mean(precision[IOU_50, ..., 0]), _mean(precision[IOU_75, ..., 0])
    return CocoScore(every, ap50, ap75, small, medium, large, per_class)


def _mean(precision: NDArray[np.float64]) -> float:
    counted = precision[precision > -1]
    return float(counted.mean()) if counted.size else float("nan")


def _ground_truth(samples: Sequence[Sample], classes: Sequence[str]) -> dict[str, list[dict[str, object]]]:
    annotations: list[dict[str, object]] = []
    for image, sample in enumerate(samples, 1):
        keep = has_area(sample.boxes)
        crowd = sample.ignored[keep].tolist()
        boxes = _xywh(sample.boxes[keep])
        for box, label, is_crowd in zip(boxes, sample.labels[keep].tolist(), crowd, strict=True):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": int(is_crowd),
                }
            )
    return {
        "images": [{"id": image} for image in range(1, len(samples) + 1)],
        "categories": [{"id": index, "name": name} for index, name in enumerate(classes, 1)],
        "annotations": annotations,
    }


def _results(samples: Sequence[Sample], detections: Mapping[str, Detections]) -> list[dict[str, object]]:
    return [
        {"image_id": image, "category_id": label + 1, "bbox": box, "score": score}
        for image, sample in enumerate(samples, 1)
        if (found := detections.get(sample.image_id)) is not None
        for box, label, score in zip(_xywh(found.boxes), found.labels.tolist(), found.scores.tolist(), strict=True)
    ]


def _xywh(boxes: NDArray[np.float32]) -> list[list[float]]:
    exact = boxes.astype(np.float64)
    rows: list[list[float]] = np.concatenate([exact[:, :2], exact[:, 2:] - exact[:, :2]], 1).tolist()
    return rows
