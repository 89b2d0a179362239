"""YOLO txt: images/ and labels/ with `class cx cy w h` lines, as shares of the image; `data.yaml` names the classes."""

from pathlib import Path
from typing import Any

import yaml

from qmimic.data.images import image_size
from qmimic.data.labels import finite, image_files, inside, make_sample, read_text
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.errors import InputError


def sniff(root: Path) -> bool:
    """Whether a folder looks like YOLO."""
    return (root / "data.yaml").is_file() or (root / "labels").is_dir()


def read(root: Path) -> Dataset:
    """Read a YOLO folder, with or without `data.yaml`; classes in order of index.

    Raises:
        InputError: `data.yaml` is no YAML, or a path leads out of the folder.
    """
    config = _config(root)
    folders = _folders(root, config)
    defects: list[LabelDefect] = []
    samples = {split: tuple(_split(root, folder, defects)) for split, folder in folders.items()}
    highest = max((int(s.labels.max()) for group in samples.values() for s in group if len(s.labels)), default=-1)
    names = _names(root, config, highest + 1)
    kept = {split: tuple(_known(s, len(names), defects) for s in group) for split, group in samples.items()}
    return Dataset(root.name, root, names, kept, tuple(defects))


def _config(root: Path) -> dict[str, Any]:
    path = root / "data.yaml"
    if not path.is_file():
        return {}
    try:
        config = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML; mend it.") from error
    if not isinstance(config, dict):
        raise InputError(f"{path} needs `names:` and the folders of its splits.")
    return config


def _folders(root: Path, config: dict[str, Any]) -> dict[str, Path]:
    base = root / str(config.get("path") or ".")
    folders = {}
    for split in ("train", "val", "test"):
        if isinstance(config.get(split), str):
            folders[split] = inside(root, base / config[split])
    if folders:
        return folders
    inner = {p.name: p for p in sorted((root / "images").glob("*")) if p.is_dir()}
    return inner or {"train": root / "images"}


def _names(root: Path, config: dict[str, Any], least: int) -> tuple[str, ...]:
    names = config.get("names")
    if isinstance(names, dict):
        return tuple(str(names[key]) for key in sorted(names))
    if isinstance(names, list):
        return tuple(map(str, names))
    listed = root / "classes.txt"
    if listed.is_file():
        return tuple(line.strip() for line in read_text(listed).splitlines() if line.strip())
    return tuple(f"class{index}" for index in range(least))


def _split(root: Path, folder: Path, defects: list[LabelDefect]) -> list[Sample]:
    relative = folder.resolve().relative_to(root.resolve()).parts
    labels = root.joinpath(*("labels" if part == "images" else part for part in relative))
    samples = []
    for stem, image in image_files(folder).items():
        label = labels / f"{stem}.txt"
        name = str(label.relative_to(root))
        try:
            width, height = image_size(inside(root, image))
            text = read_text(inside(root, label)) if label.is_file() else None
        except InputError as error:
            defects.append(LabelDefect("unreadable_image", str(image.relative_to(root)), str(error)))
            continue
        if text is None:
            defects.append(LabelDefect("image_without_label", str(image.relative_to(root)), "It has no label file."))
            continue
        boxes, classes = [], []
        for number, line in enumerate(text.splitlines(), start=1):
            fields = line.split()
            if not fields:
                continue
            try:
                index, (x, y, w, h) = int(fields[0]), map(float, fields[1:])
            except ValueError:
                index, x, y, w, h = -1, 0.0, 0.0, 0.0, 0.0
            if index < 0 or not finite(x, y, w, h):
                defects.append(LabelDefect("bad_label", name, f"Line {number} is not `class cx cy w h`."))
                continue
            boxes.append(((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height))
            classes.append(index)
        samples.append(make_sample(stem, image, boxes, classes, (width, height)))
    return samples


def _known(sample: Sample, classes: int, defects: list[LabelDefect]) -> Sample:
    keep = sample.labels < classes
    if keep.all():
        return sample
    unknown = ", ".join(map(str, sorted(set(sample.labels[~keep].tolist()))))
    defects.append(LabelDefect("unknown_class", sample.image_id, f"The class {unknown} has no name."))
    boxes = [tuple(box) for box in sample.boxes[keep].tolist()]
    assert sample.image is not None
    return make_sample(sample.image_id, sample.image, boxes, sample.labels[keep].tolist(), sample.size)  # type: ignore[arg-type]
