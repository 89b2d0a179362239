"""YOLO txt: images/ and labels/ with `class cx cy w h` lines, as shares of the image; `data.yaml` names the classes.

A line holds no flags: boxes written here are neither difficult nor crowd any more.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from qmimic.data.images import image_size
from qmimic.data.labels import (
    Folder,
    actual_size,
    finite,
    image_files,
    inside,
    make_sample,
    read_text,
    reserve,
    stated_size,
)
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.errors import InputError
from qmimic.yaml_text import parse_yaml

SPLITS = ("train", "val", "test")  # the keys of data.yaml
MAX_CLASS = 9999  # the highest index of a class


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


def write(root: Folder, dataset: Dataset) -> dict[Path, Sample]:
    """Write all labels as YOLO into an empty folder, unions of other splits left out: they would copy images twice.

    Coordinates come back as the same float32 if they are 0 or no nearer to 0 than 1e-7 of the box's other side.

    Returns:
        Where each image belongs: a path relative to `root`, without the suffix of the image's own name.

    Raises:
        InputError: two images of a split have the same name, or an image cannot be read.
    """
    splits = {split: samples for split, samples in dataset.splits.items() if split not in dataset.unions}
    if "images" in splits:
        raise InputError("In YOLO's layout no split can be called 'images'; rename the split.")
    places: dict[Path, Sample] = {}
    for split, samples in splits.items():
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        for sample in samples:
            reserve(places, Path("images", split), sample)
    for place, sample in places.items():
        # What a label says of its image may be wrong, and here that would move boxes; a checked dataset says the truth.
        width, height = stated_size(sample) if dataset.checked else actual_size(sample)
        lines = []
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
            (x, w), (y, h) = _shares(x1, x2, width), _shares(y1, y2, height)
            lines.append(f"{label} {x!r} {y!r} {w!r} {h!r}\n")
        (root / "labels" / place.parent.name / f"{place.name}.txt").write_text("".join(lines), encoding="utf-8")
    config = {**{split: f"images/{split}" for split in splits if split in SPLITS}, "names": list(dataset.classes)}
    (root / "data.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return places


def _shares(low: float, high: float, length: int) -> tuple[float, float]:
    """Centre and extent as shares of the image's side; in float64 they give back what float32 coordinates hold."""
    return (low / length + high / length) / 2, high / length - low / length


def _config(root: Path) -> dict[str, Any]:
    path = root / "data.yaml"
    if not path.is_file():
        return {}
    config = parse_yaml(read_text(path), str(path))
    if not isinstance(config, dict):
        raise InputError(f"{path} needs `names:` and the folders of its splits.")
    if isinstance(config.get("path"), list | dict):
        raise InputError(f"`path:` in {path} is no folder; write one name.")
    return config


def _folders(root: Path, config: dict[str, Any]) -> dict[str, Path]:
    base = root / str(config.get("path") or ".")
    folders = {}
    for split in SPLITS:
        if isinstance(config.get(split), str):
            folders[split] = inside(root, base / config[split])
    inner = {path.name: path for path in sorted((root / "images").glob("*")) if path.is_dir()}
    if not folders:
        return inner or {"train": root / "images"}
    # data.yaml has no keys for splits of other names.
    listed = {folder.resolve() for folder in folders.values()}
    others = {n: p for n, p in inner.items() if p.resolve() not in listed and (root / "labels" / n).is_dir()}
    return {**others, **folders}


def _names(root: Path, config: dict[str, Any], least: int) -> tuple[str, ...]:
    names = config.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[index] for index in range(len(names))]
    if isinstance(names, list) and not any(isinstance(name, dict | list) for name in names):
        return tuple(map(str, names))
    if names is not None:
        raise InputError(f"`names:` in {root / 'data.yaml'} is no list of class names from index 0 on; mend it.")
    listed = root / "classes.txt"
    if listed.is_file():
        return tuple(line.strip() for line in read_text(listed).splitlines() if line.strip())
    return tuple(f"class{index}" for index in range(least))


def _split(root: Path, folder: Path, defects: list[LabelDefect]) -> list[Sample]:
    relative = inside(root, folder).resolve().relative_to(root.resolve()).parts
    labels = root.joinpath(*("labels" if part == "images" else part for part in relative))
    samples = []
    for stem, image in image_files(folder).items():
        label = labels / f"{stem}.txt"
        name = str(label.relative_to(root))
        try:
            width, height = image_size(inside(root, image))
        except InputError as error:
            defects.append(LabelDefect("unreadable_image", str(image.relative_to(root)), str(error)))
            continue
        if not label.is_file():
            defects.append(LabelDefect("image_without_label", str(image.relative_to(root)), "It has no label file."))
            continue
        try:
            text = read_text(inside(root, label))
        except InputError as error:
            defects.append(LabelDefect("bad_label", name, str(error)))
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
            box = ((x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height)
            if not 0 <= index <= MAX_CLASS or not finite(*box):
                defects.append(LabelDefect("bad_label", name, f"Line {number} is not `class cx cy w h`."))
                continue
            boxes.append(box)
            classes.append(index)
        samples.append(make_sample(stem, image, boxes, classes, (width, height)))
    return samples


def _known(sample: Sample, classes: int, defects: list[LabelDefect]) -> Sample:
    keep = sample.labels < classes
    if keep.all():
        return sample
    unknown = ", ".join(map(str, sorted(set(sample.labels[~keep].tolist()))))
    defects.append(LabelDefect("unknown_class", sample.image_id, f"The class {unknown} has no name."))
    return replace(
        sample,
        boxes=sample.boxes[keep],
        labels=sample.labels[keep],
        difficult=sample.difficult[keep],
        crowd=sample.crowd[keep],
    )
