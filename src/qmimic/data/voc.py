"""Pascal VOC: JPEGImages, Annotations and ImageSets/Main, or XML beside the pictures.

VOC boxes are 1-based and inclusive: xmin = x + 1. Many tools count from 0 instead: a folder in which a box begins at 0
is read so. Beside VOC's own `difficult` an object may have `<crowd>1</crowd>`, COCO's flag, which other programs pass
over; and `<origin>1</origin>` in a file says that it counts from 1 whatever its boxes are.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from qmimic.data.accounts import Tally, combined, data_files
from qmimic.data.labels import (
    Folder,
    apart,
    file_of,
    folded,
    is_picture,
    one_line,
    reserve,
)
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.data.voc_file import Annotation, as_xml, is_annotation, read_annotation
from qmimic.data.voc_lists import folders_of, listed_members, lists_of, members_by_folder
from qmimic.errors import InputError
from qmimic.files import inside

HOMES = ("annotations", "annotation", "xmls", "xml", "labels")  # folders of XML files, in any case
YEAR = re.compile(r"VOC\d{4}")


def sniff(root: Path) -> bool:
    """Whether a folder looks like VOC, or holds several folders that do, such as a devkit of several years."""
    return bool(_bases(root))


def sniff_beside(root: Path) -> bool:
    """Whether a folder has annotations beside its pictures, as LabelImg and Roboflow leave them."""
    if _bases(root):
        return False
    folders = [root, *folders_of(root)]
    for folder in [*folders, *(below for own in folders[1:] for below in folders_of(own))]:
        if any(path.suffix.lower() == ".xml" and is_annotation(root, path) for path in folder.iterdir()):
            return True
    return False


def read(root: Path) -> Dataset:
    """Read a VOC folder; classes in order of name.

    Splits are the lists of ImageSets; without lists the folders `train`, `valid` and so on; without these all is the
    split `train`. Of a devkit (`VOC2007` and `VOC2012` beside each other) the splits are called `2007_trainval` and so
    on. A picture with an object that cannot be read is left out.

    Raises:
        InputError: a split's list cannot be read.
    """
    bases = _bases(root)
    if bases in ([], [root]):
        return _read(root)[0]
    parts = {base.name: _read(base) for base in bases}
    names = sorted({name for dataset, _ in parts.values() for name in dataset.classes})
    splits: dict[str, tuple[Sample, ...]] = {}
    defects: list[LabelDefect] = []
    for part, (dataset, listed) in parts.items():
        place = np.array([names.index(name) for name in dataset.classes], np.int64)
        moved = {
            id(sample): replace(sample, image_id=f"{part}/{sample.image_id}", labels=place[sample.labels])
            for samples in dataset.splits.values()
            for sample in samples
        }
        for split, samples in dataset.splits.items():
            splits[_split_of(part, split, listed, len(parts))] = tuple(moved[id(sample)] for sample in samples)
        defects += [replace(defect, file=f"{part}/{defect.file}") for defect in dataset.defects]
    accounted = combined([dataset.accounted for dataset, _ in parts.values() if dataset.accounted])
    return Dataset(root.name, root, tuple(names), splits, tuple(defects), accounted=accounted)


def _split_of(part: str, split: str, listed: bool, parts: int) -> str:
    """A split's name in a folder of several: by year as in VOC's devkit; by folder where no list names it."""
    if YEAR.fullmatch(part):
        return f"{part.removeprefix('VOC')}_{split}"
    if parts == 1:
        return split
    return f"{part}_{split}" if listed else part


def _homes(base: Path) -> list[Path]:
    """The folders of annotations; COCO keeps JSON in one of the same name in lower case."""
    return [
        folder
        for folder in folders_of(base)
        if folder.name == "Annotations"
        or (folder.name.lower() in HOMES and any(path.suffix.lower() == ".xml" for path in data_files(folder)))
    ]


def _bases(root: Path) -> list[Path]:
    """The folder itself, or those in it that are VOC's."""
    if _homes(root):
        return [root]
    return [folder for folder in folders_of(root) if _homes(folder)]


def _read(base: Path) -> tuple[Dataset, bool]:
    """The dataset of one folder, and whether lists name its splits."""
    files = list(data_files(base))
    pictures, copies = apart(path for path in files if is_picture(path))
    homes = _homes(base)
    for folder in homes:
        inside(base, folder)
    sources: dict[str, Path] = {}
    tally, defects = Tally(), list[LabelDefect]()
    for path in sorted((path for path in files if path.suffix.lower() == ".xml"), key=lambda p: (len(p.parts), p)):
        home = next((home for home in homes if path.is_relative_to(home)), None)
        if home is None and not is_annotation(base, path):
            continue
        if home is None and homes:
            tally.labels += 1
            tally.drop("outside_annotations", 0)
            continue
        start = home if home is not None and len(homes) == 1 else base
        sources[path.relative_to(start).with_suffix("").as_posix()] = path
    stems = _stems(pictures)
    found = {key: read_annotation(base, key, path, stems, defects, tally) for key, path in sources.items()}
    parsed = {key: annotation for key, annotation in found.items() if annotation is not None}
    _once(base, parsed, defects, tally)
    shift = _first(base, parsed, defects)
    names = sorted({name for annotation in parsed.values() for name in annotation.names})
    index = {name: label for label, name in enumerate(names)}
    lists = lists_of(base)
    members = (
        listed_members(base, lists, found, parsed, pictures, defects, tally) if lists else members_by_folder(found)
    )
    ids = _ids(members, parsed, bool(lists) or bool(homes))
    samples = {key: annotation.sample(ids[key], index, shift) for key, annotation in parsed.items()}
    splits = {split: tuple(samples[key] for key in own if key in samples) for split, own in members.items()}
    for key in samples.keys() - {key for own in members.values() for key in own}:
        tally.drop("not_listed", len(samples[key].boxes), samples[key].image)
    used = {sample.image for own in splits.values() for sample in own if sample.image}
    beside = {image.parent for image in used}
    for picture in sorted(set(pictures) - used):  # masks lie in folders of their own
        if picture not in tally.pictures_out and picture.parent in beside:
            text = "No split has a label for it."
            defects.append(LabelDefect("image_without_label", picture.relative_to(base).as_posix(), text))
    accounted = tally.close([*pictures, *copies], splits)
    return Dataset(base.name, base, tuple(names), splits, tuple(defects), accounted=accounted), bool(lists)


def _stems(pictures: Sequence[Path]) -> dict[str, list[Path]]:
    """Pictures by name, with and without suffix, and by what other disks make of it."""
    found: dict[str, list[Path]] = {}
    for path in pictures:
        found.setdefault(path.stem, []).append(path)
        found.setdefault(path.name, []).append(path)
    for name, own in list(found.items()):
        if folded(name) != name:
            found.setdefault(folded(name), []).extend(own)
    return found


def _once(base: Path, parsed: dict[str, Annotation], defects: list[LabelDefect], tally: Tally) -> None:
    """Leave out every further annotation of a picture that has one."""
    first: dict[Path, Annotation] = {}
    for key, annotation in list(parsed.items()):
        other = first.setdefault(annotation.image, annotation)
        if other is not annotation:
            names = (one.path.relative_to(base).as_posix() for one in (other, annotation))
            text = f"{' and '.join(names)} are both of {annotation.image.name}; move one of them away."
            defects.append(LabelDefect("two_labels_for_one_image", annotation.path.relative_to(base).as_posix(), text))
            tally.drop("two_labels_for_one_image", len(parsed.pop(key).boxes))


def _first(base: Path, parsed: Mapping[str, Annotation], defects: list[LabelDefect]) -> int:
    """What the folder calls the first column. No 0 can occur where columns are counted from 1."""
    boxes = (box for one in parsed.values() if not one.from_one for box in one.boxes if box[2] > box[0] < box[3])
    if not any(0 in box[:2] for box in boxes):
        return 1
    text = "Some boxes begin at 0, so all boxes of this folder are taken as counted from 0, not from 1."
    defects.append(LabelDefect("counted_from_zero", base.name, text))
    return 0


def _ids(members: Mapping[str, Sequence[str]], parsed: Mapping[str, Annotation], long: bool) -> dict[str, str]:
    """A name for every picture: the annotation's path, without its split's folder where that is not needed."""
    short = {key: key if long else "/".join(PurePosixPath(key).parts[key.split("/")[0] in members :]) for key in parsed}
    times = Counter(short.values())
    return {key: name if name and times[name] == 1 else key for key, name in short.items()}


def write(root: Folder, dataset: Dataset) -> dict[Path, Sample]:
    """Write all labels as VOC into an empty folder; every split keeps its list. Classes without a box are lost.

    Coordinates come back as the same float32 if they are 0 or no nearer to 0 than 1e-8 pixels.

    Returns:
        Where each image belongs: a path relative to `root`, without the suffix of the image's own name.

    Raises:
        InputError: two images have the same name, or a name cannot be held by XML.
    """
    for name in dataset.classes:
        if name != name.strip() or not one_line(name):
            raise InputError(f"VOC cannot hold the class name {name!r}; rename the class or convert to coco.")
    places: dict[Path, Sample] = {}
    lists = root / "ImageSets" / "Main"
    for folder in (lists, root / "Annotations"):
        folder.mkdir(parents=True)
    for split, samples in dataset.splits.items():
        members = [reserve(places, Path("JPEGImages"), sample).relative_to("JPEGImages") for sample in samples]
        text = "".join(f"{member.as_posix()}\n" for member in members)
        (lists / f"{split}.txt").write_text(text, encoding="utf-8")
    for place, sample in places.items():
        member = place.relative_to("JPEGImages")
        if member.parent.parts:
            (root / "Annotations" / str(member.parent)).mkdir(parents=True, exist_ok=True)
        path = root / "Annotations" / f"{member.as_posix()}.xml"
        path.write_text(as_xml(file_of(place, sample), sample, dataset.classes), encoding="utf-8")
    return places
