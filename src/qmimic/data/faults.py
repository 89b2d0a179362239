"""What is wrong with labels and pictures: one list, by which `data check` fails and training refuses."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qmimic.config import DetectorConfig
from qmimic.data.accounts import Accounts
from qmimic.data.labels import is_file
from qmimic.data.sample import Dataset, LabelDefect, Sample, has_area, leaves
from qmimic.errors import InputError

WHOLE = ("unreadable_image", "label_without_image", "size_mismatch")  # nothing of such a picture can be used
CAPS = ("pre_nms", "post_nms", "max_detections")  # settings of detectors that cap what they find in a picture


@dataclass(frozen=True)
class Seen:
    """What a picture is.

    Attributes:
        size: width and height.
        pixels: a number that pictures of equal pixels share.
    """

    size: tuple[int, int]
    pixels: int


@dataclass(frozen=True)
class Sifted:
    """A dataset's samples, each looked at once.

    Attributes:
        good: by `id` of the sample as read: without bad boxes, the others clipped to their picture, with its true
            size; samples that cannot be used are not there.
        defects: what was wrong.
        accounted: the dataset's accounts after that, None if it has none.
    """

    good: Mapping[int, Sample]
    defects: tuple[LabelDefect, ...]
    accounted: Accounts | None


def sift(dataset: Dataset, seen: Mapping[int, Seen | InputError]) -> Sifted:
    """Tell good from bad.

    Args:
        dataset: as read.
        seen: by `id` of every sample what its picture is, or what is wrong with it.
    """
    good: dict[int, Sample] = {}
    defects: list[LabelDefect] = []
    lost: dict[tuple[str, object], str] = {}
    lost_boxes: Counter[str] = Counter()
    for sample in _distinct(dataset):
        found = seen[id(sample)]
        own = [unreadable(sample, found)] if isinstance(found, InputError) else label_faults(sample, found.size)
        defects += own
        whole = next((one.kind for one in own if one.kind in WHOLE), None)
        if isinstance(found, InputError) or whole is not None:
            if whole is not None and whole != "label_without_image":  # readers count these
                lost["pictures", sample.image or sample.image_id] = whole
                lost["labels", id(sample)] = whole
                lost_boxes[whole] += len(sample.boxes)
            continue
        width, height = found.size
        boxes = np.clip(sample.boxes, 0, np.array([width, height, width, height], np.float32))
        keep = has_area(boxes)
        lost_boxes["box_without_area"] += int((~keep).sum())
        good[id(sample)] = replace(kept(sample, keep), boxes=boxes[keep], size=found.size, pixels=found.pixels)
    accounts = dataset.accounted
    if accounts is not None:
        pictures, labels, boxes_ = accounts.pictures, accounts.labels, accounts.boxes
        for (sort, _), kind in lost.items():
            if sort == "pictures":
                pictures = pictures.without(kind, 1)
            else:
                labels = labels.without(kind, 1)
        for kind, count in (+lost_boxes).items():
            boxes_ = boxes_.without(kind, count)
        accounts = Accounts(pictures, labels, boxes_)
    return Sifted(good, tuple(defects), accounts)


def unreadable(sample: Sample, error: InputError) -> LabelDefect:
    """The defect of a picture that is missing or cannot be read."""
    there = sample.image is not None and is_file(sample.image)
    return LabelDefect("unreadable_image" if there else "label_without_image", sample.image_id, str(error))


def label_faults(sample: Sample, actual: tuple[int, int]) -> list[LabelDefect]:
    """What is wrong with a sample's labels, its picture being of this width and height."""
    found = []
    width, height = actual
    if sample.size and sample.size != actual:
        text = f"The label says {sample.size[0]} x {sample.size[1]}, the image has {width} x {height}."
        if sample.size[::-1] == actual:
            text += " Width and height are swapped: it was labelled without the rotation that its EXIF asks for."
        found.append(LabelDefect("size_mismatch", sample.image_id, text))
    facts = zip(sample.boxes.tolist(), has_area(sample.boxes), leaves(sample.boxes, actual), strict=True)
    for (x1, y1, x2, y2), solid, outside in facts:
        shown = f"x {x1:g} to {x2:g}, y {y1:g} to {y2:g}"
        if not solid:
            found.append(LabelDefect("box_without_area", sample.image_id, f"The box {shown} has no area."))
        elif outside:
            text = f"The box {shown} leaves the image of {width} x {height}."
            found.append(LabelDefect("box_outside_image", sample.image_id, text))
    return found


def kept(sample: Sample, keep: NDArray[np.bool_]) -> Sample:
    """A sample with some of its boxes, bool [M]."""
    return replace(
        sample,
        boxes=sample.boxes[keep],
        labels=sample.labels[keep],
        difficult=sample.difficult[keep],
        crowd=sample.crowd[keep],
        attributes={name: values[keep] for name, values in sample.attributes.items()},
    )


def once(dataset: Dataset) -> Dataset:
    """The dataset with every box counted once: a box of the same class at the same place is noted and left out."""
    changed: dict[int, Sample] = {}
    notes: list[LabelDefect] = []
    count = 0
    for sample in _distinct(dataset):
        columns = (sample.boxes.tolist(), sample.labels.tolist(), sample.difficult.tolist(), sample.crowd.tolist())
        rows = [(*box, *rest) for box, *rest in zip(*columns, strict=True)]
        if len(set(rows)) < len(rows):
            first = {row: place for place, row in reversed(list(enumerate(rows)))}
            keep = np.zeros(len(rows), np.bool_)
            keep[list(first.values())] = True
            changed[id(sample)] = kept(sample, keep)
            again = len(rows) - len(first)
            count += again
            notes.append(LabelDefect("duplicate_box", sample.image_id, f"{again} of its boxes are there twice."))
    if not changed:
        return dataset
    splits = {split: tuple(changed.get(id(sample), sample) for sample in own) for split, own in dataset.splits.items()}
    accounts = dataset.accounted
    if accounts is not None:
        accounts = replace(accounts, boxes=accounts.boxes.without("duplicate_box", count))
    return replace(dataset, splits=splits, defects=(*dataset.defects, *notes), accounted=accounts)


def limits(config: DetectorConfig, known: Container[str] = CAPS) -> dict[str, int]:
    """The settings that cap what a detector finds in a picture, by their keys in a recipe.

    Args:
        config: the settings.
        known: names of those that the detector's architecture knows.
    """
    return {f"detector.{key}": getattr(config, key) for key in CAPS if key in known}


def crowded(counts: NDArray[np.int64], limits: Mapping[str, int]) -> str | None:
    """A sentence, where pictures hold more objects than a detector of these settings can find; else None.

    Args:
        counts: int64 [N], objects of each picture.
        limits: settings of the detector that cap what it finds in a picture.
    """
    most = int(counts.max(initial=0))
    low = {name: value for name, value in limits.items() if value < most}
    if not low:
        return None
    over = int((counts > min(low.values())).sum())
    shown = ", ".join(f"{name}={value}" for name, value in low.items())
    return (
        f"{over:,} pictures have more objects than can be found with {shown}, one has {most:,}; raise "
        f"{'it' if len(low) == 1 else 'them'} to find all."
    )


def _distinct(dataset: Dataset) -> Iterable[Sample]:
    """Every sample once; one of several splits is one object."""
    return {id(sample): sample for samples in dataset.splits.values() for sample in samples}.values()
