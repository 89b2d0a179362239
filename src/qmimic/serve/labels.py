"""Detections as label files in one zip, so that a detector helps to label more pictures."""

import io
import zipfile
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, field_validator, model_validator

from qmimic.data.formats import WRITERS
from qmimic.data.labels import SUFFIXES, make_sample, one_line
from qmimic.data.sample import Dataset, Sample, has_area
from qmimic.errors import InputError

SPLIT = "train"
Side = Annotated[int, Field(ge=1, le=1_000_000)]
ClassName = Annotated[str, Field(min_length=1, max_length=200)]


class Strict(BaseModel):
    """JSON that is sent to the server: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Detection(Strict):
    """One object."""

    name: ClassName = Field(alias="class", description="name of its class")
    score: float = Field(ge=0, le=1)
    box: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] = Field(
        description="x1, y1, x2, y2 in pixels of the picture as displayed, from its top left corner"
    )


class LabelledPicture(Strict):
    """A picture's name, its size, and what is in it."""

    name: str = Field(max_length=200, description="file name without folders: photo.jpg")
    width: Side
    height: Side
    detections: list[Detection] = Field(max_length=10_000)

    @field_validator("name")
    @classmethod
    def _is_a_file_s_name(cls, name: str) -> str:
        stem, suffix = PurePosixPath(name).stem, PurePosixPath(name).suffix
        if "/" in name or "\\" in name or ":" in name:
            raise ValueError(f"{name!r} has a folder in it; give the file's name alone")
        if not one_line(name) or not stem.strip(".") or stem != stem.strip() or suffix.lower() not in SUFFIXES:
            raise ValueError(f"{name!r} is not a picture's name; it must end in one of {' '.join(SUFFIXES)}")
        return name


class LabelsWanted(Strict):
    """What to write as label files."""

    format: Literal["coco", "yolo", "voc"]
    classes: list[ClassName] = Field(
        min_length=1, max_length=10_000, description="all class names, in the order of their indices"
    )
    pictures: list[LabelledPicture] = Field(min_length=1, max_length=100_000)

    @model_validator(mode="after")
    def _is_consistent(self) -> "LabelsWanted":
        classes = set(self.classes)
        if len(classes) < len(self.classes) or not all(map(one_line, self.classes)):
            raise ValueError("a class is named twice, or its name has a line break")
        for picture in self.pictures:
            unknown = next((one.name for one in picture.detections if one.name not in classes), None)
            if unknown is not None:
                raise ValueError(f"{picture.name!r} has an object of class {unknown!r}, which is not among `classes`")
        return self


class _Folder:
    """A folder inside a zip, as far as writers of label files need one."""

    def __init__(self, archive: zipfile.ZipFile, place: PurePosixPath) -> None:
        self._archive = archive
        self._place = place

    def __truediv__(self, name: str) -> "_Folder":
        return _Folder(self._archive, self._place / name)

    def mkdir(self, *, parents: bool, exist_ok: bool = False) -> None:
        self._archive.mkdir(str(self._place))

    def write_text(self, data: str, encoding: str) -> int:
        self._archive.writestr(str(self._place), data.encode(encoding), zipfile.ZIP_DEFLATED)
        return len(data)


def labels_zip(wanted: LabelsWanted) -> bytes:
    """A zip of label files in a layout that `qmimic data` reads once the pictures are put beside them.

    Pictures that would share a label file are numbered, as the README.txt in the zip says. Boxes are
    clipped to their pictures; those left without area are dropped.

    Raises:
        InputError: the layout cannot hold a name.
    """
    index = {name: label for label, name in enumerate(wanted.classes)}
    named = _apart([picture.name for picture in wanted.pictures])
    samples = [_sample(picture, name, index) for picture, name in zip(wanted.pictures, named, strict=True)]
    if wanted.format == "voc" and any(name != name.strip() for name in wanted.classes):
        raise InputError("VOC cannot hold class names with spaces around them; take another format.")
    dataset = Dataset("labels", None, tuple(wanted.classes), {SPLIT: samples}, checked=True)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        places = WRITERS[wanted.format].write(_Folder(archive, PurePosixPath()), dataset)
        folder = next(iter(places)).parent
        lines = [f"Put the pictures into the folder {folder.as_posix()}/ beside these labels."]
        pairs = [(one.name, name) for one, name in zip(wanted.pictures, named, strict=True) if one.name != name]
        lines += [f"Rename {old} to {new}: it would share its labels with another picture." for old, new in pairs]
        archive.writestr("README.txt", "\n".join(lines) + "\n")
    return content.getvalue()


def _apart(names: Sequence[str]) -> list[str]:
    """Picture names, with a number appended to any that would share a label file with an earlier one."""
    own = {PurePosixPath(name).stem for name in names}
    taken: set[str] = set()
    found = []
    for name in names:
        path, number = PurePosixPath(name), 1
        stem = path.stem
        while stem in taken or (number > 1 and stem in own):
            number += 1
            stem = f"{path.stem}-{number}"
        taken.add(stem)
        found.append(path.with_stem(stem).name)
    return found


def _sample(picture: LabelledPicture, name: str, index: dict[str, int]) -> Sample:
    boxes = np.array([one.box for one in picture.detections], np.float32).reshape(-1, 4)
    boxes = boxes.clip(0, np.array([picture.width, picture.height] * 2, np.float32))
    kept = [(box, one) for box, one, good in zip(boxes, picture.detections, has_area(boxes), strict=True) if good]
    return make_sample(
        PurePosixPath(name).stem,
        Path(name),  # only its name matters: the size is known, so no writer opens it
        [tuple(box.tolist()) for box, _ in kept],
        [index[one.name] for _, one in kept],
        (picture.width, picture.height),
    )
