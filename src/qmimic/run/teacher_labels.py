"""A teacher's labels as they lie on disk: in COCO's layout, with the facts about them, read back as pictures."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from qmimic.data.coco_file import Annotation, load
from qmimic.data.columns import Columns, in_columns
from qmimic.data.loader import Loader, Mixture
from qmimic.data.sample import Dataset, Sample
from qmimic.data.splits import UNLABELLED
from qmimic.data.unlabelled import Unlabelled
from qmimic.detections import Detections
from qmimic.errors import InputError
from qmimic.files import LARGE, read_bytes, read_json, write_text
from qmimic.run.folder import LABELS, LABELS_FACTS
from qmimic.run.keys import mixed_key
from qmimic.run.prepare import Prepared, pixel_cache
from qmimic.scores.thresholds import LEAST_BOXES, Threshold

FACTS = "labels.json"
FILE = f"instances_{UNLABELLED}.json"

Count = Annotated[int, Field(ge=0)]


@checked_dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False, extra="forbid"))
class Labelled:
    """A class, as a teacher labelled it.

    Attributes:
        name: of the class.
        threshold: lowest score of a box that was taken, and what such boxes are worth on val.
        taken, in_doubt: boxes in the unlabelled pictures that are objects, and that count for nothing.
    """

    name: str
    threshold: Threshold
    taken: Count
    in_doubt: Count


@checked_dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False, extra="forbid"))
class Facts:
    """What a teacher's labels are.

    Attributes:
        pictures, used: how many there are, and how many got a label.
        chosen_on: where the thresholds were chosen, in words.
        classes: one after another.
        sum: of the file of labels.
        most, full: boxes that a picture can have, and pictures that have as many.
    """

    pictures: Count
    used: Count
    chosen_on: str
    classes: tuple[Labelled, ...]
    sum: str
    most: Count = 0
    full: Count = 0

    @property
    def boxes(self) -> int:
        """Boxes that were taken for objects."""
        return sum(one.taken for one in self.classes)

    def said(self) -> str:
        """All of it in a few sentences."""
        shared = [one.name for one in self.classes if one.threshold.score is not None and not one.threshold.own]
        few = (
            f" With fewer than {LEAST_BOXES} boxes there, {', '.join(shared)} share one of all classes."
            if shared
            else ""
        )
        boxes = f"{self.most:,} box{'' if self.most == 1 else 'es'}"
        full = (
            f" {self.full:,} of them have {boxes}, as many as are kept; objects beyond these are taught as background."
            if self.full
            else ""
        )
        return (
            f"The teacher labelled {self.used:,} of {self.pictures:,} pictures with {self.boxes:,} boxes, from the "
            f"score of the best F1 on {self.chosen_on}: {'; '.join(map(_said_of, self.classes))}.{few}{full}"
        )


def _said_of(one: Labelled) -> str:
    own = one.threshold
    if own.score is None:
        return f"{one.name} none, since there it is found wrongly or not at all ({one.in_doubt:,} in doubt)"
    right = "" if own.precision is None else f", {100 * own.precision:.0f} % right there"
    found = "" if own.recall is None else f", {100 * own.recall:.0f} % found there"
    return f"{one.name} {one.taken:,} from {own.score:.2f} on ({one.in_doubt:,} in doubt{right}{found})"


@dataclass(frozen=True)
class TeacherLabels:
    """Pictures with a teacher's labels.

    Attributes:
        key: of all that decides them.
        folder: with the labels in COCO's layout, the facts and a picture.
        facts: what they are.
        pictures: all of them, without labels.
        dataset: all of them in the same order, with the labels; boxes in doubt are difficult ones.
    """

    key: str
    folder: Path
    facts: Facts
    pictures: Unlabelled
    dataset: Dataset

    def joined(self, prepared: Prepared) -> Prepared:
        """The run, whose training batches are mixed of labelled pictures and of those of these that got a label."""
        size = prepared.train.size
        recipe = prepared.recipe.changed({"data.size": size})
        cache = pixel_cache(self.pictures.dataset, UNLABELLED, recipe)
        others = Loader(self.dataset, UNLABELLED, size, prepared.train.batch_size, cache)
        objects = [bool((~sample.difficult).any()) for sample in self.dataset.splits[UNLABELLED]]
        train = Mixture(prepared.train, others, np.flatnonzero(objects), recipe.data.unlabelled_share)
        return replace(prepared, train=train, key=mixed_key(recipe, prepared.key, self.key))


def read_facts(folder: Path) -> tuple[Facts, Path]:
    """What the labels of a finished run are, and where they lie.

    Args:
        folder: of the run.

    Raises:
        MissingError: its teacher labelled nothing.
        InputError: qmimic did not write its file.
    """
    tree = read_json(folder / LABELS_FACTS)
    try:
        key, facts = TypeAdapter(tuple[Annotated[str, Field(pattern="^[0-9a-f]{12}$")], Facts]).validate_python(
            (tree["key"], tree["facts"])
        )
    except (ValidationError, TypeError, KeyError) as error:
        raise InputError(
            f"{folder / LABELS_FACTS} does not describe a teacher's labels; run the recipe again."
        ) from error
    return facts, folder / LABELS / key


def write_facts(folder: Path, labels: TeacherLabels) -> None:
    """Note in a run's folder which labels its students learnt from. Raises: as `write_text`."""
    write_text(folder / LABELS_FACTS, json.dumps({"key": labels.key, "facts": asdict(labels.facts)}, indent=1))


def as_coco(
    samples: Columns, found: Sequence[Detections], taken: Sequence[NDArray[np.bool_]], classes: Sequence[str]
) -> dict[str, Any]:
    """Labels in COCO's layout; boxes in doubt are `difficult`, and every box has its score."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (sample, one, sure) in enumerate(zip(samples, found, taken, strict=True), start=1):
        assert sample.size is not None, "every picture was looked at"
        name = (
            os.path.relpath(sample.image, samples.root) if sample.image and samples.root else f"{sample.image_id}.png"
        )
        images.append({"id": number, "file_name": name, "width": sample.size[0], "height": sample.size[1]})
        rows = zip(one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), sure.tolist(), strict=True)
        for (x1, y1, x2, y2), score, kind, certain in rows:
            x, y, width, height = (round(side, 2) for side in (x1, y1, x2 - x1, y2 - y1))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": kind + 1,
                    "bbox": [x, y, width, height],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "difficult": int(not certain),
                    "score": round(score, 4),
                }
            )
    categories = [{"id": place, "name": name} for place, name in enumerate(classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def read_labels(key: str, folder: Path, pictures: Unlabelled) -> TeacherLabels | None:
    """Labels that were made before; None if they are not there, or not as they were written."""
    try:
        facts = TypeAdapter(Facts).validate_python(read_json(folder / FACTS))
        if checksum(read_bytes(folder / FILE, LARGE)) != facts.sum:
            return None
        content = load(folder / FILE, folder)
    except (InputError, ValidationError):
        return None
    own: list[list[Annotation]] = [[] for _ in content.images]
    for annotation in content.annotations:
        own[int(annotation.image_id) - 1].append(annotation)
    samples = tuple(_with_labels(*one) for one in zip(pictures.samples, own, strict=True))
    splits = in_columns({UNLABELLED: samples}, pictures.dataset.root)
    return TeacherLabels(key, folder, facts, pictures, replace(pictures.dataset, splits=splits))


def _with_labels(sample: Sample, found: Sequence[Annotation]) -> Sample:
    return replace(
        sample,
        boxes=np.array([one.corners for one in found], np.float32).reshape(-1, 4),
        labels=np.array([one.category_id - 1 for one in found], np.int64),
        difficult=np.array([one.difficult for one in found], np.bool_),
        crowd=np.zeros(len(found), np.bool_),
    )


def checksum(content: bytes) -> str:
    """SHA-256 of the file of labels."""
    return hashlib.sha256(content).hexdigest()
