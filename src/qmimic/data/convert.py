"""The same images and labels in another layout."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qmimic.data.formats import WRITERS
from qmimic.data.images import read_image
from qmimic.data.labels import image_name, one_line
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
    for split in dataset.splits:
        # Split names become names of files and folders.
        if not one_line(split) or "/" in split or split != split.strip() or split.strip(".") == "":
            raise InputError(f"The split {split!r} has no name for a folder; rename it to letters and digits.")
    with building(target) as folder:
        places = writer.write(folder, dataset)
        for parent in {place.parent for place in places}:
            (folder / parent).mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda item: _put(dataset, item[1], folder / item[0].parent), places.items()))
    remarks = [f"{target}: {len(places)} images as {to}, {sum(len(s.boxes) for s in places.values())} boxes"]
    flags = sum(int((sample.difficult | sample.crowd).sum()) for sample in places.values())
    if flags and not writer.flags:
        remarks.append(f"{flags} of them no longer marked as difficult or crowd, which {to} cannot hold")
    if dataset.defects:
        remarks.append(f"{len(dataset.defects)} faulty or missing labels passed over, which `qmimic data check` lists")
    return "; ".join(remarks) + "."


def _put(dataset: Dataset, sample: Sample, folder: Path) -> None:
    """A sample's image into a folder.

    Raises:
        InputError: the image is missing or cannot be read.
    """
    path = folder / image_name(sample)
    if sample.image is None:
        dataset.load(sample).save(path)
    else:
        read_image(sample.image, dataset.root)  # a broken image is refused here, not by whoever trains on the copy
        shutil.copyfile(sample.image, path)
