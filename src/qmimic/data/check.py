"""What is wrong with a dataset, all of it at once, before any training."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from qmimic.config import Recipe
from qmimic.data.accounts import Accounts
from qmimic.data.faults import crowds, limits, sift
from qmimic.data.images import FLAT, Look, look, look_at
from qmimic.data.labels import same_labels
from qmimic.data.letterbox import fit
from qmimic.data.sample import NOTES, Dataset, LabelDefect, Sample
from qmimic.detections import Detections
from qmimic.draw import captioned, contact_sheet, draw
from qmimic.errors import InputError, single_line

BINS = (8, 16, 32, 64, 128, 256)
OUTPUT_STRIDE = 16
DRAWN = 16  # pictures on the sheet
SHOWN = 20  # defects of a kind that a person is shown


@dataclass(frozen=True)
class Report:
    """All defects of a dataset, and what it holds.

    Attributes:
        images, boxes: numbers by split.
        classes: boxes by class.
        size: the training size that was asked about, height and width, pixels.
        sizes: boxes by the square root of their area in pixels at that size; keys are upper bounds.
        attributes: boxes by value of each attribute, for formats that have some.
        small: share of the boxes that are smaller than the output stride, 0..1.
        defects: everything found.
        accounted: pictures, labels and boxes found, used and left out; None where the reader keeps no account.
    """

    images: dict[str, int]
    boxes: dict[str, int]
    classes: dict[str, int]
    size: tuple[int, int]
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
        lines += [
            f"{single_line(split)}: {self.images[split]} images, {self.boxes[split]} boxes" for split in self.images
        ]
        every = sum(self.classes.values()) or 1
        lines += [
            f"class {single_line(name)}: {count} boxes ({100 * count / every:.0f} %)"
            for name, count in self.classes.items()
        ]
        for name, values in self.attributes.items():
            lines.append(f"{name}: " + ", ".join(f"{value}: {count} boxes" for value, count in values.items()))
        lines += [f"box sizes in pixels at the training size ({self.size[0]} x {self.size[1]}):"]
        most = max(self.sizes.values(), default=0) or 1
        lines += [f"  {name:>6} {'#' * round(40 * n / most)} {n}" for name, n in self.sizes.items()]
        if self.small > 0.05:
            lines.append(
                f"{100 * self.small:.0f} % of the boxes are smaller than {OUTPUT_STRIDE} x {OUTPUT_STRIDE} pixels, one "
                "entry of a map of stride 16; from 10 % on, a finer map is chosen for them. A larger data.size helps "
                "more."
            )
        kinds = Counter(defect.kind for defect in self.defects)
        lines += [f"{kind}: {count}" for kind, count in kinds.items()]
        told: Counter[str] = Counter()
        for defect in self.defects:
            told[defect.kind] += 1
            if told[defect.kind] <= SHOWN:
                lines.append(f"  {defect.kind}  {single_line(defect.file)}: {single_line(defect.detail)}")
        lines += [
            f"  {kind}: {count - SHOWN:,} more; --json lists all" for kind, count in told.items() if count > SHOWN
        ]
        lines.append("Something needs mending." if self.exit_code else "Nothing needs mending.")
        return "\n".join(lines)


def check(
    dataset: Dataset,
    size: tuple[int, int],
    tick: Callable[[], None] = lambda: None,
    recipe: Recipe | None = None,
) -> Report:
    """Read every image and every label of a dataset and report all defects.

    Args:
        dataset: as read.
        size: height and width of the network's input, pixels.
        tick: called after each image.
        recipe: whose detectors have to find all objects of a picture, unless it allows others; None: the defaults.
    """
    unions = dataset.unions
    sides: list[np.ndarray[Any, np.dtype[np.float32]]] = []
    first_shown: dict[int, tuple[str, Sample]] = {}
    counts: Counter[int] = Counter()
    attributes: dict[str, Counter[int]] = {}
    shown: dict[str, set[int]] = {}
    seen: dict[int, Look | InputError] = {}
    twice: list[LabelDefect] = []
    for split, samples in dataset.splits.items():
        shown[split] = {int(label) for sample in samples for label in sample.labels[~sample.ignored]}
        if split in unions:
            continue  # the other splits show all of it
        with ThreadPoolExecutor() as pool:
            looks = pool.map(lambda s: _look(dataset, s), samples)
            for sample, found in zip(samples, looks, strict=True):
                tick()
                seen[id(sample)] = found
                counts.update(sample.labels.tolist())
                for name, values in sample.attributes.items():
                    attributes.setdefault(name, Counter()).update(values.tolist())
                if isinstance(found, InputError):
                    continue
                if found.span < FLAT:
                    text = f"Its pixels span {found.span} of 255 levels, as if 16 bits held 10 or 12; check it."
                    twice.append(LabelDefect("nearly_constant_image", sample.image_id, text))
                boxes = sample.boxes * fit(*found.size, size).scale
                sides.append(boxes[:, 2:] - boxes[:, :2])
                twice += _shown_before(split, sample, *first_shown.setdefault(found.pixels, (split, sample)))
    sifted = sift(replace(dataset, splits={s: own for s, own in dataset.splits.items() if s not in unions}), seen)
    sizes, small = _by_size(sides)
    recipe = recipe or Recipe()
    crowded = crowds(dataset, limits(recipe), recipe.data.allow_capped)
    classes = _class_defects(dataset, counts, shown, unions)
    return Report(
        images={split: len(samples) for split, samples in dataset.splits.items()},
        boxes={split: sum(len(s.boxes) for s in samples) for split, samples in dataset.splits.items()},
        classes={name: counts[label] for label, name in enumerate(dataset.classes)},
        size=size,
        sizes=sizes,
        attributes={name: {str(k): own[k] for k in sorted(own)} for name, own in attributes.items()},
        small=small,
        defects=(*dataset.defects, *sifted.defects, *twice, *classes, *crowded),
        accounted=sifted.accounted,
    )


def _by_size(sides: Sequence[np.ndarray[Any, np.dtype[np.float32]]]) -> tuple[dict[str, int], float]:
    """How many boxes there are of each size, and the share that is smaller than an output stride.

    Args:
        sides: of each image, widths and heights [N, 2] at the training size, pixels.
    """
    lengths = np.sqrt(np.clip(np.concatenate([np.zeros((0, 2), np.float32), *sides]), 0, None).prod(1))
    places = np.digitize(lengths, BINS)
    names = [*(f"<{bound}" for bound in BINS), f">={BINS[-1]}"]
    small = float((lengths < OUTPUT_STRIDE).mean()) if len(lengths) else 0.0
    return {name: int((places == place).sum()) for place, name in enumerate(names)}, small


def defects_drawn(dataset: Dataset, defects: Sequence[LabelDefect]) -> Image.Image | None:
    """A contact sheet of the first pictures with a defect, with their labelled boxes and what is wrong; None if none
    can be drawn."""
    samples = {sample.image_id: sample for own in dataset.splits.values() for sample in own}
    cells: dict[str, Image.Image] = {}
    for defect in defects:
        sample = samples.get(defect.file)
        if sample is None or defect.file in cells or len(cells) == DRAWN:
            continue
        try:
            picture = dataset.load(sample)
        except InputError:
            continue
        boxes = Detections(sample.boxes, np.ones(len(sample.boxes), np.float32), sample.labels)
        drawn = draw(picture, boxes, dataset.classes, 0)
        cells[defect.file] = captioned(drawn, f"{defect.file}: {defect.kind.replace('_', ' ')}")
    return contact_sheet(list(cells.values()), columns=min(4, len(cells))) if cells else None


def _shown_before(split: str, sample: Sample, first_split: str, first: Sample) -> list[LabelDefect]:
    """What is wrong with a picture whose pixels were first shown by a sample, which may be itself; at most one."""
    if first_split != split:
        text = f"The same image is {first.image_id} of {first_split}."
        return [LabelDefect("duplicate_across_splits", sample.image_id, text)]
    if not same_labels(first, sample):
        text = f"The same image is {first.image_id}, with other labels; correct one, or remove it."
        return [LabelDefect("same_image_other_labels", sample.image_id, text)]
    return []


def _look(dataset: Dataset, sample: Sample) -> Look | InputError:
    """What a picture is, or what is wrong with it."""
    try:
        return look(sample.image, dataset.root) if sample.image is not None else look_at(dataset.load(sample))
    except InputError as error:
        return error


def _class_defects(
    dataset: Dataset, counts: Counter[int], seen: dict[str, set[int]], unions: frozenset[str]
) -> list[LabelDefect]:
    found = []
    for label, name in enumerate(dataset.classes):
        if not counts[label]:
            found.append(LabelDefect("empty_class", name, "It is listed, but no box has it."))
    alike: dict[str, list[str]] = {}
    for name in dataset.classes:
        alike.setdefault("".join(name.casefold().split()), []).append(name)
    for names in alike.values():
        if len(names) > 1:
            text = f"{' and '.join(map(repr, names))} differ only in case or spaces, but are separate classes."
            found.append(LabelDefect("similar_classes", names[0], text))
    for split, labels in seen.items():
        for label in sorted(labels - seen.get("train", labels)) if split not in unions else ():
            text = f"Its boxes are in {split}, but none that counts is in train."
            found.append(LabelDefect("unknown_class", dataset.classes[label], text))
    for split in ("train", "val"):  # a test split may well be without labels
        if counts and split in seen and not seen[split]:
            text = "No image of the split has a box to find; difficult ones and crowds are none."
            found.append(LabelDefect("no_boxes", split, text))
    if not counts:
        found.append(LabelDefect("no_boxes", dataset.name, "No image has a box."))
    return found
