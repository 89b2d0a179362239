"""COCO JSON: each file of instances is a split; boxes are x, y, width, height; category ids may have gaps.

Beside COCO's own `iscrowd` an annotation may have `"difficult": 1`, VOC's flag, which other programs pass over; other
sets' `ignore` is read as that flag.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from qmimic.data.accounts import Tally, data_files
from qmimic.data.coco_file import Annotation, CocoFile, load
from qmimic.data.labels import (
    Folder,
    by_folded_name,
    file_of,
    finite,
    folded,
    is_picture,
    locate,
    make_sample,
    number,
    reserve,
    same_labels,
    stated_size,
)
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.errors import InputError
from qmimic.files import open_file

SPLITS = ("train", "val", "valid", "test")
MOST_LOOKED_AT = 1000  # JSON files beside those that are read


def files(root: Path) -> dict[str, Path]:
    """The instance files of a folder by split name; of two for one split the nearer to the root counts.

    Raises:
        InputError: two files that are equally near are of one split.
    """
    found: dict[str, Path] = {}
    for path in _jsons(root):
        split = _split_name(root, path)
        if split is None:
            continue
        first = found.setdefault(split, path)
        if first is not path and (_depth(root, first), first.suffixes) == (_depth(root, path), path.suffixes):
            raise InputError(f"{first} and {path} are both of the split {split!r}; move one of them away.")
    if not found:
        others = [path for path in _jsons(root) if _looks_like_coco(path)]
        if len(others) == 1:  # Label Studio's result.json, FiftyOne's labels.json: one file, no split in its name
            return {"train": others[0]}
        told = {path: [word for word in re.split(r"[^a-z]+", path.stem.lower()) if word in SPLITS] for path in others}
        if all(len(words) == 1 for words in told.values()) and len({own[0] for own in told.values()}) == len(told):
            return {words[0]: path for path, words in told.items()}  # train_coco.json, labels-val.json
        if others:
            raise InputError(
                f"{others[0]} and {others[1]} are of COCO's layout and do not tell which split they are; rename them "
                "to instances_train.json and instances_val.json, or move one away."
            )
    return found


def _jsons(root: Path) -> Iterator[Path]:
    yield from sorted(root.glob("*.json"))
    yield from sorted(root.glob("*/*.json"))


def _depth(root: Path, path: Path) -> tuple[int, bool]:
    """How far a file lies from where it is expected: the root or `annotations/` first, then other folders."""
    folder = path.parent
    return (0 if folder == root else 1, folder != root and folder.name.lower() != "annotations")


def _split_name(root: Path, path: Path) -> str | None:
    name = path.stem
    if name.startswith("."):
        return None
    if name.startswith("instances_"):
        return name.removeprefix("instances_").removesuffix("2017")
    if name == "_annotations.coco":
        return "train" if path.parent == root else path.parent.name
    if name in SPLITS:
        return name
    if name == "labels" and path.parent != root and (path.parent / "data").is_dir():
        return path.parent.name
    return None


def _looks_like_coco(path: Path) -> bool:
    if path.name.startswith(".") or path.parent.name.startswith("."):
        return False
    with open_file(path) as file:
        head = file.read(1 << 16)
        file.seek(max(0, os.fstat(file.fileno()).st_size - (1 << 16)))
        tail = file.read(1 << 16)
    return b'"images"' in head + tail and b'"categories"' in head + tail


def sniff(root: Path) -> bool:
    """Whether a folder looks like COCO."""
    return bool(files(root))


def read(root: Path) -> Dataset:
    """Read a COCO folder. A category's id counts within its own file: files are joined by the names of categories.

    Classes are in order of their lowest id. A category that is only the supercategory of others and has no box is not
    a class. A picture of which an annotation cannot be read is left out.

    Raises:
        InputError: a JSON file is cut short or not of COCO's layout.
    """
    sources = files(root)
    contents = {split: load(path, root) for split, path in sources.items()}
    classes = _classes(list(contents.values()))
    pictures = [path for path in data_files(root) if is_picture(path)]
    others = by_folded_name(pictures)
    places = {split: _places(root, sources[split], split, content, others) for split, content in contents.items()}
    names = _names(root, places)
    defects = [
        LabelDefect("unused_label_file", str(path.relative_to(root)), "It is of COCO's layout and is not read.")
        for path in islice(_jsons(root), MOST_LOOKED_AT)
        if path not in sources.values() and _looks_like_coco(path)
    ]
    tally = Tally()
    splits: dict[str, tuple[Sample, ...]] = {}
    made: dict[str, Sample] = {}
    for split, content in contents.items():
        source = str(sources[split].relative_to(root))
        index = {c.id: classes.index(c.name) for c in content.categories if c.name in classes}
        own = _samples(source, content, places[split], names[split], index, defects, tally)
        for place, sample in enumerate(own):
            first = made.setdefault(sample.image_id, sample)
            if first is not sample and same_labels(first, sample):  # a picture of two lists is one picture
                own[place] = first
                tally.drop("listed_again", len(sample.boxes))
        splits[split] = tuple(own)
    return Dataset(root.name, root, classes, splits, tuple(defects), accounted=tally.close(pictures, splits))


def ids(root: Path, split: str) -> tuple[dict[int | str, str], dict[int, str]] | None:
    """Names of a split's images and categories by the ids of its file; None if the folder has no such file."""
    sources = files(root)
    if split not in sources:
        return None
    contents = {own: load(path, root) for own, path in sources.items()}
    others = by_folded_name(path for path in data_files(root) if is_picture(path))
    places = {own: _places(root, sources[own], own, content, others) for own, content in contents.items()}
    names = _names(root, places)[split]
    content = contents[split]
    images = {image.id: name for image, name in zip(content.images, names, strict=True)}
    return images, {category.id: category.name for category in content.categories}


def _classes(contents: list[CocoFile]) -> tuple[str, ...]:
    lowest: dict[str, int] = {}
    parents: set[str] = set()
    with_boxes: set[str] = set()
    for content in contents:
        used = {annotation.category_id for annotation in content.annotations}
        for category in sorted(content.categories, key=lambda c: c.id):
            lowest[category.name] = min(lowest.get(category.name, category.id), category.id)
            if category.id in used:
                with_boxes.add(category.name)
            if category.supercategory and category.supercategory != category.name:
                parents.add(category.supercategory)
    return tuple(name for name in sorted(lowest, key=lowest.__getitem__) if name in with_boxes or name not in parents)


def _places(root: Path, source: Path, split: str, content: CocoFile, others: Mapping[str, Path]) -> list[Path]:
    """Where the file's images are, or would be if they were there; `others`: pictures by folded name."""
    folders = [source.parent, root / split, root / f"{split}2017", root / "images", root / "JPEGImages", root]
    folders += [root / "images" / split, root / "images" / f"{split}2017", root / "data", source.parent / "data"]
    folders += [source.parent / "images"]
    found = []
    for image in content.images:
        path = locate(root, folders, image.file_name) or others.get(folded(image.file_name))
        if path is None:
            # Not there; a name that leads out of the root is not followed.
            path = root / split / (PurePosixPath(image.file_name.replace("\0", "?")).name or "nameless")
        found.append(path)
    return found


def _names(root: Path, places: dict[str, list[Path]]) -> dict[str, list[str]]:
    """A name for every picture: the file's without suffix; where several share it with folders, then the suffix."""

    def spellings(path: Path) -> tuple[str, ...]:
        relative = path.relative_to(root) if path.is_relative_to(root) else Path(path.name)
        return path.stem, str(relative.with_name(path.stem)), str(relative)

    times = Counter(form for path in {p for own in places.values() for p in own} for form in set(spellings(path)))

    def name(path: Path) -> str:
        forms = spellings(path)
        return next((form for form in forms if times[form] == 1), forms[-1])

    return {split: [name(path) for path in own] for split, own in places.items()}


def write(root: Folder, dataset: Dataset) -> dict[Path, Sample]:
    """Write all labels as COCO JSON into an empty folder, one file for each split.

    Coordinates come back as the same float32 unless the far side of a box is nearer to 0 than 1e-8 of the near one.

    Returns:
        Where each image belongs: a path relative to `root`, without the suffix of the image's own name.

    Raises:
        InputError: two images have the same name.
    """
    places: dict[Path, Sample] = {}
    categories = [{"id": label + 1, "name": name} for label, name in enumerate(dataset.classes)]
    numbers: dict[Path, int] = {}
    for split, samples in dataset.splits.items():
        images, annotations = [], []
        for sample in samples:
            # An image of two splits has one id, but in each file that split's own boxes.
            place = reserve(places, Path("images"), sample, alike=False)
            image_id = numbers.setdefault(place, len(numbers) + 1)
            width, height = stated_size(sample)
            name = (place.relative_to("images").parent / file_of(place, sample)).as_posix()
            images.append({"id": image_id, "file_name": name, "width": width, "height": height})
            annotations += [{"image_id": image_id, **fields} for fields in _annotations(sample)]
        numbered = [{"id": k, **annotation} for k, annotation in enumerate(annotations, start=1)]
        content = {"images": images, "annotations": numbered, "categories": categories}
        # The reader takes one "2017" off, COCO's own, so a split that ends in it gets another.
        name = f"{split}2017" if split.endswith("2017") else split
        (root / f"instances_{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return places


def _annotations(sample: Sample) -> Iterator[dict[str, Any]]:
    things = zip(sample.boxes.tolist(), sample.labels.tolist(), sample.difficult, sample.crowd, strict=True)
    for (x1, y1, x2, y2), label, difficult, crowd in things:
        width, height = x2 - x1, y2 - y1
        yield {
            "category_id": label + 1,
            "bbox": [number(x1), number(y1), number(width), number(height)],
            "area": number(max(width, 0.0) * max(height, 0.0)),
            "iscrowd": int(crowd),
            **({"difficult": 1} if difficult else {}),
        }


def _samples(
    source: str,
    content: CocoFile,
    places: list[Path],
    names: list[str],
    index: dict[int, int],
    defects: list[LabelDefect],
    tally: Tally,
) -> list[Sample]:
    defects += [LabelDefect("bad_label", source, fault) for fault in content.faults]
    tally.labels += len(content.images) + content.unread[0]
    tally.boxes += len(content.annotations) + content.unread[1]
    tally.labels_out["unreadable_label"] += content.unread[0]
    tally.boxes_out["unreadable_label"] += content.unread[1]
    own: dict[int | str, list[Annotation]] = {}
    for annotation in content.annotations:
        own.setdefault(annotation.image_id, []).append(annotation)
    samples: dict[str, Sample] = {}
    times = Counter(image.id for image in content.images)
    for name, image, path in zip(names, content.images, places, strict=True):
        if name in samples or times[image.id] > 1:
            text = f"{image.file_name} or its id {image.id} is listed twice."
            defects.append(LabelDefect("bad_label", source, text))
            tally.drop("listed_twice", len(own.pop(image.id, [])), path)
            continue
        boxes, labels, crowd, difficult = [], [], [], []
        whole = image.id not in content.broken
        mine = own.pop(image.id, [])
        for annotation in mine:
            corners = annotation.corners
            if not finite(*corners):
                defects.append(LabelDefect("bad_label", source, f"A box of {image.file_name} is not finite."))
                whole = False
            elif annotation.category_id not in index:
                text = f"{image.file_name} has the category {annotation.category_id}, which is not listed."
                defects.append(LabelDefect("unknown_class", source, text))
                whole = False
            else:
                boxes.append(corners)
                labels.append(index[annotation.category_id])
                crowd.append(annotation.iscrowd)
                difficult.append(annotation.difficult or annotation.ignore == 1)
        if not whole:  # an object that cannot be read must not be taught as background
            tally.drop("unreadable_label", len(mine), path)
            continue
        size = (image.width, image.height) if image.width and image.height else None
        samples[name] = make_sample(name, path, boxes, labels, size, difficult, crowd)
    for image_id, mine in own.items():
        defects.append(LabelDefect("label_without_image", source, f"Boxes of the unknown image {image_id}."))
        tally.boxes_out["without_picture"] += len(mine)
    return list(samples.values())
