"""Pascal VOC: JPEGImages, Annotations and ImageSets/Main. VOC boxes are 1-based and inclusive: xmin = x + 1.

Beside VOC's own `difficult` an object may have `<crowd>1</crowd>`, COCO's flag, which other programs pass over.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from qmimic.data.labels import (
    Folder,
    finite,
    image_files,
    image_name,
    make_sample,
    number,
    one_line,
    read_text,
    reserve,
    stated_size,
)
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.errors import InputError
from qmimic.files import inside


@dataclass
class _Annotation:
    """One XML file; its classes are still names, as the list of all classes is not known yet."""

    image: Path
    size: tuple[int, int] | None
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)

    def sample(self, image_id: str, index: dict[str, int]) -> Sample:
        labels = [index[name] for name in self.names]
        return make_sample(image_id, self.image, self.boxes, labels, self.size, self.difficult, self.crowd)


def sniff(root: Path) -> bool:
    """Whether a folder looks like VOC, or like a devkit of several years."""
    return (root / "Annotations").is_dir() or bool(_years(root))


def read(root: Path) -> Dataset:
    """Read a VOC folder; classes in order of name. Without ImageSets, all annotations are the split `train`.

    Of a devkit (`VOC2007` and `VOC2012` beside each other) the splits are called `2007_trainval` and so on.

    Raises:
        InputError: a split's list cannot be read.
    """
    if (root / "Annotations").is_dir():
        return _read_year(root)
    years = {year.name: _read_year(year) for year in _years(root)}
    names = sorted({name for dataset in years.values() for name in dataset.classes})
    splits: dict[str, tuple[Sample, ...]] = {}
    defects: list[LabelDefect] = []
    for year, dataset in years.items():
        place = np.array([names.index(name) for name in dataset.classes], np.int64)
        moved = {
            id(sample): replace(sample, image_id=f"{year}/{sample.image_id}", labels=place[sample.labels])
            for samples in dataset.splits.values()
            for sample in samples
        }
        for split, samples in dataset.splits.items():
            splits[f"{year.removeprefix('VOC')}_{split}"] = tuple(moved[id(sample)] for sample in samples)
        defects += [replace(defect, file=f"{year}/{defect.file}") for defect in dataset.defects]
    return Dataset(root.name, root, tuple(names), splits, tuple(defects))


def _years(root: Path) -> list[Path]:
    return [path.parent for path in sorted(root.glob("VOC[0-9][0-9][0-9][0-9]/Annotations")) if path.is_dir()]


def _read_year(root: Path) -> Dataset:
    defects: list[LabelDefect] = []
    images = image_files(root / "JPEGImages")
    parsed: dict[str, _Annotation] = {}
    broken = set()
    for path in sorted((root / "Annotations").glob("*.xml")):
        try:
            parsed[path.stem] = _parse(root, path, images, defects)
        except InputError as error:
            defects.append(LabelDefect("bad_label", f"Annotations/{path.name}", str(error)))
            broken.add(path.stem)
    names = sorted({name for annotation in parsed.values() for name in annotation.names})
    index = {name: label for label, name in enumerate(names)}
    samples = {image_id: annotation.sample(image_id, index) for image_id, annotation in parsed.items()}
    splits = {}
    missing = {}
    for split, members in _splits(root, {*samples, *broken}).items():
        splits[split] = tuple(samples[image_id] for image_id in members if image_id in samples)
        missing.update(dict.fromkeys(i for i in members if i not in samples and i not in broken))
    for image_id in missing:
        text = f"{image_id} has no annotation."
        defects.append(LabelDefect("image_without_label", f"JPEGImages/{image_id}", text))
    used = {sample.image for samples in splits.values() for sample in samples}
    for image_id, path in images.items():
        if path not in used and image_id not in broken and image_id not in missing:  # these two are named above
            defects.append(LabelDefect("image_without_label", path.name, "No split has a label for it."))
    return Dataset(root.name, root, tuple(names), splits, tuple(defects))


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
        members = [reserve(places, Path("JPEGImages"), sample).name for sample in samples]
        (lists / f"{split}.txt").write_text("".join(f"{member}\n" for member in members), encoding="utf-8")
    for place, sample in places.items():
        (root / "Annotations" / f"{place.name}.xml").write_text(_xml(sample, dataset.classes), encoding="utf-8")
    return places


def _splits(root: Path, known: set[str]) -> dict[str, list[str]]:
    lists = {path.stem: path for path in sorted((root / "ImageSets" / "Main").glob("*.txt"))}
    splits = {}
    for split, path in lists.items():
        lines = [line.strip() for line in read_text(path, root).splitlines() if line.strip()]
        # cat_train.txt beside train.txt flags a class's images by -1, 0 or 1; it is no split of its own.
        flagged = lines and all(line.split()[1:] and line.split()[-1] in ("-1", "0", "1") for line in lines)
        if flagged and any(split.endswith(f"_{other}") for other in lists):
            continue
        splits[split] = [line if line in known else line.split()[0] for line in lines]
    return splits or {"train": sorted(known)}


def _parse(root: Path, path: Path, images: dict[str, Path], defects: list[LabelDefect]) -> _Annotation:
    try:
        tree = fromstring(read_text(path, root))
    except DefusedXmlException as error:
        raise InputError(f"{path} defines entities, by which files do harm; write its text out.") from error
    except (ParseError, ValueError) as error:
        raise InputError(f"{path} is no plain XML ({error}); mend it.") from error
    image = images.get(path.stem)
    if image is None:
        image = inside(root / "JPEGImages", root / "JPEGImages" / (tree.findtext("filename") or path.stem))
    inside(root, image)
    annotation = _Annotation(image, _size(tree))
    for thing in tree.iter("object"):
        try:
            box = _box(thing)
        except (ValueError, TypeError):
            defects.append(LabelDefect("bad_label", f"Annotations/{path.name}", "A box has no four finite numbers."))
            continue
        annotation.boxes.append(box)
        annotation.names.append((thing.findtext("name") or "").strip())
        annotation.difficult.append((thing.findtext("difficult") or "0").strip() == "1")
        annotation.crowd.append((thing.findtext("crowd") or "0").strip() == "1")
    return annotation


def _size(tree: Any) -> tuple[int, int] | None:
    """Width and height as the file states them, None if it does not or states nonsense."""
    try:
        width, height = int(tree.findtext("size/width") or 0), int(tree.findtext("size/height") or 0)
    except ValueError:
        return None
    return (width, height) if min(width, height) > 0 else None


def _box(thing: Any) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(thing.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not finite(x1, y1, x2, y2):
        raise ValueError("not finite")
    return x1 - 1, y1 - 1, x2, y2


def _xml(sample: Sample, classes: tuple[str, ...]) -> str:
    tree = Element("annotation")
    SubElement(tree, "folder").text = "JPEGImages"
    SubElement(tree, "filename").text = image_name(sample)
    size = SubElement(tree, "size")
    width, height = stated_size(sample)
    for name, side in (("width", width), ("height", height), ("depth", 3)):
        SubElement(size, name).text = str(side)
    SubElement(tree, "segmented").text = "0"
    things = zip(sample.boxes.tolist(), sample.labels.tolist(), sample.difficult, sample.crowd, strict=True)
    for (x1, y1, x2, y2), label, difficult, crowd in things:
        thing = SubElement(tree, "object")
        facts = {"name": classes[label], "pose": "Unspecified", "truncated": "0", "difficult": str(int(difficult))}
        for name, text in {**facts, **({"crowd": "1"} if crowd else {})}.items():
            SubElement(thing, name).text = text
        box = SubElement(thing, "bndbox")
        for name, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            SubElement(box, name).text = str(number(value))
    indent(tree)
    return tostring(tree, encoding="unicode") + "\n"
