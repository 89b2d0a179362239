"""What a report says of the data: how many images and boxes, how large, and what is wrong with them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmimic.config import Recipe
from qmimic.data.check import Report, check
from qmimic.data.chosen import box_sizes, dataset_fingerprint
from qmimic.data.columns import in_columns
from qmimic.data.formats import load_dataset
from qmimic.data.sample import Dataset
from qmimic.data.splits import TRAIN, VAL
from qmimic.detectors.architectures import finest_stride
from qmimic.report.kept import FOLDER, kept_value
from qmimic.run.keys import check_key

MOST_CHECKED = 5000  # images; each is decoded
FILE = "data.json"


@dataclass(frozen=True)
class Labels:
    """A dataset as a run saw it.

    Attributes:
        splits: name in the recipe, images and boxes.
        classes: name, boxes to learn from and boxes to be found.
        sides: roots of the areas of boxes in pixels at the training size, [N] each, by split.
        stride: of the detector's finest map, pixels.
        small: share of the val boxes whose side is below it, 0..1.
        checked: what `qmimic data check` says; None where it was not asked.
        unchecked: why not; empty if it was.
    """

    splits: tuple[tuple[str, int, int], ...]
    classes: tuple[tuple[str, int, int], ...]
    sides: dict[str, NDArray[np.float32]]
    stride: int
    small: float
    checked: Report | None
    unchecked: str


def read_labels(recipe: Recipe, dataset: Dataset, folder: Path, say: Callable[[str], None]) -> Labels:
    """What is known of a recipe's dataset.

    Args:
        recipe: of the run.
        dataset: that it chooses.
        folder: of the run.
        say: told what takes time.

    Raises:
        InputError: the folder cannot be read.
    """
    splits = in_columns(dataset.splits, dataset.root)
    counts, boxes, sides = {}, {}, {}
    trained = box_sizes(splits[TRAIN], recipe.data.size)
    stride = finest_stride(recipe.detector, trained, recipe.data.size)
    for split in (TRAIN, VAL):
        store, rows = splits[split].store, splits[split].box_rows
        counts[split] = np.bincount(store.labels[rows], minlength=len(dataset.classes))
        boxes[split] = len(rows)
        sides[split] = np.sqrt(box_sizes(splits[split], recipe.data.size).prod(1))
    named = {TRAIN: recipe.data.train if recipe.data.fold is None else "the other parts", VAL: recipe.data.scored}
    images = sum(len(own) for own in splits.values())
    checked, unchecked = None, ""
    if dataset.root is None:
        unchecked = "The data are drawn by qmimic and have no files in which anything could be wrong."
    elif images > MOST_CHECKED:
        unchecked = (
            f"{images:,} images are too many to decode for a report; ask `qmimic data check {recipe.data.root}`."
        )
    else:
        key = check_key(dataset_fingerprint(dataset), recipe)

        def look() -> Report:
            say("The report checks the data.")
            return check(load_dataset(recipe.data.root), recipe.data.size, recipe=recipe)

        checked = kept_value(folder / FOLDER / FILE, key, Report, look)
    return Labels(
        tuple((named[split], len(splits[split]), boxes[split]) for split in (TRAIN, VAL)),
        tuple((name, int(counts[TRAIN][label]), int(counts[VAL][label])) for label, name in enumerate(dataset.classes)),
        sides,
        stride,
        float((sides[VAL] < stride).mean()) if len(sides[VAL]) else math.nan,
        checked,
        unchecked,
    )
