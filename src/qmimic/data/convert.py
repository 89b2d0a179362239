"""The same images and labels in another layout."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qmimic.data.faults import label_faults
from qmimic.data.formats import WRITERS
from qmimic.data.images import look, read_image
from qmimic.data.labels import file_of, one_line
from qmimic.data.sample import Dataset, Sample
from qmimic.errors import InputError
from qmimic.files import building


def convert(dataset: Dataset, target: Path, to: str) -> str:
    """Write a dataset as another format: image files byte for byte under their own names, boxes as they are, bad ones
    too; embedded data are drawn and become PNG files.

    Args:
        dataset: as read.
        target: the new folder; it appears when it is whole, or not at all.
        to: one of `WRITERS`.

    Returns:
        One sentence for a person: what was written, and what could not be.

    Raises:
        InputError: the target is in use, an image cannot be read, names clash, or the disk is full.
    """
    writer = WRITERS[to]
    broken = [defect for defect in dataset.defects if defect.kind == "unreadable_image"]
    if broken:
        raise InputError(broken[0].detail)
    samples = {id(sample): sample for own in dataset.splits.values() for sample in own}.values()
    with ThreadPoolExecutor() as pool:
        wrong = [fault for fault in pool.map(lambda sample: _wrong_size(sample, dataset.root), samples) if fault]
    if wrong:
        raise InputError(
            f"{dataset.name} has {len(wrong)} pictures of another size than their labels say, the first: {wrong[0]} "
            "Where its boxes belong is not known; correct the labels or put the right pictures there."
        )
    for split in dataset.splits:
        # Split names become names of files and folders.
        if not one_line(split) or "/" in split or split != split.strip() or split.strip(".") == "":
            raise InputError(f"The split {split!r} has no name for a folder; rename it to letters and digits.")
    with building(target) as folder:
        places = writer.write(folder, dataset)
        for parent in {place.parent for place in places}:
            (folder / parent).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda item: _put(dataset, item[1], folder / item[0]), places.items()))
    remarks = [f"{target}: {len(places)} images as {to}, {sum(len(s.boxes) for s in places.values())} boxes"]
    flags = sum(int(sample.ignored.sum()) for sample in places.values())
    if flags and not writer.flags:
        remarks.append(f"{flags} of them no longer marked as difficult or crowd, which {to} cannot hold")
    shown = {int(label) for sample in places.values() for label in sample.labels}
    bare = [name for place, name in enumerate(dataset.classes) if place not in shown]
    if bare and not writer.bare_classes:
        remarks.append(f"without the classes that no box has, which {to} cannot hold: {', '.join(bare)}")
    if dataset.defects:
        remarks.append(f"{len(dataset.defects)} faulty or missing labels skipped; `qmimic data check` lists them")
    return "; ".join(remarks) + "."


def _wrong_size(sample: Sample, root: Path | None) -> str | None:
    """What is wrong, where a label states another size than its picture has."""
    if sample.image is None or sample.size is None:
        return None
    seen = look(sample.image, root, whole=False)
    faults = label_faults(sample, seen.size, seen.turn is not None)
    return next((f"{one.file}: {one.detail}" for one in faults if one.kind == "size_mismatch"), None)


def _put(dataset: Dataset, sample: Sample, place: Path) -> None:
    """A sample's image to its place, which lacks the suffix.

    Raises:
        InputError: the image is missing or cannot be read.
    """
    path = place.parent / file_of(place, sample)
    if sample.image is None:
        dataset.load(sample).save(path)
    else:
        read_image(sample.image, dataset.root)  # a broken image is refused here, not by whoever trains on the copy
        shutil.copyfile(sample.image, path)
