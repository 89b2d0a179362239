"""What is wrong with labels and pictures: one list, by which `data check` fails and training refuses."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from qmimic.config import DetectorConfig, Recipe
from qmimic.data.accounts import Accounts
from qmimic.data.images import Look
from qmimic.data.labels import is_file
from qmimic.data.sample import Dataset, LabelDefect, Sample, has_area, leaves
from qmimic.errors import InputError
from qmimic.tables import ARCHITECTURES

WHOLE = ("unreadable_image", "label_without_image", "size_mismatch")  # nothing of such a picture can be used
ALLOW = "data.allow_capped"
CAPS = ("pre_nms", "post_nms", "max_detections")  # settings of detectors that cap what they find in a picture


@dataclass(frozen=True)
class Sifted:
    """A dataset's samples, each looked at once.

    Attributes:
        good: by `id` of the sample as read: without bad boxes, the others clipped to their picture, with its true
            size; samples that cannot be used are not there.
        defects: what was wrong, and what is worth knowing.
        accounted: the dataset's accounts after that, None if it has none.
    """

    good: Mapping[int, Sample]
    defects: tuple[LabelDefect, ...]
    accounted: Accounts | None


def sift(dataset: Dataset, seen: Mapping[int, Look | InputError]) -> Sifted:
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
        own = (
            [unreadable(sample, found)]
            if isinstance(found, InputError)
            else label_faults(sample, found.size, found.turn is not None)
        )
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
    return Sifted(good, (*defects, *_turned(dataset, seen)), accounts)


def _turned(dataset: Dataset, seen: Mapping[int, Look | InputError]) -> list[LabelDefect]:
    """A note of the pictures that EXIF turns: nothing tells whether their labels were drawn with it or without."""
    own = [sample for sample in _distinct(dataset) if isinstance(it := seen[id(sample)], Look) and it.turn]
    if not own:
        return []
    text = f"{len(own):,} pictures are turned by EXIF; labels drawn without it are wrong. One is {own[0].image_id}."
    return [LabelDefect("turned_by_exif", dataset.name, text)]


def unreadable(sample: Sample, error: InputError) -> LabelDefect:
    """The defect of a picture that is missing or cannot be read."""
    there = sample.image is not None and is_file(sample.image)
    return LabelDefect("unreadable_image" if there else "label_without_image", sample.image_id, str(error))


def label_faults(sample: Sample, actual: tuple[int, int], turned: bool) -> list[LabelDefect]:
    """What is wrong with a sample's labels.

    Args:
        sample: any.
        actual: width and height of its picture.
        turned: EXIF turns the picture.
    """
    found = []
    width, height = actual
    if sample.size and sample.size != actual:
        text = f"The label says {sample.size[0]} x {sample.size[1]}, the image has {width} x {height}."
        if sample.size[::-1] == actual:
            text += " Width and height are swapped"
            text += ": it was labelled without the rotation that its EXIF asks for." if turned else "."
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


def limits(recipe: Recipe) -> dict[str, int]:
    """The settings that cap what a recipe's detectors find in a picture, by their keys.

    Those of the student's architecture, and of the teacher's where the run trains one: what it does not find, it does
    not teach.
    """
    kinds = {recipe.detector.architecture}
    if recipe.trains_teacher and any(own.needs_teachers for own in recipe.students.values()):
        kinds.add(recipe.teacher_architecture)
    read = frozenset[str]().union(*(ARCHITECTURES[kind].reads for kind in kinds))
    return {f"detector.{key}": getattr(recipe.detector, key) for key in CAPS if key in read}


def findable(counts: NDArray[np.int64], limits: Mapping[str, int]) -> str | None:
    """A sentence that names the settings, where pictures hold more objects than a detector can find; else None.

    Args:
        counts: int64 [N], objects of each picture that are to be found.
        limits: settings of the detector that cap what it finds in a picture.
    """
    most = int(counts.max(initial=0))
    low = {name: value for name, value in limits.items() if value < most}
    if not low:
        return None
    over = int((counts > min(low.values())).sum())
    shown = ", ".join(f"{name}={value}" for name, value in low.items())
    return f"Pictures with more objects than can be found with {shown}: {over:,}, with up to {most:,}."


def remedy(most: int, limits: Mapping[str, int]) -> str:
    """What to set where a picture holds so many objects, limits as in `findable`: a clause."""
    raised = {name: min(1 << (most - 1).bit_length(), _highest(name)) for name, own in limits.items() if own < most}
    found = ", or " if min(raised.values()) >= most else " to find most of them, and "
    return (
        f"set {' '.join(f'{name}={value}' for name, value in raised.items())}{found}{ALLOW}=true to do without the rest"
    )


def crowds(dataset: Dataset, limits: Mapping[str, int], allowed: bool) -> list[LabelDefect]:
    """The pictures with more objects than a detector can find, limits as in `findable`; notes where that is allowed."""
    found = []
    for sample in _distinct(dataset):
        most = int((~sample.ignored).sum())
        low = {name: value for name, value in limits.items() if value < most}
        if low:
            shown = ", ".join(f"{name}={value}" for name, value in low.items())
            text = f"It has {most:,} objects, more than can be found with {shown}; {remedy(most, limits)}."
            found.append(LabelDefect("allowed_crowd" if allowed else "crowded_image", sample.image_id, text))
    return found


def _highest(key: str) -> int:
    """The highest value that a setting of the detector can have."""
    field = DetectorConfig.model_fields[key.removeprefix("detector.")]
    highest: int = next(rule.le for rule in field.metadata if hasattr(rule, "le"))
    return highest


def _distinct(dataset: Dataset) -> Iterable[Sample]:
    """Every sample once; one of several splits is one object."""
    return {id(sample): sample for samples in dataset.splits.values() for sample in samples}.values()
