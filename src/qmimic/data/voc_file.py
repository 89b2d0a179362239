"""One XML file of Pascal VOC: what it says of a picture, read and written."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from qmimic.data.accounts import Tally
from qmimic.data.labels import (
    bounds,
    finite,
    folded,
    make_sample,
    number,
    read_bytes,
    stated_size,
)
from qmimic.data.sample import LabelDefect, Sample
from qmimic.errors import InputError
from qmimic.files import inside

PICTURES = ("jpegimages", "images", "image", "img", "imgs", "photos", "pictures", "data")  # rather than of masks
ROOT = re.compile(rb"<annotation[\s>]", re.IGNORECASE)
YES = ("1", "1.0", "true", "yes")
DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["'][^>]*\?>""")


@dataclass
class Annotation:
    """One XML file; its classes are still names, as the list of all classes is not known yet.

    Attributes:
        path: of the file.
        image: its picture, which may be missing.
        size: stated width and height.
        from_one: the file says itself that it counts from 1.
        boxes: xmin, ymin, xmax, ymax as written.
    """

    path: Path
    image: Path
    size: tuple[int, int] | None
    from_one: bool
    boxes: list[tuple[float, float, float, float]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    difficult: list[bool] = field(default_factory=list)
    crowd: list[bool] = field(default_factory=list)

    def sample(self, image_id: str, index: dict[str, int], shift: int) -> Sample:
        """As a sample, by the index of its classes' names; `shift`: what the folder calls the first column."""
        labels = [index[name] for name in self.names]
        first = 1 if self.from_one else shift
        boxes = [(x1 - first, y1 - first, x2, y2) for x1, y1, x2, y2 in self.boxes]
        return make_sample(image_id, self.image, boxes, labels, self.size, self.difficult, self.crowd)


def is_annotation(base: Path, path: Path) -> bool:
    """Whether a file begins as an annotation of VOC does."""
    try:
        return ROOT.search(read_bytes(path, base)[:4096]) is not None
    except InputError:
        return False


def read_annotation(
    base: Path, key: str, path: Path, stems: Mapping[str, list[Path]], defects: list[LabelDefect], tally: Tally
) -> Annotation | None:
    """What a file says, or None with a defect: an object that cannot be read must not be taught as background.

    Args:
        base: the dataset's folder.
        key: the file's path below its folder, without suffix.
        path: of the file.
        stems: pictures by name, with and without suffix.
        defects, tally: get what is wrong and what is counted.
    """
    tally.labels += 1
    deleted, count, image, kind = 0, 0, next(iter(stems.get(path.stem, [])), None), "bad_label"
    try:
        tree = _tree(base, path)
        count = len(list(tree.iter("object")))
        image, others = _image(base, key, path, tree, stems)
        inside(base, image)
        if others:
            kind = "two_images_for_one_label"
            tally.pictures_out.update(dict.fromkeys(others, kind))
            shown = " and ".join(one.relative_to(base).as_posix() for one in (image, *others))
            raise InputError(f"It may be of {shown}; write the right name into its <filename>.")
        if len(list(tree.iter("bndbox"))) > sum(len(list(thing.iter("bndbox"))) for thing in tree.iter("object")):
            raise InputError("A <bndbox> of it stands outside of an <object>; correct it.")
        annotation = Annotation(path, image, _size(tree), _text(tree, "origin") == "1")
        for thing in tree.iter("object"):
            if _text(thing, "deleted").lower() in YES:  # LabelMe keeps what somebody has removed
                deleted += 1
                continue
            annotation.boxes.append(_box(thing))
            annotation.names.append(_name(thing))
            annotation.difficult.append(_text(thing, "difficult").lower() in YES)
            annotation.crowd.append(_text(thing, "crowd").lower() in YES)
    except InputError as error:
        defects.append(LabelDefect(kind, path.relative_to(base).as_posix(), str(error)))
        tally.boxes += count
        tally.drop("unreadable_label" if kind == "bad_label" else kind, count, image)
        return None
    tally.boxes += count
    if deleted:
        tally.boxes_out["deleted"] += deleted
    return annotation


def _tree(base: Path, path: Path) -> Any:
    """The root element of a file, in the encoding that it declares."""
    raw = read_bytes(path, base)
    declared = DECLARED.match(raw)
    encoding = declared[1].decode() if declared else "utf-8"
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif encoding.lower().replace("_", "-") in ("utf-8", "utf-16", "utf8"):  # the declaration itself is no UTF-16
        encoding = "utf-8-sig"
    try:
        tree = fromstring(raw.decode(encoding))
    except DefusedXmlException as error:
        raise InputError(f"{path} defines entities, by which files do harm; write its text out.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in {encoding.removesuffix('-sig')}; save it as UTF-8.") from error
    except LookupError as error:
        raise InputError(f"{path} declares the unknown encoding {encoding!r}; save it as UTF-8.") from error
    except (ParseError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid XML ({error}); correct it.") from error
    for thing in tree.iter():  # some programs write other cases, and name spaces
        if isinstance(thing.tag, str):
            thing.tag = thing.tag.rpartition("}")[2].lower()
    if tree.tag != "annotation":
        hint = "; export as Pascal VOC, COCO or YOLO" if tree.tag == "annotations" else ""
        raise InputError(f"{path} is not an annotation of VOC: it begins with <{tree.tag[:40]}>{hint}.")
    return tree


def _text(tree: Any, tag: str) -> str:
    return (tree.findtext(tag) or "").strip()


def _image(
    base: Path, key: str, path: Path, tree: Any, stems: Mapping[str, list[Path]]
) -> tuple[Path, tuple[Path, ...]]:
    """The picture of an annotation and others that it may be: of its own name, or of the name that it gives."""
    said = PurePosixPath(unquote(_text(tree, "filename")).replace("\\", "/")).name
    folder = PurePosixPath(_text(tree, "folder").replace("\\", "/")).name
    names = (path.stem, said, PurePosixPath(said).stem)
    own = next((found for name in (*names, *map(folded, names)) if (found := stems.get(name))), [])
    parts = PurePosixPath(key).parts
    rules: tuple[Callable[[Path], bool], ...] = (
        lambda one: one.with_suffix("").parts[-len(parts) :] == parts,
        lambda one: one.name == said,
        lambda one: one.relative_to(base).with_suffix("").parts[1:] == parts,
        lambda one: one.parent == path.parent or one.relative_to(base).parts[0].lower() in PICTURES,
        lambda one: one.parent == path.parent,
        lambda one: one.parent.name == folder,
    )
    for fits in rules if len(own) > 1 else ():
        own = [one for one in own if fits(one)] or own
    if own:
        return own[0], tuple(own[1:])
    name = (said or path.stem).replace("\0", "?")[-100:]
    return base / "JPEGImages" / (name if name.strip(".") else path.stem), ()


def _name(thing: Any) -> str:
    name = _text(thing, "name")
    if not name:
        raise InputError("An object has no name; write the name of its class into its <name>.")
    return name


def _size(tree: Any) -> tuple[int, int] | None:
    """Width and height as the file states them, None if it does not or states nonsense."""
    try:
        width, height = int(tree.findtext("size/width") or 0), int(tree.findtext("size/height") or 0)
    except ValueError:
        return None
    return (width, height) if min(width, height) > 0 else None


def _box(thing: Any) -> tuple[float, float, float, float]:
    """xmin, ymin, xmax, ymax as written; of a polygon its bounds."""
    if thing.find("robndbox") is not None and thing.find("bndbox") is None:
        raise InputError("An object has a rotated box (<robndbox>), which is not read; export upright boxes.")
    if len(thing.findall("bndbox")) > 1:
        raise InputError("An object has two boxes; write an <object> for each.")
    try:
        polygon = thing.find("polygon")
        if thing.find("bndbox") is None and polygon is not None:
            xs, ys = (
                [float(one.text) for one in polygon.iter() if one.tag.rstrip("0123456789") == axis] for axis in "xy"
            )
            box = min(xs), min(ys), max(xs), max(ys)
        else:
            x1, y1, x2, y2 = (float(thing.findtext(f"bndbox/{side}")) for side in ("xmin", "ymin", "xmax", "ymax"))
            box = x1, y1, x2, y2
        degrees = next((float(_text(a, "value")) for a in thing.iter("attribute") if _text(a, "name") == "rotation"), 0)
        box = bounds(box, degrees) if degrees else box
        if finite(*box):
            return box
    except (ValueError, TypeError):
        pass
    name = _text(thing, "name")[:40]
    raise InputError(f"The object {name!r} has no box of four numbers; give it xmin, ymin, xmax and ymax.")


def as_xml(filename: str, sample: Sample, classes: tuple[str, ...]) -> str:
    """The text of a sample's file; `filename` is that of its picture."""
    tree = Element("annotation")
    SubElement(tree, "folder").text = "JPEGImages"
    SubElement(tree, "filename").text = filename
    SubElement(tree, "origin").text = "1"
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
