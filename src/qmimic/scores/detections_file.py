"""Detections as a COCO-results list; entries may name `file_name` and `category` instead of ids."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from qmimic.data import coco
from qmimic.data.labels import read_text
from qmimic.data.sample import Dataset
from qmimic.data.splits import names_of, samples_of
from qmimic.detections import Detections
from qmimic.errors import InputError
from qmimic.files import OTHER_KIND, parse_json, what_is, write_text
from qmimic.plain_words import in_words

Ids = dict[Any, Any]  # ids of a COCO file: of images to their names, of categories to labels

LARGEST = 1e7  # pixels from the origin, and score: above it, float32 no longer tells neighbours apart


class _Entry(BaseModel):
    model_config = ConfigDict(allow_inf_nan=False)

    bbox: tuple[float, float, float, float]
    score: float
    image_id: int | str | None = None
    file_name: str | None = None
    category_id: int | None = None
    category: str | None = None


def read_detections(path: Path, dataset: Dataset, split: str) -> dict[str, Detections]:
    """Detections of a split, by image id, from a file: COCO's results, or what the runtime and `qmimic predict` print.

    `file_name` may include a folder or lack its suffix. Integer ids refer to the COCO file of the split in the
    dataset's folder; without one, `category_id` counts the dataset's classes from 1 and `image_id` is the image's name.

    Raises:
        InputError: the file is cut short, or an entry has an unknown image or category, or a number that is not
            finite; the message gives the entry's index, counted from 0.
    """
    try:
        entries = TypeAdapter(list[_Entry]).validate_python(_listed(_values(read_text(path), path), path))
    except ValidationError as error:
        raise InputError(f"{path} is not a list of detections: {_fault(error)}.") from error
    names = {sample.image_id for sample in samples_of(dataset, split)}
    image_ids, category_ids = coco_ids(dataset, split)
    rows: dict[str, list[tuple[list[float], float, int]]] = {}
    for number, entry in enumerate(entries):
        place = f"{path}: entry {number}"
        image = _image(entry, names, image_ids)
        if image is None:
            given = entry.file_name if entry.file_name is not None else entry.image_id
            if given is None:
                raise InputError(f"{place} names no image; give it an image_id or a file_name.")
            raise InputError(f"{place} is for the image {given!r}, which is not in {split}; name its split.")
        label = category_ids.get(entry.category_id) if entry.category is None else None
        if entry.category in dataset.classes:
            label = dataset.classes.index(str(entry.category))
        if label is None:
            chosen = entry.category if entry.category is not None else entry.category_id
            if chosen is None:
                raise InputError(f"{place} names no category; give it a category_id or a category.")
            raise InputError(f"{place} has the category {chosen!r}; known: {', '.join(dataset.classes)}.")
        x, y, width, height = entry.bbox
        if width < 0 or height < 0:
            raise InputError(f"{place} has a negative width or height; bbox is x, y, width, height.")
        corners = [x, y, x + width, y + height]
        if max(map(abs, [*corners, entry.score])) > LARGEST:
            raise InputError(f"{place} has a side or score beyond {LARGEST:.0f}; bbox is in pixels.")
        rows.setdefault(image, []).append((corners, entry.score, label))
    return {image: _detections(found) for image, found in rows.items()}


def _values(text: str, path: Path) -> Any:
    """A JSON value; or, with one value per line, the list of them."""
    lines = [line for line in text.splitlines() if line.strip()]
    if len(lines) > 1 and all(line.startswith("{") and line.rstrip().endswith("}") for line in lines):
        return [parse_json(line, f"Line {number} of {path}", strict=False) for number, line in enumerate(lines, 1)]
    kind = what_is(path)
    if kind not in ("a JSON file", "an empty file", OTHER_KIND):
        raise InputError(f"{path} is {kind}, not detections; name a JSON file.")
    return parse_json(text, str(path), strict=False)


def _listed(value: Any, path: Path) -> Any:
    """What the runtime and `qmimic predict` print for each picture, as a list of entries; anything else as it is."""
    if isinstance(value, dict):
        value = value.get("pictures", [value])
    if not isinstance(value, list) or not all(isinstance(one, dict) and "detections" in one for one in value):
        return value
    entries = []
    for picture in value:
        for number, one in enumerate(picture["detections"]):
            try:
                x1, y1, x2, y2 = (float(side) for side in one["box"])
                own = {"bbox": (x1, y1, x2 - x1, y2 - y1), "score": one["score"], "category": one["class"]}
                entries.append({**own, "file_name": picture["picture"]})
            except (KeyError, TypeError, ValueError) as error:
                place = f"{path}: detection {number} of {picture.get('picture')!r}"
                raise InputError(f"{place} needs box, class and score; write the file again.") from error
    return entries


def write_detections(
    path: Path, found: Mapping[str, Detections], classes: tuple[str, ...], ids: tuple[Ids, Ids] = ({}, {})
) -> None:
    """Write detections, by image id, as a list that `read_detections` reads: COCO's results with names in place of ids.

    Args:
        path: of the file.
        found: detections by image id.
        classes: names of the labels.
        ids: from `coco_ids`; an image with an id gets it beside its name, so that COCO's own tools can read the file.

    Raises:
        InputError: the file cannot be written.
    """
    image_ids, category_ids = ({name: number for number, name in own.items()} for own in ids)
    entries: list[dict[str, Any]] = []
    for image, one in found.items():
        rows = zip(one.boxes.tolist(), one.scores.tolist(), one.labels.tolist(), strict=True)
        for box, score, label in rows:
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            entry = {"file_name": image, "category": classes[label], "bbox": bbox, "score": score}
            if image in image_ids and label in category_ids:
                entry |= {"image_id": image_ids[image], "category_id": category_ids[label]}
            entries.append(entry)
    write_text(path, json.dumps(entries))


def _image(entry: _Entry, names: set[str], image_ids: dict[Any, str]) -> str | None:
    """The image that an entry belongs to; None if it is not in the split."""
    if entry.file_name is not None:
        # Exact names first: images may be called `a` and `a.b`, where `.b` is not a suffix.
        path = Path(entry.file_name)
        candidates = [entry.file_name, str(path.parent / path.stem), path.name, path.stem]
    elif entry.image_id is not None:
        candidates = [image_ids.get(entry.image_id, str(entry.image_id))]
    else:
        candidates = []
    return next((name for name in candidates if name in names), None)


def _fault(error: ValidationError) -> str:
    """The first fault as a clause that names the entry and the key."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"]]
    if not place:
        return f"the top level {in_words(first)}"
    key = f", {'.'.join(place[1:])}" if place[1:] else ""
    return f"entry {place[0]}{key}: {in_words(first)}"


def coco_ids(dataset: Dataset, split: str) -> tuple[Ids, Ids]:
    """Image ids to names and category ids to labels, from the COCO file of the split if the folder has one."""
    by_position: dict[Any, int] = {number: label for label, number in enumerate(range(1, len(dataset.classes) + 1))}
    found = coco.ids(dataset.root, "+".join(names_of(dataset, split))) if dataset.root else None
    if found is None:
        return {}, by_position
    images: dict[Any, str] = dict(found[0])
    categories = {number: dataset.classes.index(name) for number, name in found[1].items() if name in dataset.classes}
    return images, categories


def _detections(rows: list[tuple[list[float], float, int]]) -> Detections:
    rows = sorted(rows, key=lambda row: -row[1])
    return Detections(
        np.array([row[0] for row in rows], np.float32),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.int64),
    )
