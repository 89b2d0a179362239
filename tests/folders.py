"""Small labelled folders, made by hand, and datasets as plain values that can be compared."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from qmimic.data.sample import Dataset, Sample

Thing = tuple[str, tuple[float, float, float, float], bool, bool]  # class, box, difficult, crowd


def picture(path: Path, size: tuple[int, int] = (100, 80), seed: int = 0) -> Path:
    """An image of noise; width and height in pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def voc_object(name: str, *sides: object, extra: str = "") -> str:
    """An `<object>` with xmin, ymin, xmax, ymax."""
    tags = "".join(f"<{tag}>{side}</{tag}>" for tag, side in zip(("xmin", "ymin", "xmax", "ymax"), sides, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{tags}</bndbox></object>"


def voc_xml(root: Path, image_id: str, *objects: str, head: str = "") -> Path:
    """An annotation of these objects."""
    path = root / "Annotations" / f"{image_id}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{head}<annotation>{''.join(objects)}</annotation>")
    return path


def voc_list(root: Path, split: str, *lines: str) -> None:
    """A split's list in ImageSets/Main."""
    folder = root / "ImageSets" / "Main"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.txt").write_text("".join(f"{line}\n" for line in lines))


def coco_json(
    root: Path, images: Sequence[dict[str, Any]], annotations: Sequence[dict[str, Any]], *categories: tuple[int, str]
) -> Path:
    """The file `instances_train.json`."""
    path = root / "instances_train.json"
    root.mkdir(parents=True, exist_ok=True)
    listed = [{"id": number, "name": name} for number, name in categories]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": listed}))
    return path


def sample_of(image: Path, boxes: Sequence[Sequence[float]], labels: Sequence[int]) -> Sample:
    """A sample without flags."""
    none = np.zeros(len(boxes), np.bool_)
    corners = np.array(boxes, np.float32).reshape(-1, 4)
    return Sample(image.stem, image, corners, np.array(labels, np.int64), none, none)


def things(dataset: Dataset, sample: Sample) -> list[Thing]:
    """A sample's objects by class name, boxes as exact numbers."""
    rows = zip(sample.labels, sample.boxes.tolist(), sample.difficult, sample.crowd, strict=True)
    return [(dataset.classes[int(k)], (b[0], b[1], b[2], b[3]), bool(d), bool(c)) for k, b, d, c in rows]


def contents(dataset: Dataset) -> dict[str, dict[str, list[Thing]]]:
    """Everything labelled: split, image name, objects."""
    return {
        split: {(s.image.name if s.image else f"{s.image_id}.png"): things(dataset, s) for s in samples}
        for split, samples in dataset.splits.items()
    }
