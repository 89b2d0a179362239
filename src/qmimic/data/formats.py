"""The tables of dataset formats; a folder's format is found by looking."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from qmimic.data import coco, synthetic, voc, widerface, yolo
from qmimic.data.columns import in_columns
from qmimic.data.images import whole_size
from qmimic.data.labels import Folder
from qmimic.data.sample import NOTES, Dataset, Sample, has_area, leaves
from qmimic.errors import InputError


@dataclass(frozen=True)
class Reader:
    """How to know and read a layout.

    Attributes:
        sniff: whether a folder looks like it.
        read: the dataset of a folder.
    """

    sniff: Callable[[Path], bool]
    read: Callable[[Path], Dataset]


@dataclass(frozen=True)
class Writer:
    """How to write a layout.

    Attributes:
        write: all labels of a dataset into an empty folder; returns where each image belongs, a path relative to
            the folder without the suffix, which stays the image's own.
        flags: whether it can hold which boxes are difficult or crowd.
    """

    write: Callable[[Folder, Dataset], dict[Path, Sample]]
    flags: bool = True


# The first that fits is taken: a VOC folder often carries a COCO copy of its boxes.
READERS = {
    "widerface": Reader(widerface.sniff, widerface.read),
    "voc": Reader(voc.sniff, voc.read),
    "coco": Reader(coco.sniff, coco.read),
    "yolo": Reader(yolo.sniff, yolo.read),
}
WRITERS = {"voc": Writer(voc.write), "coco": Writer(coco.write), "yolo": Writer(yolo.write, flags=False)}


def load_dataset(path: Path | str) -> Dataset:
    """Read a labelled folder of any known format, or the embedded set `synthetic:digits`.

    Raises:
        InputError: there is no such folder, it is of no known format, or its labels cannot be read.
    """
    if str(path) == synthetic.NAME:
        return synthetic.digits()
    root = Path(path)
    if not root.is_dir():
        raise InputError(f"There is no folder {root}; name the folder of a dataset, or {synthetic.NAME}.")
    for known in READERS.values():
        if known.sniff(root):
            return known.read(root)
    raise InputError(
        f"{root} holds no dataset: looked for wider_face_split/ (WIDER FACE), Annotations/ (VOC), instances_*.json "
        "(COCO), data.yaml or labels/ (YOLO)."
    )


def usable(dataset: Dataset, drop_bad: bool) -> Dataset:
    """The dataset without boxes that cannot be trained on.

    Args:
        dataset: as read.
        drop_bad: drop bad boxes, labels and images; if False, any of them is an error.

    Returns:
        Boxes clipped to their images, those without area and samples without a readable image left out; its splits
        are `Columns` of one store.

    Raises:
        InputError: there is something bad and `drop_bad` is False.
    """
    if dataset.checked:
        return dataset
    root = dataset.root
    if root is None:
        return replace(dataset, splits=in_columns(dataset.splits, root), checked=True)
    bad = [f"{defect.file}: {defect.detail}" for defect in dataset.defects if defect.kind not in NOTES]
    sizes = _sizes(dataset)
    good: dict[int, Sample] = {}  # by identity: a sample of several splits stays one
    for sample in {id(sample): sample for samples in dataset.splits.values() for sample in samples}.values():
        assert sample.image is not None
        size = sizes[sample.image]
        if isinstance(size, InputError):
            bad.append(str(size))
            continue
        width, height = size
        boxes = np.clip(sample.boxes, 0, np.array([width, height, width, height], np.float32))
        keep = has_area(boxes)
        if not keep.all() or leaves(sample.boxes, (width, height)).any():
            bad.append(f"{sample.image_id}: a box without area or outside its image")
        good[id(sample)] = replace(
            sample,
            boxes=boxes[keep],
            labels=sample.labels[keep],
            difficult=sample.difficult[keep],
            crowd=sample.crowd[keep],
            size=size,
        )
    bad = list(dict.fromkeys(bad))  # an image of two splits is bad once
    if bad and not drop_bad:
        raise InputError(
            f"{dataset.root} has {len(bad)} bad labels or images, the first: {bad[0].rstrip('.')}; mend them, "
            "or leave them out (data.drop_bad_boxes=true, of `data index` --drop-bad)."
        )
    kept = {
        split: tuple(good[id(sample)] for sample in samples if id(sample) in good)
        for split, samples in dataset.splits.items()
    }
    return replace(dataset, splits=in_columns(kept, root), checked=True)


def _sizes(dataset: Dataset) -> dict[Path, tuple[int, int] | InputError]:
    """Width and height of every image file, or what is wrong with it; better now than hours into training."""

    def look(path: Path) -> tuple[int, int] | InputError:
        try:
            return whole_size(path, dataset.root)
        except InputError as error:
            return error

    paths = list({sample.image: None for own in dataset.splits.values() for sample in own if sample.image})
    # Threads that silence Pillow leave the filters in any state; here they are put back.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        return dict(zip(paths, pool.map(look, paths), strict=True))
