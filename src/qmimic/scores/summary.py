"""All scores of a set of detections on a split."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qmimic.data.sample import Dataset, Sample
from qmimic.detections import Detections
from qmimic.errors import InputError
from qmimic.scores.coco import coco_map
from qmimic.scores.voc import ClassAP, voc_ap


@dataclass(frozen=True)
class Scores:
    """Scores of detections, 0..1.

    Attributes:
        voc07_map50: VOC mAP at IoU 0.5, 11 points; voc_map50: area under the curve.
        coco_map: COCO mAP, IoU 0.50 to 0.95.
        per_class: VOC average precision by class name; classes without boxes are left out.
    """

    voc07_map50: float
    voc_map50: float
    coco_map: float
    per_class: dict[str, ClassAP]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def score(dataset: Dataset, split: str, found: Mapping[str, Detections]) -> Scores:
    """Score detections, given by image id, on a split.

    Raises:
        InputError: the dataset has no such split.
    """
    samples = samples_of(dataset, split)
    per_class = voc_ap(samples, found, dataset.classes)
    values = list(per_class.values())
    return Scores(
        voc07_map50=float(np.mean([c.ap07 for c in values])) if values else 0.0,
        voc_map50=float(np.mean([c.ap for c in values])) if values else 0.0,
        coco_map=coco_map(samples, found, dataset.classes),
        per_class=per_class,
    )


def samples_of(dataset: Dataset, split: str) -> tuple[Sample, ...]:
    """The samples of a split.

    Raises:
        InputError: the dataset has no such split.
    """
    if split not in dataset.splits:
        raise InputError(f"{dataset.name} has no split {split!r}; its splits: {', '.join(dataset.splits)}.")
    return dataset.splits[split]
