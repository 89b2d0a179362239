"""YOLO txt: images/ and labels/ with `class cx cy w h` lines, as shares of the image; `data.yaml` names the classes.

A line holds no flags: boxes written here are neither difficult nor crowd any more.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from qmimic.data.accounts import Tally, data_files
from qmimic.data.images import image_size, turned_by_exif
from qmimic.data.labels import (
    MAX_DEPTH,
    Folder,
    actual_size,
    file_of,
    finite,
    is_file,
    is_picture,
    locate,
    make_sample,
    read_text,
    reserve,
    stated_size,
)
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.errors import InputError
from qmimic.files import inside, is_there
from qmimic.yaml_text import parse_yaml

SPLITS = ("train", "val", "test")  # the keys of data.yaml
NO_SPLITS = ("images", "names", "path", "nc", "download")  # what else these words mean in this layout
NO_VALUE = ("", "~", "null", "Null", "NULL")
NOT_LABELS = ("classes.txt", "labels.txt", "obj.txt", "readme.txt", "license.txt", "requirements.txt")
MAX_CLASS = 9999  # the highest index of a class
MAX_SHARE = 2.0  # beyond, a number is not a share of the picture with a rounding error


def sniff(root: Path) -> bool:
    """Whether a folder looks like YOLO, as Ultralytics, Roboflow, CVAT, Label Studio and LabelImg leave it."""
    if (root / "labels").is_dir() or is_file(root / "obj.data") or _config_file(root) is not None:
        return True
    return any(_labelled_folders(root))


def read(root: Path) -> Dataset:
    """Read a YOLO folder, with or without `data.yaml`; classes in order of index.

    A split is a folder with all that lies below it, a `.txt` list of pictures, or several of these. A picture of
    which a line cannot be read is left out; one without a label file is not used.

    Raises:
        InputError: the YAML cannot be read, lists a name twice, or a path leads out of the folder.
    """
    config = _config(root)
    defects: list[LabelDefect] = []
    files = list(data_files(root))
    pictures = [path for path in files if is_picture(path)]
    lists: set[Path] = set()
    members = _members(root, config, pictures, lists, defects)
    names = _names(root, config)
    spelled = _spelled(root, members)
    tally = Tally()
    ambiguous = _ambiguous(pictures)
    for stem, own in ambiguous.items():
        if any(path in spelled for path in own):
            text = f"{' and '.join(path.name for path in own)} have one label file; rename one of them."
            defects.append(LabelDefect("two_images_for_one_label", str(stem.relative_to(root)), text))
    doubtful = {path for own in ambiguous.values() for path in own}
    used: set[Path] = set()
    turned = 0
    made: dict[Path, Sample | None] = {}
    for path, name in spelled.items():
        label = _label_of(root, path)
        if (label is not None and label in used) or path in doubtful:
            made[path] = None
            tally.pictures_out[path] = "two_images_for_one_label"
            continue
        sample, turns = _sample(root, path, label, name, names, defects, tally)
        turned += turns
        made[path] = sample
        if label is not None:
            used.add(label)
    labels = [path for path in files if _is_label(root, path, pictures) and path not in lists]
    _unused(root, set(labels) - used, pictures, set(spelled), doubtful, defects, tally)
    if turned:
        text = f"{turned} pictures are turned by EXIF; labels drawn without that are wrong."
        defects.append(LabelDefect("turned_by_exif", root.name, text))
    if not names and labels:
        text = "The classes have no names: write `names: [...]` into data.yaml, or one name a line into classes.txt."
        defects.append(LabelDefect("no_class_names", root.name, text))
    for path in set(pictures) - set(spelled):
        tally.pictures_out.setdefault(path, "not_listed")
    splits = {
        split: tuple(sample for path in own if (sample := made[path]) is not None) for split, own in members.items()
    }
    return Dataset(root.name, root, names, splits, tuple(defects), accounted=tally.close(pictures, splits))


def write(root: Folder, dataset: Dataset) -> dict[Path, Sample]:
    """Write all labels as YOLO into an empty folder.

    An image of several splits is written once, into the folder of the smallest; the others become lists of images.
    Coordinates come back as the same float32 if they are 0 or no nearer to 0 than 1e-7 of the box's other side.

    Returns:
        Where each image belongs: a path relative to `root`, without the suffix of the image's own name.

    Raises:
        InputError: a split has a name that means something else, or an image cannot be read.
    """
    splits = dataset.splits
    reserved = next((split for split in splits if split in NO_SPLITS), None)
    if reserved is not None:
        raise InputError(f"In YOLO's layout no split can be called {reserved!r}; rename the split.")
    homes: dict[str, str] = {}
    for split in sorted(splits, key=lambda split: len(splits[split])):
        for sample in splits[split]:
            homes.setdefault(_own(sample), split)
    places: dict[Path, Sample] = {}
    config: dict[str, Any] = {}
    for split, samples in splits.items():
        own = {homes[_own(sample)] for sample in samples}
        if split in homes.values() or not own:
            for folder in ("images", "labels"):
                (root / folder / split).mkdir(parents=True)
        listed = [(reserve(places, Path("images", homes[_own(one)]), one), one) for one in samples]
        if own - {split}:
            text = "".join(f"{(place.parent / file_of(place, one)).as_posix()}\n" for place, one in listed)
            (root / f"{split}.txt").write_text(text, encoding="utf-8")
            config[split] = f"{split}.txt"
        elif split in SPLITS:
            config[split] = f"images/{split}"
    for place, sample in places.items():
        # What a label says of its image may be wrong, and here that would move boxes; a checked dataset says the truth.
        width, height = stated_size(sample) if dataset.checked else actual_size(sample)
        lines = []
        for (x1, y1, x2, y2), label in zip(sample.boxes.tolist(), sample.labels.tolist(), strict=True):
            (x, w), (y, h) = _shares(x1, x2, width), _shares(y1, y2, height)
            lines.append(f"{label} {x!r} {y!r} {w!r} {h!r}\n")
        below = Path("labels", *place.parts[1:])
        if len(below.parts) > 3:  # ids with folders tell images of equal names apart
            (root / str(below.parent)).mkdir(parents=True, exist_ok=True)
        (root / f"{below.as_posix()}.txt").write_text("".join(lines), encoding="utf-8")
    config["names"] = list(dataset.classes)
    (root / "data.yaml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return places


def _own(sample: Sample) -> str:
    """What tells an image from others, whatever split it is in."""
    return str(sample.image or sample.image_id)


def _shares(low: float, high: float, length: int) -> tuple[float, float]:
    """Centre and extent as shares of the image's side; in float64 they give back what float32 coordinates hold."""
    return (low / length + high / length) / 2, high / length - low / length


def _config_file(root: Path) -> Path | None:
    if is_file(root / "data.yaml"):
        return root / "data.yaml"
    found = []
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        if not path.name.startswith("."):
            text = read_text(path, root)
            if "names:" in text and ("train:" in text or (root / "labels").is_dir()):
                found.append(path)
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1]} both describe {root}; keep one of them, as data.yaml.")
    return found[0] if found else None


def _config(root: Path) -> dict[str, Any]:
    """What `data.yaml`, or CVAT's `obj.data`, says; plain values are all text, so that a name stays as it is."""
    path = _config_file(root)
    if path is None:
        return _darknet(root)
    config = parse_yaml(read_text(path, root), str(path), texts=True)
    if not isinstance(config, dict):
        raise InputError(f"{path} needs `names:` and the folders of its splits.")
    if isinstance(config.get("path"), list | dict):
        raise InputError(f"`path:` in {path} is not a folder; write one name.")
    return {**config, "": str(path)}


def _darknet(root: Path) -> dict[str, Any]:
    path = root / "obj.data"
    if not is_file(path):
        return {}
    pairs = [line.split("=", 1) for line in read_text(path, root).splitlines() if "=" in line]
    said = {key.strip(): value.strip() for key, value in pairs}
    config: dict[str, Any] = {"val" if key == "valid" else key: said[key] for key in said if key in (*SPLITS, "valid")}
    listed = locate(root, [root], said.get("names", "obj.names"))
    if listed is not None:
        config["names"] = _lines(root, listed)
    return {**config, "": str(path)}


def _lines(root: Path, path: Path) -> list[str]:
    return [line.strip() for line in read_text(path, root).splitlines() if line.strip()]


def _labelled_folders(root: Path) -> Iterator[Path]:
    """Folders without `images` in their name: `train/` with `images/` and `labels/`, or pictures beside labels."""
    for folder in [root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]:
        if folder != root and (folder / "images").is_dir() and (folder / "labels").is_dir():
            yield folder / "images"
        elif any(is_picture(path) and is_file(path.with_suffix(".txt")) for path in folder.iterdir()):
            yield folder


def _members(
    root: Path, config: dict[str, Any], pictures: list[Path], lists: set[Path], defects: list[LabelDefect]
) -> dict[str, list[Path]]:
    """The pictures of every split, in order."""
    base = str(config.get("path") or ".")
    members: dict[str, list[Path]] = {}
    keys = {"val" if key == "valid" else key: key for key in (*SPLITS, "valid") if key in config}
    for key, value in config.items():  # further lists under names of their own
        if key not in (*keys.values(), *NO_SPLITS, "") and isinstance(value, str) and value.endswith(".txt"):
            keys |= {key: key} if _source(root, base, value) is not None else {}
    for split, key in keys.items():
        values = config[key] if isinstance(config[key], list) else [config[key]]
        found: dict[Path, None] = {}
        for value in values:
            if isinstance(value, list | dict):
                raise InputError(f"`{key}:` in {config['']} has to be a folder, a .txt list of pictures, or several.")
            if value is None or value in NO_VALUE:
                continue
            source = _source(root, base, value)
            if source is None:
                text = f"`{key}: {value}` names a folder or list that is not in {root}."
                defects.append(LabelDefect("missing_split" if split != "test" else "missing_test", "data.yaml", text))
            elif source.is_dir():
                found.update(dict.fromkeys(path for path in pictures if path.is_relative_to(source)))
            else:
                lists.add(source)
                found.update(dict.fromkeys(_listed(root, source, defects)))
        if found or any(value not in (None, *NO_VALUE) for value in values):
            members[split] = list(found)
    taken = {path for own in members.values() for path in own}
    images = root / "images"
    folders = sorted(path for path in images.iterdir() if path.is_dir()) if images.is_dir() else []
    for folder in folders:
        inside(root, folder)
        own = [path for path in pictures if path.is_relative_to(folder)]
        if folder.name not in members and not taken & set(own) and (root / "labels" / folder.name).is_dir():
            members[folder.name] = own
    if not members and images.is_dir():
        members["train"] = [path for path in pictures if path.is_relative_to(images)]
    if not members:
        found_folders = list(_labelled_folders(root))
        for folder in found_folders:
            name = folder.parent.name if folder.name == "images" else folder.name
            split = "train" if len(found_folders) == 1 else name
            members[split] = [path for path in pictures if path.is_relative_to(folder)]
    return members


def _source(root: Path, base: str, value: str) -> Path | None:
    """The folder or list that a value of `data.yaml` names, found by its tail inside the root and never outside."""
    plain = value.replace("\\", "/")
    parts = [part for part in PurePosixPath(plain).parts if part not in ("/", ".", "..")]
    # `images` alone, of `test/images`, would be every split's folder.
    starts = range(max(0, len(parts) - MAX_DEPTH), len(parts))
    ends = [parts[k:] for k in starts if k == 0 or parts[k:] not in (["images"], ["labels"])]
    tails = [root / base / plain, root / plain, *(root.joinpath(*end) for end in ends)]
    real = root.resolve()
    for path in tails:
        if not is_there(path):
            continue
        try:
            found = path.resolve()
        except (OSError, RuntimeError):  # links in a circle
            continue
        if found.is_relative_to(real) and (found != real or plain in (".", "./")):
            return root / found.relative_to(real)  # in the root's own spelling, as the walk through its files has it
    return None


def _listed(root: Path, source: Path, defects: list[LabelDefect]) -> Iterator[Path]:
    """The pictures of a list, each once."""
    for line in dict.fromkeys(_lines(root, source)):
        path = locate(root, [root, source.parent], line)
        if path is None:
            text = f"It lists {line}, which is not there."
            defects.append(LabelDefect("label_without_image", str(source.relative_to(root)), text))
        elif is_picture(path):
            yield root / path.resolve().relative_to(root.resolve()) if path.exists() else path


def _names(root: Path, config: dict[str, Any]) -> tuple[str, ...]:
    names = config.get("names")
    source = config.get("") or str(root / "data.yaml")
    if isinstance(names, dict) and set(names) == set(map(str, range(len(names)))):
        names = [names[str(index)] for index in range(len(names))]
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) and n.strip() for n in names)):
        raise InputError(f"`names:` in {source} is not a list of class names from index 0 on; correct it.")
    for place in (root / "classes.txt", root / "labels" / "classes.txt", root / "obj.names"):
        if names is None and is_file(place):
            names, source = _lines(root, place), str(place)
    if names is None:
        found = sorted(path for path in root.glob("*/classes.txt") if not path.parent.name.startswith("."))
        names, source = (_lines(root, found[0]), str(found[0])) if len(found) == 1 else ([], source)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{source} names the class {twice[0]!r} twice; give each class its own name.")
    return tuple(names)


def _spelled(root: Path, members: dict[str, list[Path]]) -> dict[Path, str]:
    """Every listed picture with its name: without suffix below its split's folder, longer where two would be equal."""
    forms: dict[Path, tuple[str, ...]] = {}
    for own in members.values():
        common = Path(os.path.commonpath([path.parent for path in own])) if own else root
        for path in own:
            relative = path.relative_to(root)
            bare = str(relative.with_name(path.stem))
            forms.setdefault(path, (str(path.relative_to(common).with_name(path.stem)), bare, str(relative)))
    times = Counter(form for own_forms in forms.values() for form in set(own_forms))
    return {path: next((form for form in own if times[form] == 1), own[-1]) for path, own in forms.items()}


def _label_of(root: Path, picture: Path) -> Path | None:
    """The label file of a picture: `images` in its path becomes `labels`, or it lies beside the picture."""
    parts = picture.relative_to(root).with_name(f"{picture.stem}.txt").parts
    places = [place for place, part in enumerate(parts[:-1]) if part == "images"]
    for place in reversed(places):
        path = root.joinpath(*parts[:place], "labels", *parts[place + 1 :])
        if is_file(path):
            return path
    beside = root.joinpath(*parts)
    return beside if is_file(beside) else None


def _ambiguous(pictures: list[Path]) -> dict[Path, list[Path]]:
    groups: dict[Path, list[Path]] = {}
    for path in pictures:
        groups.setdefault(path.with_suffix(".txt"), []).append(path)
    return {label: own for label, own in groups.items() if len(own) > 1}


def _is_label(root: Path, path: Path, pictures: list[Path]) -> bool:
    if path.suffix.lower() != ".txt" or path.name.lower() in NOT_LABELS:
        return False
    return "labels" in path.relative_to(root).parts[:-1] or any(
        is_file(path.with_suffix(suffix)) for suffix in (".jpg", ".png", ".jpeg", ".JPG")
    )


def _unused(
    root: Path,
    labels: set[Path],
    pictures: list[Path],
    listed: set[Path],
    doubtful: set[Path],
    defects: list[LabelDefect],
    tally: Tally,
) -> None:
    """Name or count the label files that no picture of a split has."""
    known = {label: path for path in pictures if path not in listed and (label := _label_of(root, path)) is not None}
    clashing = {_label_of(root, path) for path in doubtful}
    for label in sorted(labels):
        tally.labels += 1
        try:
            boxes = len(_lines(root, label))
        except InputError:
            boxes = 0
        tally.boxes += boxes
        if label in clashing:
            tally.drop("two_images_for_one_label", boxes)
        elif label in known:
            tally.drop("not_listed", boxes)
        else:
            tally.drop("without_picture", boxes)
            text = "No picture has its name; put the picture there, or remove the label."
            defects.append(LabelDefect("label_without_image", str(label.relative_to(root)), text))


def _sample(
    root: Path,
    path: Path,
    label: Path | None,
    name: str,
    names: tuple[str, ...],
    defects: list[LabelDefect],
    tally: Tally,
) -> tuple[Sample | None, bool]:
    """A picture's sample, or None with a defect; and whether EXIF turns it."""
    shown = str(path.relative_to(root))
    inside(root, path)
    lines: list[str] = []
    fault = None
    if label is not None:
        tally.labels += 1
        try:
            lines = read_text(label, root).splitlines()
        except InputError as error:
            fault = str(error)
    count = sum(bool(line.strip()) for line in lines)
    tally.boxes += count
    try:
        width, height = image_size(path, root)
        turns = turned_by_exif(path, root)
    except InputError as error:
        defects.append(LabelDefect("unreadable_image", shown, str(error)))
        if label is not None:
            tally.drop("unreadable_image", count)
        tally.pictures_out[path] = "unreadable_image"
        return None, False
    if label is None:
        defects.append(LabelDefect("image_without_label", shown, "It has no label file and is not used."))
        return None, turns
    boxes, classes, kind = [], [], "bad_label"
    for number, line in enumerate(lines, start=1):
        if fault is not None or not line.strip():
            continue
        row = _row(line)
        if isinstance(row, str):
            fault = f"Line {number} {row}: {line.strip()[:80]!r}."
        elif row[0] >= len(names):
            fault, kind = f"Line {number}: the class {row[0]} has no name.", "unknown_class"
        else:
            index, x1, y1, x2, y2 = row
            if max(map(abs, row[1:])) > MAX_SHARE:
                text = (
                    f"Line {number} has pixels; coordinates are shares of the picture, 0 to 1: {line.strip()[:80]!r}."
                )
                defects.append(LabelDefect("bad_label", str(label.relative_to(root)), text))
            boxes.append((x1 * width, y1 * height, x2 * width, y2 * height))
            classes.append(index)
    if fault is not None:  # an object that cannot be read must not be taught as background
        if kind == "bad_label" or names:
            defects.append(LabelDefect(kind, str(label.relative_to(root)), fault))
        tally.drop("unreadable_label" if kind == "bad_label" else "unknown_class", count, path)
        return None, turns
    return make_sample(name, path, boxes, classes, (width, height)), turns


def _row(line: str) -> tuple[int, float, float, float, float] | str:
    """A line's class and box x1 y1 x2 y2 as shares of the picture, or what is wrong with it."""
    fields = line.split()
    if "," in line:
        return "has commas; separate `class cx cy w h` by spaces"
    try:
        index = int(fields[0])
    except ValueError:
        return "does not begin with a whole number, the index of a class"
    try:
        values = [float(field) for field in fields[1:]]
    except ValueError:
        return "has something that is not a number"
    if len(values) == 5:
        return "has six numbers, as detections have with their score; a label is `class cx cy w h`"
    polygon = len(values) >= 6 and len(values) % 2 == 0
    if len(values) != 4 and not polygon:
        return "is not `class cx cy w h`, nor a polygon"
    if not 0 <= index <= MAX_CLASS or not finite(*values):
        return "is not `class cx cy w h`"
    if polygon:
        return index, min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2])
    x, y, w, h = values
    return index, x - w / 2, y - h / 2, x + w / 2, y + h / 2
