"""Pascal VOC: JPEGImages, Annotations and ImageSets/Main. VOC boxes are 1-based and inclusive: xmin = x + 1."""

from pathlib import Path
from typing import Any

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from qmimic.data.labels import finite, image_files, inside, make_sample, read_text
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.errors import InputError


def sniff(root: Path) -> bool:
    """Whether a folder looks like VOC."""
    return (root / "Annotations").is_dir()


def read(root: Path) -> Dataset:
    """Read a VOC folder; classes in order of name. Without ImageSets, all annotations are the split `train`.

    Raises:
        InputError: a split's list cannot be read.
    """
    defects: list[LabelDefect] = []
    images = image_files(root / "JPEGImages")
    parsed: dict[str, tuple[Sample, list[str]] | None] = {}
    for path in sorted((root / "Annotations").glob("*.xml")):
        try:
            parsed[path.stem] = _parse(root, path, images, defects)
        except InputError as error:
            defects.append(LabelDefect("bad_label", f"Annotations/{path.name}", str(error)))
    names = sorted({name for entry in parsed.values() if entry for name in entry[1]})
    index = {name: label for label, name in enumerate(names)}

    def labelled(image_id: str) -> Sample | None:
        entry = parsed.get(image_id)
        if entry is None:
            return None
        sample, own = entry
        sample.labels[:] = [index[name] for name in own]
        return sample

    splits = {}
    for split, members in _splits(root, list(parsed)).items():
        found = []
        for image_id in members:
            sample = labelled(image_id)
            if sample is not None:
                found.append(sample)
            elif image_id not in parsed:
                defects.append(
                    LabelDefect("image_without_label", f"JPEGImages/{image_id}", f"{image_id} has no annotation.")
                )
        splits[split] = tuple(found)
    return Dataset(root.name, root, tuple(names), splits, tuple(defects))


def _splits(root: Path, everything: list[str]) -> dict[str, list[str]]:
    lists = sorted((root / "ImageSets" / "Main").glob("*.txt"))
    names = {path.stem for path in lists}
    splits = {}
    for path in lists:
        # cat_train.txt beside train.txt marks a class's images, it is no split of its own.
        if any(path.stem.endswith(f"_{name}") for name in names):
            continue
        splits[path.stem] = [line.split()[0] for line in read_text(path).splitlines() if line.strip()]
    return splits or {"train": everything}


def _parse(
    root: Path, path: Path, images: dict[str, Path], defects: list[LabelDefect]
) -> tuple[Sample, list[str]] | None:
    try:
        tree = fromstring(read_text(path))
    except (ParseError, DefusedXmlException, ValueError) as error:
        raise InputError(f"{path} is no plain XML ({error}); mend it.") from error
    filename = tree.findtext("filename") or path.stem
    image = images.get(path.stem)
    if image is None:
        image = inside(root / "JPEGImages", root / "JPEGImages" / filename)
    inside(root, image)
    boxes, names, difficult = [], [], []
    for thing in tree.iter("object"):
        try:
            box = _box(thing)
        except (ValueError, TypeError):
            defects.append(LabelDefect("bad_label", f"Annotations/{path.name}", "A box has no four finite numbers."))
            continue
        boxes.append(box)
        names.append((thing.findtext("name") or "").strip())
        difficult.append((thing.findtext("difficult") or "0").strip() == "1")
    size = tree.find("size")
    stated = None
    if size is not None and (size.findtext("width") or "").isdigit() and (size.findtext("height") or "").isdigit():
        stated = (int(size.findtext("width") or 0), int(size.findtext("height") or 0))
    stated = stated if stated and min(stated) > 0 else None
    return make_sample(path.stem, image, boxes, [0] * len(boxes), stated, difficult), names


def _box(thing: Any) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (float(thing.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
    if not finite(x1, y1, x2, y2):
        raise ValueError("not finite")
    return x1 - 1, y1 - 1, x2, y2
