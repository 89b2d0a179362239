"""Pascal VOC: JPEGImages, Annotations and ImageSets/Main, or XML beside the pictures.

VOC boxes are 1-based and inclusive: xmin = x + 1. Many tools count from 0 instead: a folder in which a box begins at 0
is read so. Beside VOC's own `difficult` an object may have `<crowd>1</crowd>`, COCO's flag, which other programs pass
over; and `<origin>1</origin>` in a file says that it counts from 1 whatever its boxes are.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element, SubElement, indent, tostring

import numpy as np
from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import ParseError, fromstring

from qmimic.data.accounts import Tally, combined, data_files
from qmimic.data.labels import (
    SUFFIXES,
    Folder,
    file_of,
    finite,
    is_picture,
    make_sample,
    number,
    one_line,
    read_bytes,
    read_text,
    reserve,
    stated_size,
)
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.errors import InputError
from qmimic.files import inside

HOMES = ("annotations", "annotation", "xmls", "xml", "labels")  # folders of XML files, in any case
PICTURES = (
    "jpegimages",
    "images",
    "image",
    "img",
    "imgs",
    "photos",
    "pictures",
    "data",
)  # of pictures, rather than masks
SPLITS = ("train", "val", "valid", "validation", "test", "trainval")  # folders and lists that are splits by their name
YEAR = re.compile(r"VOC\d{4}")
ROOT = re.compile(rb"<annotation[\s>]")
DECLARED = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([A-Za-z0-9._-]+)["'][^>]*\?>""")


@dataclass
class _Annotation:
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
        labels = [index[name] for name in self.names]
        first = 1 if self.from_one else shift
        boxes = [(x1 - first, y1 - first, x2, y2) for x1, y1, x2, y2 in self.boxes]
        return make_sample(image_id, self.image, boxes, labels, self.size, self.difficult, self.crowd)


def sniff(root: Path) -> bool:
    """Whether a folder looks like VOC, or holds several folders that do, such as a devkit of several years."""
    return bool(_bases(root))


def sniff_beside(root: Path) -> bool:
    """Whether a folder has annotations beside its pictures, as LabelImg and Roboflow leave them."""
    if _bases(root):
        return False
    folders = [root, *_folders(root)]
    for folder in [*folders, *(below for own in folders[1:] for below in _folders(own))]:
        if any(path.suffix.lower() == ".xml" and _is_annotation(root, path) for path in folder.iterdir()):
            return True
    return False


def read(root: Path) -> Dataset:
    """Read a VOC folder; classes in order of name.

    Splits are the lists of ImageSets; without lists the folders `train`, `valid` and so on; without these all is the
    split `train`. Of a devkit (`VOC2007` and `VOC2012` beside each other) the splits are called `2007_trainval` and so
    on. A picture with an object that cannot be read is left out.

    Raises:
        InputError: a split's list cannot be read.
    """
    bases = _bases(root)
    if bases in ([], [root]):
        return _read(root)[0]
    parts = {base.name: _read(base) for base in bases}
    names = sorted({name for dataset, _ in parts.values() for name in dataset.classes})
    splits: dict[str, tuple[Sample, ...]] = {}
    defects: list[LabelDefect] = []
    for part, (dataset, listed) in parts.items():
        place = np.array([names.index(name) for name in dataset.classes], np.int64)
        moved = {
            id(sample): replace(sample, image_id=f"{part}/{sample.image_id}", labels=place[sample.labels])
            for samples in dataset.splits.values()
            for sample in samples
        }
        for split, samples in dataset.splits.items():
            splits[_split_of(part, split, listed, len(parts))] = tuple(moved[id(sample)] for sample in samples)
        defects += [replace(defect, file=f"{part}/{defect.file}") for defect in dataset.defects]
    accounted = combined([dataset.accounted for dataset, _ in parts.values() if dataset.accounted])
    return Dataset(root.name, root, tuple(names), splits, tuple(defects), accounted=accounted)


def _split_of(part: str, split: str, listed: bool, parts: int) -> str:
    """A split's name in a folder of several: by year as in VOC's devkit; by folder where no list names it."""
    if YEAR.fullmatch(part):
        return f"{part.removeprefix('VOC')}_{split}"
    if parts == 1:
        return split
    return f"{part}_{split}" if listed else part


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _homes(base: Path) -> list[Path]:
    """The folders of annotations; COCO keeps JSON in one of the same name in lower case."""
    return [
        folder
        for folder in _folders(base)
        if folder.name == "Annotations"
        or (folder.name.lower() in HOMES and any(path.suffix.lower() == ".xml" for path in data_files(folder)))
    ]


def _bases(root: Path) -> list[Path]:
    """The folder itself, or those in it that are VOC's."""
    if _homes(root):
        return [root]
    return [folder for folder in _folders(root) if _homes(folder)]


def _is_annotation(base: Path, path: Path) -> bool:
    try:
        return ROOT.search(read_bytes(path, base)[:4096]) is not None
    except InputError:
        return False


def _read(base: Path) -> tuple[Dataset, bool]:
    """The dataset of one folder, and whether lists name its splits."""
    files = list(data_files(base))
    pictures = [path for path in files if is_picture(path)]
    homes = _homes(base)
    for folder in homes:
        inside(base, folder)
    sources: dict[str, Path] = {}
    tally, defects = Tally(), list[LabelDefect]()
    for path in sorted((path for path in files if path.suffix.lower() == ".xml"), key=lambda p: (len(p.parts), p)):
        home = next((home for home in homes if path.is_relative_to(home)), None)
        if home is None and not _is_annotation(base, path):
            continue
        if home is None and homes:
            tally.labels += 1
            tally.drop("outside_annotations", 0)
            continue
        start = home if home is not None and len(homes) == 1 else base
        sources[path.relative_to(start).with_suffix("").as_posix()] = path
    stems = _stems(pictures)
    found = {key: _annotation(base, key, path, stems, defects, tally) for key, path in sources.items()}
    parsed = {key: annotation for key, annotation in found.items() if annotation is not None}
    _once(base, parsed, defects, tally)
    shift = _first(base, parsed, defects)
    names = sorted({name for annotation in parsed.values() for name in annotation.names})
    index = {name: label for label, name in enumerate(names)}
    lists = _lists(base)
    members = _members(base, lists, found, parsed, pictures, defects, tally) if lists else _by_folder(found)
    ids = _ids(members, parsed, bool(lists) or bool(homes))
    samples = {key: annotation.sample(ids[key], index, shift) for key, annotation in parsed.items()}
    splits = {split: tuple(samples[key] for key in own if key in samples) for split, own in members.items()}
    for key in samples.keys() - {key for own in members.values() for key in own}:
        tally.drop("not_listed", len(samples[key].boxes), samples[key].image)
    used = {sample.image for own in splits.values() for sample in own if sample.image}
    beside = {image.parent for image in used}
    for picture in sorted(set(pictures) - used):  # masks lie in folders of their own
        if picture not in tally.pictures_out and picture.parent in beside:
            text = "No split has a label for it."
            defects.append(LabelDefect("image_without_label", picture.relative_to(base).as_posix(), text))
    accounted = tally.close(pictures, splits)
    return Dataset(base.name, base, tuple(names), splits, tuple(defects), accounted=accounted), bool(lists)


def _stems(pictures: Sequence[Path]) -> dict[str, list[Path]]:
    """Pictures by name, with and without suffix."""
    found: dict[str, list[Path]] = {}
    for path in pictures:
        found.setdefault(path.stem, []).append(path)
        found.setdefault(path.name, []).append(path)
    return found


def _annotation(
    base: Path, key: str, path: Path, stems: Mapping[str, list[Path]], defects: list[LabelDefect], tally: Tally
) -> _Annotation | None:
    """What a file says, or None with a defect: an object that cannot be read must not be taught as background."""
    tally.labels += 1
    count, image, kind = 0, next(iter(stems.get(path.stem, [])), None), "bad_label"
    try:
        tree = _tree(base, path)
        count = len(list(tree.iter("object")))
        image, others = _image(base, key, path, _text(tree, "filename"), stems)
        inside(base, image)
        if others:
            kind = "two_images_for_one_label"
            tally.pictures_out.update(dict.fromkeys(others, kind))
            shown = " and ".join(one.relative_to(base).as_posix() for one in (image, *others))
            raise InputError(f"It may be of {shown}; write the right name into its <filename>.")
        annotation = _Annotation(path, image, _size(tree), _text(tree, "origin") == "1")
        for thing in tree.iter("object"):
            annotation.boxes.append(_box(thing))
            annotation.names.append(_name(thing))
            annotation.difficult.append(_text(thing, "difficult") == "1")
            annotation.crowd.append(_text(thing, "crowd") == "1")
    except InputError as error:
        defects.append(LabelDefect(kind, path.relative_to(base).as_posix(), str(error)))
        tally.boxes += count
        tally.drop("unreadable_label" if kind == "bad_label" else kind, count, image)
        return None
    tally.boxes += count
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
    if tree.tag != "annotation":
        hint = "; export as Pascal VOC, COCO or YOLO" if tree.tag == "annotations" else ""
        raise InputError(f"{path} is not an annotation of VOC: it begins with <{tree.tag[:40]}>{hint}.")
    return tree


def _text(tree: Any, tag: str) -> str:
    return (tree.findtext(tag) or "").strip()


def _image(
    base: Path, key: str, path: Path, filename: str, stems: Mapping[str, list[Path]]
) -> tuple[Path, tuple[Path, ...]]:
    """The picture of an annotation and others that it may be: of its own name, or of the name that it gives."""
    said = PurePosixPath(unquote(filename).replace("\\", "/")).name
    own = stems.get(path.stem) or stems.get(said) or stems.get(PurePosixPath(said).stem) or []
    parts = PurePosixPath(key).parts
    rules: tuple[Callable[[Path], bool], ...] = (
        lambda one: one.with_suffix("").parts[-len(parts) :] == parts,
        lambda one: one.name == said,
        lambda one: one.relative_to(base).with_suffix("").parts[1:] == parts,
        lambda one: one.parent == path.parent or one.relative_to(base).parts[0].lower() in PICTURES,
        lambda one: one.parent == path.parent,
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
        if finite(*box):
            return box
    except (ValueError, TypeError):
        pass
    name = _text(thing, "name")[:40]
    raise InputError(f"The object {name!r} has no box of four numbers; give it xmin, ymin, xmax and ymax.")


def _once(base: Path, parsed: dict[str, _Annotation], defects: list[LabelDefect], tally: Tally) -> None:
    """Leave out every further annotation of a picture that has one."""
    first: dict[Path, _Annotation] = {}
    for key, annotation in list(parsed.items()):
        other = first.setdefault(annotation.image, annotation)
        if other is not annotation:
            names = (one.path.relative_to(base).as_posix() for one in (other, annotation))
            text = f"{' and '.join(names)} are both of {annotation.image.name}; move one of them away."
            defects.append(LabelDefect("two_labels_for_one_image", annotation.path.relative_to(base).as_posix(), text))
            tally.drop("two_labels_for_one_image", len(parsed.pop(key).boxes))


def _first(base: Path, parsed: Mapping[str, _Annotation], defects: list[LabelDefect]) -> int:
    """What the folder calls the first column. No 0 can occur where columns are counted from 1."""
    boxes = (box for one in parsed.values() if not one.from_one for box in one.boxes if box[2] > box[0] < box[3])
    if not any(0 in box[:2] for box in boxes):
        return 1
    text = "Some boxes begin at 0, so all boxes of this folder are taken as counted from 0, not from 1."
    defects.append(LabelDefect("counted_from_zero", base.name, text))
    return 0


def _lists(base: Path) -> dict[str, Path]:
    """The lists of splits: in ImageSets/Main, in ImageSets, or beside the folders."""
    below = [folder for folder in _folders(base) if folder.name.lower() == "imagesets"]
    main = [folder for own in below for folder in _folders(own) if folder.name.lower() == "main"]
    for folder in [*main, *below, base]:
        found = {
            path.stem: path
            for path in sorted(folder.iterdir())
            if path.suffix.lower() == ".txt"
            and not path.name.startswith(".")
            and (folder != base or path.stem in SPLITS)
        }
        if found:
            return found
    return {}


def _by_folder(found: Mapping[str, _Annotation | None]) -> dict[str, list[str]]:
    """Splits where no list names them: folders that are called so, or one."""
    tops = {key: PurePosixPath(key).parts[0] if "/" in key else "" for key in sorted(found)}
    if not tops or not set(tops.values()) <= set(SPLITS):
        return {"train": sorted(found)}
    return {split: [key for key, top in tops.items() if top == split] for split in SPLITS if split in tops.values()}


def _ids(members: Mapping[str, Sequence[str]], parsed: Mapping[str, _Annotation], long: bool) -> dict[str, str]:
    """A name for every picture: the annotation's path, without its split's folder where that is not needed."""
    short = {key: key if long else "/".join(PurePosixPath(key).parts[key.split("/")[0] in members :]) for key in parsed}
    times = Counter(short.values())
    return {key: name if name and times[name] == 1 else key for key, name in short.items()}


def _members(
    base: Path,
    lists: Mapping[str, Path],
    found: Mapping[str, _Annotation | None],
    parsed: Mapping[str, _Annotation],
    pictures: Sequence[Path],
    defects: list[LabelDefect],
    tally: Tally,
) -> dict[str, list[str]]:
    """The annotations of every split, in order; whatever a list names and is not there is a defect."""
    spelled: dict[str, set[str]] = {}
    for key in found:
        image = parsed[key].image if key in parsed else None
        names = [image.name, image.stem, image.relative_to(base).as_posix()] if image is not None else []
        for name in {PurePosixPath(key).name, *names}:
            spelled.setdefault(name, set()).add(key)
    keys = {name: next(iter(own)) for name, own in spelled.items() if len(own) == 1} | {key: key for key in found}
    shown = {name: path for path in pictures for name in (path.stem, path.name, path.relative_to(base).as_posix())}
    missing: dict[str, str] = {}
    members: dict[str, dict[str, None]] = {}
    for split, path in _parted(base, lists, {name for one in parsed.values() for name in one.names}):
        own = members.setdefault(split, {})
        for line in (line.strip() for line in read_text(path, base).splitlines() if line.strip()):
            named = next((keys[form] for form in _forms(line) if form in keys), None)
            if named is None:
                missing.setdefault(line, path.relative_to(base).as_posix())
            else:
                own[named] = None
    for line, own_list in missing.items():
        picture = next((shown[form] for form in _forms(line) if form in shown), None)
        if picture is not None:
            text = f"{own_list} lists it, but it has no annotation."
            defects.append(LabelDefect("image_without_label", picture.relative_to(base).as_posix(), text))
            tally.pictures_out[picture] = "without_label"
        else:
            text = f"It lists {line}, which has neither a picture nor an annotation."
            defects.append(LabelDefect("label_without_image", own_list, text))
    return {split: list(own) for split, own in members.items()}


def _parted(base: Path, lists: Mapping[str, Path], classes: set[str]) -> Iterator[tuple[str, Path]]:
    """Lists with the names of their splits. `cat_train.txt` flags a class's pictures by -1, 0 or 1: beside `train.txt`
    it is no split of its own; where every list is like that, as VoTT leaves them, together they are the splits."""
    flagged = {split for split, path in lists.items() if _flags(read_text(path, base))}
    plain = [split for split in lists if not (split in flagged and any(split.endswith(f"_{one}") for one in lists))]
    own = {
        split: next((split[len(name) + 1 :] for name in classes if split.startswith(f"{name}_")), split)
        for split in plain
    }
    together = len(plain) == len(flagged) and all(split in SPLITS for split in own.values())
    for split in plain:
        yield own[split] if together else split, lists[split]


def _flags(text: str) -> bool:
    words = [line.split() for line in text.splitlines() if line.strip()]
    return bool(words) and all(own[1:] and own[-1] in ("-1", "0", "1") for own in words)


def _forms(line: str) -> Iterator[str]:
    """How a list may spell a picture: with a suffix, a flag behind it, folders of another machine before it."""
    words = line.split()
    whole = [line, " ".join(words[:-1])] if words[-1] in ("-1", "0", "1") and words[1:] else [line]
    for text in dict.fromkeys([*whole, *(unquote(one).replace("\\", "/") for one in whole)]):
        parts = [part for part in text.split("/") if part not in ("", ".", "..")]
        for start in range(min(len(parts), 32)):
            tail = PurePosixPath(*parts[start:])
            yield str(tail)
            if tail.suffix.lower() in (*SUFFIXES, ".xml"):
                yield str(tail.with_suffix(""))


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
        members = [reserve(places, Path("JPEGImages"), sample).relative_to("JPEGImages") for sample in samples]
        text = "".join(f"{member.as_posix()}\n" for member in members)
        (lists / f"{split}.txt").write_text(text, encoding="utf-8")
    for place, sample in places.items():
        member = place.relative_to("JPEGImages")
        if member.parent.parts:
            (root / "Annotations" / str(member.parent)).mkdir(parents=True, exist_ok=True)
        path = root / "Annotations" / f"{member.as_posix()}.xml"
        path.write_text(_xml(file_of(place, sample), sample, dataset.classes), encoding="utf-8")
    return places


def _xml(filename: str, sample: Sample, classes: tuple[str, ...]) -> str:
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
