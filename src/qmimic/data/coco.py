"""COCO JSON: each file of instances is a split; boxes are x, y, width, height; category ids may have gaps."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from qmimic.config import explain
from qmimic.data.labels import finite, inside, make_sample, read_text
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.errors import InputError


class _Image(BaseModel):
    id: int | str
    file_name: str
    width: int | None = None
    height: int | None = None


class _Annotation(BaseModel):
    image_id: int | str
    category_id: int
    bbox: tuple[float, float, float, float]
    iscrowd: bool = False


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
    contents = {split: load(path) for split, path in files(root).items()}
    categories = {c.id: c.name for content in contents.values() for c in content.categories}
    ids = sorted(categories)
    index = {category: label for label, category in enumerate(ids)}
    defects: list[LabelDefect] = []
    splits = {}
    for split, content in contents.items():
        source = files(root)[split]
        splits[split] = tuple(_samples(root, source, split, content, index, defects))
    return Dataset(root.name, root, tuple(categories[i] for i in ids), splits, tuple(defects))


def _samples(
    root: Path, source: Path, split: str, content: CocoFile, index: dict[int, int], defects: list[LabelDefect]
) -> list[Sample]:
    folders = [source.parent, root / split, root / f"{split}2017", root / "images", root / "JPEGImages", root]
    folders += [root / "images" / split, root / "images" / f"{split}2017"]
    own: dict[int | str, list[_Annotation]] = {}
    for annotation in content.annotations:
        own.setdefault(annotation.image_id, []).append(annotation)
    samples = []
    for image in content.images:
        boxes, labels, crowd = [], [], []
        for annotation in own.pop(image.id, []):
            x, y, width, height = annotation.bbox
            if not finite(x, y, width, height):
                defects.append(LabelDefect("bad_label", source.name, f"A box of {image.file_name} is not finite."))
            elif annotation.category_id not in index:
                text = f"{image.file_name} has the category {annotation.category_id}, which is not listed."
                defects.append(LabelDefect("unknown_class", source.name, text))
            else:
                boxes.append((x, y, x + width, y + height))
                labels.append(index[annotation.category_id])
                crowd.append(annotation.iscrowd)
        candidates = [inside(root, folder / image.file_name) for folder in folders]
        path = next((candidate for candidate in candidates if candidate.is_file()), candidates[-1])
        size = (image.width, image.height) if image.width and image.height else None
        samples.append(make_sample(Path(image.file_name).stem, path, boxes, labels, size, crowd=crowd))
    for image_id in own:
        defects.append(LabelDefect("label_without_image", source.name, f"Boxes of the unknown image {image_id}."))
    return samples


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
