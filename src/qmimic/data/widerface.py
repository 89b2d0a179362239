"""WIDER FACE (Yang et al., CVPR 2016): its text and MATLAB annotations, faces by event with their attributes."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmimic.data.accounts import Tally, data_files
from qmimic.data.labels import finite, is_file, is_picture, make_sample, read_text
from qmimic.data.matlab import read_matlab
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.errors import InputError
from qmimic.files import MissingError, inside

FOLDER = "wider_face_split"
SPLITS = ("train", "val")  # the test split has no labels
# In the order of a text line, after x, y, width and height.
ATTRIBUTES = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
# Variables of the MATLAB files.
MATLAB_NAMES = ("event_list", "file_list", "face_bbx_list", "gt_list", *(f"{name}_label_list" for name in ATTRIBUTES))


@dataclass(frozen=True)
class FaceImage:
    """One image's annotation.

    Attributes:
        event: its folder, such as "0--Parade".
        name: of the image, without suffix.
        boxes: float64 [M, 4], x, y, width, height in pixels.
        attributes: int64 [M] for each of `ATTRIBUTES`.
        unread: faces that cannot be read, and are not among the boxes.
        counted: int64, which of the boxes a benchmark's subset counts, 0-based; None where the file names no subset.
    """

    event: str
    name: str
    boxes: NDArray[np.float64]
    attributes: dict[str, NDArray[np.int64]]
    counted: NDArray[np.int64] | None = None
    unread: int = 0


def sniff(root: Path) -> bool:
    """Whether a folder looks like WIDER FACE."""
    return (root / FOLDER).is_dir()


def read(root: Path) -> Dataset:
    """Read a WIDER FACE folder: one class; invalid faces are difficult, so neither learnt nor learnt against.

    An image with a face that cannot be read is left out.

    Raises:
        InputError: there is no annotation file, or one cannot be read.
    """
    splits: dict[str, tuple[Sample, ...]] = {}
    defects: list[LabelDefect] = []
    tally = Tally()
    seen: set[Path | None] = set()
    for split in SPLITS:
        text, mat = (root / FOLDER / f"wider_face_{split}{ending}" for ending in ("_bbx_gt.txt", ".mat"))
        if is_file(text):
            images = list(_text_images(text, root, defects))
        elif is_file(mat):
            images = list(mat_images(mat, root))
        else:
            continue
        folder = root / f"WIDER_{split}" / "images"
        own = []
        for image in images:
            sample = _sample(folder, image)
            count = len(sample.boxes) + image.unread
            tally.labels += 1
            tally.boxes += count
            if image.unread:  # a face must not be taught as background
                tally.drop("unreadable_label", count, sample.image)
            elif sample.image in seen:
                detail = f"{sample.image_id} is listed twice in {split}."
                defects.append(LabelDefect("bad_label", FOLDER, detail))
                tally.drop("listed_twice", count)
            else:
                own.append(sample)
                seen.add(sample.image)
        splits[split] = tuple(own)
    if not splits:
        raise InputError(
            f"{root / FOLDER} holds no annotations; put wider_face_train_bbx_gt.txt or wider_face_train.mat there."
        )
    pictures = [path for path in data_files(root) if is_picture(path)]
    return Dataset(root.name, root, ("face",), splits, tuple(defects), accounted=tally.close(pictures, splits))


def _sample(folder: Path, image: FaceImage) -> Sample:
    path = inside(folder, folder / image.event / f"{image.name}.jpg")
    x, y, width, height = image.boxes.T.tolist()
    sides = [(a, b, a + c, b + d) for a, b, c, d in zip(x, y, width, height, strict=True)]
    invalid = (image.attributes["invalid"] != 0).tolist()
    return make_sample(
        f"{image.event}/{image.name}", path, sides, [0] * len(sides), None, invalid, attributes=image.attributes
    )


def _text_images(path: Path, root: Path, defects: list[LabelDefect]) -> Iterator[FaceImage]:
    """The images of a `wider_face_*_bbx_gt.txt`: a name, a number, that many lines of ten numbers."""
    lines = read_text(path, root).splitlines()
    place = 0
    while place < len(lines):
        name, number = lines[place].strip(), lines[place + 1].strip() if place + 1 < len(lines) else ""
        event, slash, file = name.rpartition("/")
        if not slash or not number.isdecimal() or int(number) > len(lines):
            raise InputError(
                f"{path} has no image and number of faces at line {place + 1}; fetch the annotations again."
            )
        place += 2
        count = int(number)
        rows = []
        for line in lines[place : place + count]:
            values = _numbers(line)
            if values is None:
                defects.append(LabelDefect("bad_label", f"{FOLDER}/{path.name}", f"{name} has a face {line!r}."))
            else:
                rows.append(values)
        if place + count > len(lines):
            text = f"The file ends within the faces of {name}; fetch the annotations again."
            defects.append(LabelDefect("bad_label", f"{FOLDER}/{path.name}", text))
        # An image without faces is followed by a line of zeros.
        place += count if count else int(place < len(lines) and _numbers(lines[place]) is not None)
        table = np.array(rows, np.float64).reshape(-1, 4 + len(ATTRIBUTES))
        attributes = dict(zip(ATTRIBUTES, table[:, 4:].astype(np.int64).T, strict=True))
        yield FaceImage(event, Path(file).stem, table[:, :4], attributes, unread=count - len(rows))


def _numbers(line: str) -> list[float] | None:
    """The ten numbers of a face, None if there are not ten."""
    try:
        values = [float(word) for word in line.split()]
    except ValueError:
        return None
    return values if len(values) == 4 + len(ATTRIBUTES) and finite(*values) else None


def mat_images(path: Path, root: Path | None = None) -> Iterator[FaceImage]:
    """The images of a MATLAB file: annotations, or one of the benchmark's subsets (`wider_easy_val.mat`).

    Raises:
        InputError: the file is missing, cut short, or of another layout.
    """
    try:
        content = read_matlab(path, MATLAB_NAMES, root)
    except MissingError as error:
        raise InputError(f"There is no {path}; WIDER FACE's evaluation tools hold it.") from error
    try:
        yield from _mat_images(content)
    except (KeyError, IndexError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path} is not of WIDER FACE's layout ({error}); take it from its evaluation tools."
        ) from error


def _mat_images(content: dict[str, Any]) -> Iterator[FaceImage]:
    """Every list is one of cells, an event each, and each of these a list of the event's images."""
    for row, event in enumerate(content["event_list"]):
        flags = {name: content[f"{name}_label_list"][row] for name in ATTRIBUTES}
        subset = content["gt_list"][row] if "gt_list" in content else None
        for place, name in enumerate(content["file_list"][row]):
            if not isinstance(event, str) or not isinstance(name, str):
                raise ValueError("an event or an image has no name")
            sides = np.asarray(content["face_bbx_list"][row][place], np.float64).reshape(-1, 4)
            attributes = {key: _whole(own[place]) for key, own in flags.items()}
            if not finite(*sides.ravel().tolist()) or any(len(own) != len(sides) for own in attributes.values()):
                raise ValueError(f"{name} has a face that is not a box")
            counted = None
            if subset is not None:
                counted = _whole(subset[place]) - 1
                if len(counted) and not 0 <= counted.min() <= counted.max() < len(sides):
                    raise ValueError(f"{name} counts a face that it does not have")
            yield FaceImage(event, name, sides, attributes, counted)


def _whole(values: Any) -> NDArray[np.int64]:
    """Numbers as int64 [n].

    Raises:
        ValueError: one is not a whole number.
    """
    found = np.asarray(values, np.float64).reshape(-1)
    if not finite(*found.tolist()) or not (found == np.round(found)).all():
        raise ValueError("an attribute or a place is not a whole number")
    return found.astype(np.int64)
