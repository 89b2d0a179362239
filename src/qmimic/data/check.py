"""What is wrong with a dataset, all of it at once, before any training."""

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from qmimic.data.accounts import Accounts
from qmimic.data.images import levels, picture_facts
from qmimic.data.labels import is_file
from qmimic.data.letterbox import fit
from qmimic.data.sample import NOTES, Dataset, LabelDefect, Sample, has_area, leaves
from qmimic.errors import InputError

BINS = (8, 16, 32, 64, 128, 256)
OUTPUT_STRIDE = 16
FLAT = 16  # levels of 255; a picture that spans fewer shows hardly anything


@dataclass(frozen=True)
class Report:
    """All defects of a dataset, and what it holds.

    Attributes:
        images, boxes: numbers by split.
        classes: boxes by class.
        sizes: boxes by the square root of their area in pixels at the training size; keys are upper bounds.
        attributes: boxes by value of each attribute, for formats that have some.
        small: share of the boxes that are smaller than the output stride, 0..1.
        defects: everything found.
        accounted: pictures, labels and boxes found, used and left out; None where the reader keeps no account.
    """

    images: dict[str, int]
    boxes: dict[str, int]
    classes: dict[str, int]
    sizes: dict[str, int]
    attributes: dict[str, dict[str, int]]
    small: float
    defects: tuple[LabelDefect, ...]
    accounted: Accounts | None = None

    @property
    def exit_code(self) -> int:
        """1 if something needs mending, else 0."""
        return int(any(defect.kind not in NOTES for defect in self.defects))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        accounted = self.accounted.as_json() if self.accounted else None
        return {**asdict(self), "accounted": accounted, "ok": self.exit_code == 0}

    def as_text(self) -> str:
        """For a person."""
        lines = [self.accounted.as_text()] if self.accounted else []
        lines += [f"{split}: {self.images[split]} images, {self.boxes[split]} boxes" for split in self.images]
        every = sum(self.classes.values()) or 1
        lines += [f"class {name}: {count} boxes ({100 * count / every:.0f} %)" for name, count in self.classes.items()]
        for name, values in self.attributes.items():
            lines.append(f"{name}: " + ", ".join(f"{value}: {count} boxes" for value, count in values.items()))
        lines += ["box sizes in pixels at the training size:"]
        most = max(self.sizes.values(), default=0) or 1
        lines += [f"  {name:>6} {'#' * round(40 * n / most)} {n}" for name, n in self.sizes.items()]
        if self.small > 0.05:
            lines.append(
                f"{100 * self.small:.0f} % of the boxes are smaller than the output stride of {OUTPUT_STRIDE} pixels "
                "and will hardly be found; raise data.size or set detector.output_stride=8."
            )
        kinds = Counter(defect.kind for defect in self.defects)
        lines += [f"{kind}: {count}" for kind, count in kinds.items()]
        lines += [f"  {defect.kind}  {defect.file}: {defect.detail}" for defect in self.defects]
        lines.append("Something needs mending." if self.exit_code else "Nothing needs mending.")
        return "\n".join(lines)


def check(dataset: Dataset, size: tuple[int, int]) -> Report:
    """Read every image and every label of a dataset and report all defects.

    Args:
        dataset: as read.
        size: height and width of the network's input, pixels.
    """
    defects = list(dataset.defects)
    unions = dataset.unions
    sides: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    hashes: dict[str, tuple[str, str]] = {}
    counts: Counter[int] = Counter()
    attributes: dict[str, Counter[int]] = {}
    seen: dict[str, set[int]] = {}
    for split, samples in dataset.splits.items():
        seen[split] = {int(label) for sample in samples for label in sample.labels}
        if split in unions:
            continue  # the other splits show all of it
        with ThreadPoolExecutor() as pool:
            facts = list(pool.map(lambda sample: _image_facts(dataset, sample), samples))
        for sample, (actual, digest, span, fault) in zip(samples, facts, strict=True):
            counts.update(sample.labels.tolist())
            for name, values in sample.attributes.items():
                attributes.setdefault(name, Counter()).update(values.tolist())
            if actual is None:
                kind = "unreadable_image" if sample.image and is_file(sample.image) else "label_without_image"
                defects.append(LabelDefect(kind, sample.image_id, fault))
                continue
            defects += _box_defects(sample, actual)
            if span < FLAT:
                text = f"Its pixels span {span} of 255 levels, as of 10 or 12 bits in a file of 16; look at it."
                defects.append(LabelDefect("nearly_constant_image", sample.image_id, text))
            boxes = sample.boxes * fit(*actual, size).scale
            sides.append(boxes[:, 2:] - boxes[:, :2])
            first = hashes.setdefault(digest, (split, sample.image_id))
            if first[0] != split:
                text = f"The same image is {first[1]} of {first[0]}."
                defects.append(LabelDefect("duplicate_across_splits", sample.image_id, text))
    defects += _class_defects(dataset, counts, seen, unions)
    lengths = np.sqrt(np.clip(np.concatenate([np.zeros((0, 2), np.float32), *sides]), 0, None).prod(1))
    places = np.digitize(lengths, BINS)
    names = [f"<{bound}" for bound in BINS] + [f">={BINS[-1]}"]
    return Report(
        images={split: len(samples) for split, samples in dataset.splits.items()},
        boxes={split: sum(len(s.boxes) for s in samples) for split, samples in dataset.splits.items()},
        classes={name: counts[label] for label, name in enumerate(dataset.classes)},
        sizes={name: int((places == place).sum()) for place, name in enumerate(names)},
        attributes={name: {str(k): own[k] for k in sorted(own)} for name, own in attributes.items()},
        small=float((lengths < OUTPUT_STRIDE).mean()) if len(lengths) else 0.0,
        defects=tuple(defects),
        accounted=dataset.accounted,
    )


def _image_facts(dataset: Dataset, sample: Sample) -> tuple[tuple[int, int] | None, str, int, str]:
    """Size of an image, hash of its pixels and the levels that they span, or what is wrong with it."""
    try:
        if sample.image is not None:
            return *picture_facts(sample.image, dataset.root), ""
        image = dataset.load(sample)
    except InputError as error:
        return None, "", 0, str(error)
    return image.size, hashlib.sha256(image.tobytes()).hexdigest(), levels(image), ""


def _box_defects(sample: Sample, actual: tuple[int, int]) -> list[LabelDefect]:
    found = []
    width, height = actual
    if sample.size and sample.size != actual:
        text = f"The label says {sample.size[0]} x {sample.size[1]}, the image has {width} x {height}."
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


def _class_defects(
    dataset: Dataset, counts: Counter[int], seen: dict[str, set[int]], unions: frozenset[str]
) -> list[LabelDefect]:
    found = []
    for label, name in enumerate(dataset.classes):
        if not counts[label]:
            found.append(LabelDefect("empty_class", name, "It is listed, but no box has it."))
    for split, labels in seen.items():
        for label in sorted(labels - seen.get("train", labels)) if split not in unions else ():
            text = f"Its boxes are in {split}, but none is in train."
            found.append(LabelDefect("unknown_class", dataset.classes[label], text))
    if not counts:
        found.append(LabelDefect("no_boxes", dataset.name, "No image has a box."))
    return found
