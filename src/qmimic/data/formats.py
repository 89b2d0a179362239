"""The tables of dataset formats; a folder's format is found by looking."""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path

from qmimic.data import coco, synthetic, voc, widerface, yolo
from qmimic.data.accounts import data_files, links_not_followed
from qmimic.data.columns import in_columns
from qmimic.data.faults import once, sift
from qmimic.data.images import Look, look
from qmimic.data.labels import Folder, is_picture, read_bytes
from qmimic.data.sample import NOTES, Dataset, LabelDefect, Sample
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
        bare_classes: whether it can hold classes that no box has.
    """

    write: Callable[[Folder, Dataset], dict[Path, Sample]]
    flags: bool = True
    bare_classes: bool = True


# The first that fits is taken: a VOC folder often carries a COCO copy of its boxes.
READERS = {
    "widerface": Reader(widerface.sniff, widerface.read),
    "voc": Reader(voc.sniff, voc.read),
    "coco": Reader(coco.sniff, coco.read),
    "yolo": Reader(yolo.sniff, yolo.read),
    "voc beside the pictures": Reader(voc.sniff_beside, voc.read),
}
WRITERS = {
    "voc": Writer(voc.write, bare_classes=False),
    "coco": Writer(coco.write),
    "yolo": Writer(yolo.write, flags=False),
}


LOOKED_AT = 10_000  # files of a folder that no reader knows


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
    for name, known in READERS.items():
        if known.sniff(root):
            return _noted(root, name, once(known.read(root)))
    raise InputError(
        f"{root} holds no dataset: looked for wider_face_split/ (WIDER FACE), Annotations/ (VOC), instances_*.json "
        f"(COCO), data.yaml or labels/ (YOLO).{_near(root)}"
    )


def _near(root: Path) -> str:
    """What a folder that no reader knows nearly is, and what to do about it; empty if nothing is known."""
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith(".")):
        with contextlib.suppress(InputError):
            if any(known.sniff(folder) for known in READERS.values()):
                return f" There is one in {folder}; name that folder."
    files = list(islice(data_files(root), LOOKED_AT))
    for path in files:
        suffix = path.suffix.lower()
        with contextlib.suppress(InputError):
            if suffix == ".xml" and b"<annotations" in read_bytes(path, root)[:4096]:
                return f" {path.name} is CVAT's own format; export as COCO, Pascal VOC or YOLO."
            if suffix == ".json" and b'"shapes"' in (head := read_bytes(path, root)[:65536]) and b'"points"' in head:
                return f" {path.name} is LabelMe's own format; export as COCO, Pascal VOC or YOLO."
            if suffix == ".json":
                return f" {path.name} is not of COCO's layout; export as COCO, Pascal VOC or YOLO."
        if suffix in (".csv", ".tfrecord", ".parquet", ".ndjson", ".jsonl"):
            return f" {path.name} is a table, which is not read; export as COCO, Pascal VOC or YOLO."
    pictures = sum(is_picture(path) for path in files)
    return f" It holds {pictures:,} pictures without labels." if pictures else ""


def _noted(root: Path, name: str, dataset: Dataset) -> Dataset:
    """The dataset, with notes on what its folder also holds and is not read: other labels, linked folders."""
    notes = [LabelDefect("linked_folder", root.name, text) for text in links_not_followed(root)]
    for other, known in READERS.items():
        with contextlib.suppress(InputError):  # a layout that is not read need not be in order
            if other != name and known.sniff(root):
                text = f"It also holds labels in the layout {other}; they are not read, those of {name} are."
                notes.append(LabelDefect("another_layout", root.name, text))
    return replace(dataset, defects=(*dataset.defects, *notes)) if notes else dataset


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
    sifted = sift(dataset, _seen(dataset))
    bad += [f"{defect.file}: {defect.detail}" for defect in sifted.defects if defect.kind not in NOTES]
    notes = tuple(defect for defect in sifted.defects if defect.kind in NOTES)
    bad = list(dict.fromkeys(bad))  # an image of two splits is bad once
    if bad and not drop_bad:
        raise InputError(
            f"{dataset.root} has {len(bad)} bad labels or images, the first: {bad[0].rstrip('.')}; correct them, "
            "or leave them out (data.drop_bad_boxes=true; `qmimic data index --drop-bad`)."
        )
    kept = {
        split: tuple(sifted.good[id(sample)] for sample in samples if id(sample) in sifted.good)
        for split, samples in dataset.splits.items()
    }
    found = (*dataset.defects, *notes)
    return replace(dataset, splits=in_columns(kept, root), checked=True, accounted=sifted.accounted, defects=found)


def _seen(dataset: Dataset) -> dict[int, Look | InputError]:
    """What every image file is, or what is wrong with it; better now than hours into training."""
    samples = {id(sample): sample for own in dataset.splits.values() for sample in own}
    found = looks({sample.image: dataset.root for sample in samples.values() if sample.image})
    return {key: found[sample.image] for key, sample in samples.items() if sample.image}


def looks(files: Mapping[Path, Path | None]) -> dict[Path, Look | InputError]:
    """What image files are, or what is wrong with them; equal pictures share their number, whatever they are stored as.

    JPEGs are decoded small, which is faster. Where others of the same size are stored in another way, which may
    show the same picture, they are decoded whole.

    Args:
        files: each with the folder that it may not leave.
    """

    def see(path: Path, whole: bool) -> Look | InputError:
        try:
            return look(path, files[path], whole)
        except InputError as error:
            return error

    # Threads that silence Pillow leave the filters in any state; here they are put back.
    with warnings.catch_warnings(), ThreadPoolExecutor() as pool:
        found = dict(zip(files, pool.map(see, files, repeat(False)), strict=True))
        stored: dict[tuple[int, int], set[object]] = {}
        for one in found.values():
            if isinstance(one, Look):
                stored.setdefault(one.size, set()).add((one.drafted, one.drafted and one.turn))
        again = [
            path for path, one in found.items() if isinstance(one, Look) and one.drafted and len(stored[one.size]) > 1
        ]
        found |= zip(again, pool.map(see, again, repeat(True)), strict=True)
    return found
