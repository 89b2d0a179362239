"""The dataset that a recipe chooses, and what is known of it at once: a name for it, and the sizes of its boxes."""

import hashlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmimic.config import DataConfig
from qmimic.data import index
from qmimic.data.columns import Columns, in_columns
from qmimic.data.formats import load_dataset, usable
from qmimic.data.letterbox import fit
from qmimic.data.sample import Dataset, has_area
from qmimic.data.splits import choose


def open_dataset(config: DataConfig) -> Dataset:
    """The dataset of a recipe, checked, without what it cannot use; its splits are TRAIN and VAL.

    Raises:
        InputError: the dataset cannot be read or used, or a split is missing.
    """
    root = Path(config.root)
    if index.exists(root):
        dataset = index.read(root, config.drop_bad_boxes)
    else:
        dataset = usable(load_dataset(root), config.drop_bad_boxes)
    return choose(dataset, config.train, config.val, config.fold)


def box_sizes(samples: Columns, size: tuple[int, int]) -> NDArray[np.float32]:
    """Widths and heights of a split's boxes in pixels at the training size, [N, 2], those without area left out.

    Args:
        samples: with images of known sizes.
        size: height and width of the network's input, pixels.
    """
    store, rows = samples.store, samples.box_rows
    known, which = np.unique(samples.image_sizes, axis=0, return_inverse=True)
    scales = np.array([fit(width, height, size).scale for width, height in known], np.float32).reshape(-1, 4)[which]
    boxes = store.boxes[rows]
    keep = has_area(boxes) & ~store.difficult[rows] & ~store.crowd[rows]
    scaled = (boxes * np.repeat(scales, samples.counts, 0))[keep]
    sides: NDArray[np.float32] = scaled[:, 2:] - scaled[:, :2]
    return sides


def dataset_fingerprint(dataset: Dataset) -> str:
    """A name for the labels and images of a dataset's splits; pixels count by size and last change of their files."""
    digest = hashlib.sha256("\n".join(dataset.classes).encode("utf-8", "surrogatepass"))
    for split, samples in in_columns(dataset.splits, dataset.root).items():
        store, boxes = samples.store, samples.box_rows
        digest.update(f"{split} {len(samples)}\n".encode("utf-8", "surrogatepass"))
        for array in (samples.id_bytes, samples.id_lengths, samples.image_lengths, samples.image_times, samples.counts):
            digest.update(array.tobytes())
        for column in (store.boxes, store.labels, store.difficult, store.crowd):
            digest.update(column[boxes].tobytes())
    return digest.hexdigest()[:16]
