"""All scores of a set of detections on a split."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from qmimic.data.sample import Dataset
from qmimic.data.splits import samples_of
from qmimic.detections import Detections
from qmimic.scores.coco import coco_ap
from qmimic.scores.voc import ClassScore, voc_ap


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
    per_class: dict[str, ClassScore]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def score(dataset: Dataset, split: str, found: Mapping[str, Detections]) -> Scores:
    """Score detections, given by image id, on a split.

    Raises:
        InputError: the dataset has no such split.
    """
    samples = samples_of(dataset, split)
    voc = voc_ap(samples, found, dataset.classes)
    present = {name: own for name, own in voc.per_class.items() if own.positives}
    coco = coco_ap(samples, found, dataset.classes)
    return Scores(
        voc07_map50=voc.map07 if present else 0.0,
        voc_map50=voc.map_area if present else 0.0,
        coco_map=coco.ap if present else 0.0,
        per_class=present,
    )


def voc_map50(dataset: Dataset, split: str, found: Mapping[str, Detections]) -> float:
    """Only VOC mAP@0.5 (area under the curve), as `Scores.voc_map50`; 0 without boxes. Raises: as `score`."""
    voc = voc_ap(samples_of(dataset, split), found, dataset.classes)
    return voc.map_area if any(own.positives for own in voc.per_class.values()) else 0.0
