"""COCO JSON: each file of instances is a split; boxes are x, y, width, height; category ids may have gaps.

Beside COCO's own `iscrowd` an annotation may have `"difficult": 1`, VOC's flag, which other programs pass over.
"""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import BaseModel, PositiveInt, ValidationError

from qmimic.config import explain
from qmimic.data.labels import Folder, finite, image_name, inside, make_sample, number, read_text, reserve, stated_size
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.errors import InputError


class _Image(BaseModel):
    id: int | str
    file_name: str
    width: PositiveInt | None = None
    height: PositiveInt | None = None


class _Annotation(BaseModel):
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: bool = False
    difficult: bool = False


class _Category(BaseModel):
    id: int
    name: str


class CocoFile(BaseModel):
    """COCO's layout, as far as detection uses it."""

    images: list[_Image]
    annotations: list[_Annotation] = []
    categories: list[_Category] = []


def files(root: Path) -> dict[str, Path]:
    """The instance files of a folder by split name."""
    found: dict[str, Path] = {}
    for path in sorted([*root.glob("*.json"), *root.glob("*/*.json")]):
        name = path.stem
        if name.startswith("instances_"):
            found.setdefault(name.removeprefix("instances_").removesuffix("2017"), path)
        elif name == "_annotations.coco":
            found.setdefault(path.parent.name, path)
        elif name in ("train", "val", "valid", "test"):
            found.setdefault(name, path)
    return found


def sniff(root: Path) -> bool:
    """Whether a folder looks like COCO."""
    return bool(files(root))


def read(root: Path) -> Dataset:
    """Read a COCO folder; classes in order of category id.

    Raises:
        InputError: a JSON file is cut short or not of COCO's layout, or a path leads out of the folder.
    """
    sources = files(root)
    contents = {split: load(path) for split, path in sources.items()}
    categories = {c.id: c.name for content in contents.values() for c in content.categories}
    ids = sorted(categories)
    index = {category: label for label, category in enumerate(ids)}
    defects: list[LabelDefect] = []
    splits = {}
    for split, content in contents.items():
        source = sources[split]
        splits[split] = tuple(_samples(root, source, split, content, index, defects))
    return Dataset(root.name, root, tuple(categories[i] for i in ids), splits, tuple(defects))


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
            images.append({"id": image_id, "file_name": image_name(sample), "width": width, "height": height})
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


def names(content: CocoFile) -> list[str]:
    """Its images' names in their order: the file's without suffix; where several share it with folders, then suffix."""
    paths = [PurePosixPath(image.file_name) for image in content.images]
    spellings = [(path.stem, str(path.parent / path.stem), str(path)) for path in paths]
    times = Counter(name for forms in spellings for name in set(forms))
    return [next((name for name in forms if times[name] == 1), forms[-1]) for forms in spellings]


def _samples(
    root: Path, source: Path, split: str, content: CocoFile, index: dict[int, int], defects: list[LabelDefect]
) -> list[Sample]:
    folders = [source.parent, root / split, root / f"{split}2017", root / "images", root / "JPEGImages", root]
    folders += [root / "images" / split, root / "images" / f"{split}2017"]
    own: dict[int | str, list[_Annotation]] = {}
    for annotation in content.annotations:
        own.setdefault(annotation.image_id, []).append(annotation)
    samples: dict[str, Sample] = {}
    ids = Counter(image.id for image in content.images)
    for name, image in zip(names(content), content.images, strict=True):
        if name in samples or ids[image.id] > 1:
            text = f"{image.file_name} or its id {image.id} is listed twice."
            defects.append(LabelDefect("bad_label", source.name, text))
            own.pop(image.id, None)
            continue
        boxes, labels, crowd, difficult = [], [], [], []
        for annotation in own.pop(image.id, []):
            x, y, width, height = annotation.bbox
            if not finite(x, y, x + width, y + height):
                defects.append(LabelDefect("bad_label", source.name, f"A box of {image.file_name} is not finite."))
            elif annotation.category_id not in index:
                text = f"{image.file_name} has the category {annotation.category_id}, which is not listed."
                defects.append(LabelDefect("unknown_class", source.name, text))
            else:
                boxes.append((x, y, x + width, y + height))
                labels.append(index[annotation.category_id])
                crowd.append(annotation.iscrowd)
                difficult.append(annotation.difficult)
        candidates = [folder / image.file_name for folder in folders]
        path = inside(
            root, next((candidate for candidate in candidates if _is_file(candidate)), root / split / image.file_name)
        )
        size = (image.width, image.height) if image.width and image.height else None
        samples[name] = make_sample(name, path, boxes, labels, size, difficult, crowd)
    for image_id in own:
        defects.append(LabelDefect("label_without_image", source.name, f"Boxes of the unknown image {image_id}."))
    return list(samples.values())


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name too long for any file
        return False


def load(path: Path) -> CocoFile:
    """One file of instances, checked.

    Raises:
        InputError: it is cut short or not of COCO's layout.
    """
    try:
        content: Any = json.loads(read_text(path))
        return CocoFile.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{path} is not of COCO's layout: {explain(error)}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is no whole JSON file ({error}); copy it again.") from error
