"""YOLO txt: images/ and labels/ with `class cx cy w h` lines, as shares of the image; `data.yaml` names the classes.

A line holds no flags: boxes written here are neither difficult nor crowd any more.
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from qmimic.data.accounts import Tally, data_files
from qmimic.data.images import image_size
from qmimic.data.labels import (
    Folder,
    actual_size,
    apart,
    file_of,
    finite,
    is_file,
    is_picture,
    make_sample,
    read_text,
    reserve,
    stated_size,
)
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.data.yolo_config import (
    NO_SPLITS,
    SPLITS,
    class_names,
    config_file,
    darknet_file,
    disagreements,
    keypoint_numbers,
    labelled_folders,
    lines_of,
    read_config,
    split_members,
)
from qmimic.errors import InputError
from qmimic.files import inside

NOT_LABELS = ("classes.txt", "labels.txt", "obj.txt", "readme.txt", "license.txt", "requirements.txt")
LABELS = {"Images": "Labels", "IMAGES": "LABELS"}
MAX_CLASS = 9999  # the highest index of a class
MAX_SHARE = 2.0  # beyond, a number is not a share of the picture with a rounding error


def sniff(root: Path) -> bool:
    """Whether a folder looks like YOLO, as Ultralytics, Roboflow, CVAT, Label Studio and LabelImg leave it."""
    if (root / "labels").is_dir() or darknet_file(root) is not None or config_file(root) is not None:
        return True
    return any(labelled_folders(root))


def read(root: Path) -> Dataset:
    """Read a YOLO folder, with or without `data.yaml`; classes in order of index.

    A split is a folder with all that lies below it, a `.txt` list of pictures, or several of these. A picture of
    which a line cannot be read is left out; one without a label file is not used.

    Raises:
        InputError: the YAML cannot be read, lists a name twice, or a path leads out of the folder.
    """
    config = read_config(root)
    defects: list[LabelDefect] = []
    files = list(data_files(root))
    pictures, copies = apart(path for path in files if is_picture(path))
    lists: set[Path] = set()
    members = split_members(root, config, pictures, lists, defects)
    names = class_names(root, config)
    keypoints = keypoint_numbers(config)
    defects += disagreements(root, config, names)
    spelled = _spelled(root, members)
    tally = Tally()
    ambiguous = _ambiguous(pictures)
    for stem, own in ambiguous.items():
        if any(path in spelled for path in own):
            text = f"{' and '.join(path.name for path in own)} have one label file; rename one of them."
            defects.append(LabelDefect("two_images_for_one_label", str(stem.relative_to(root)), text))
    doubtful = {path for own in ambiguous.values() for path in own}
    used: set[Path] = set()
    made: dict[Path, Sample | None] = {}
    for path, name in spelled.items():
        label = _label_of(root, path)
        if (label is not None and label in used) or path in doubtful:
            made[path] = None
            tally.pictures_out[path] = "two_images_for_one_label"
            continue
        sample = _sample(root, path, label, name, names, keypoints, defects, tally)
        made[path] = sample
        if label is not None:
            used.add(label)
    labels = [path for path in files if _is_label(root, path, pictures) and path not in lists]
    _unused(root, set(labels) - used, pictures, set(spelled), doubtful, defects, tally)
    if not names and labels:
        text = "The classes have no names: write `names: [...]` into data.yaml, or one name a line into classes.txt."
        defects.append(LabelDefect("no_class_names", root.name, text))
    for path in set(pictures) - set(spelled):
        tally.pictures_out.setdefault(path, "not_listed")
    splits = {
        split: tuple(sample for path in own if (sample := made[path]) is not None) for split, own in members.items()
    }
    return Dataset(root.name, root, names, splits, tuple(defects), accounted=tally.close([*pictures, *copies], splits))


def write(root: Folder, dataset: Dataset) -> dict[Path, Sample]:
    """Write all labels as YOLO into an empty folder.

    An image of several splits is written once, into the folder of the smallest; the others become lists of images.
    Coordinates come back as the same float32 if they are 0 or no nearer to 0 than 1e-7 of the box's other side.

    Returns:
        Where each image belongs: a path relative to `root`, without the suffix of the image's own name.

    Raises:
        InputError: a split has a name that means something else, an image cannot be read, or a box lies so far outside
            of its image that its numbers would be taken for pixels.
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
            if max(abs(x1), abs(x2)) > MAX_SHARE * width or max(abs(y1), abs(y2)) > MAX_SHARE * height:
                raise InputError(
                    f"{sample.image_id} has a box far outside of its picture, x {x1:g} to {x2:g}, y {y1:g} to {y2:g} "
                    f"of {width} x {height}; as shares its numbers would be taken for pixels. Correct or remove it."
                )
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
    parts = picture.relative_to(root).parts
    places = [place for place, part in enumerate(parts[:-1]) if part.lower() == "images"]
    folders = [
        root.joinpath(*parts[:place], word, *parts[place + 1 : -1])
        for place in reversed(places)
        for word in dict.fromkeys((LABELS.get(parts[place], "labels"), "labels"))
    ]
    paths = (folder / f"{picture.stem}{suffix}" for folder in (*folders, picture.parent) for suffix in (".txt", ".TXT"))
    return next((path for path in paths if is_file(path)), None)


def _ambiguous(pictures: list[Path]) -> dict[Path, list[Path]]:
    groups: dict[Path, list[Path]] = {}
    for path in pictures:
        groups.setdefault(path.with_suffix(".txt"), []).append(path)
    return {label: own for label, own in groups.items() if len(own) > 1}


def _is_label(root: Path, path: Path, pictures: list[Path]) -> bool:
    if path.suffix.lower() != ".txt" or path.name.lower() in NOT_LABELS:
        return False
    return not {"labels", "Labels", "LABELS"}.isdisjoint(path.relative_to(root).parts[:-1]) or any(
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
    beside = {path.with_suffix(""): path for path in listed}
    for label in sorted(labels):
        tally.labels += 1
        try:
            boxes = len(lines_of(root, label))
        except InputError:
            boxes = 0
        tally.boxes += boxes
        if label in clashing:
            tally.drop("two_images_for_one_label", boxes)
        elif label in known:
            tally.drop("not_listed", boxes)
        elif (other := beside.get(label.with_suffix(""))) is not None:
            tally.drop("two_labels_for_one_image", boxes)
            text = f"{other.name} has its label in {_label_of(root, other)}; remove one of the two."
            defects.append(LabelDefect("two_labels_for_one_image", str(label.relative_to(root)), text))
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
    keypoints: int,
    defects: list[LabelDefect],
    tally: Tally,
) -> Sample | None:
    """A picture's sample, or None with a defect."""
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
    except InputError as error:
        defects.append(LabelDefect("unreadable_image", shown, str(error)))
        if label is not None:
            tally.drop("unreadable_image", count)
        tally.pictures_out[path] = "unreadable_image"
        return None
    if label is None:
        defects.append(LabelDefect("image_without_label", shown, "It has no label file and is not used."))
        return None
    boxes, classes, kind = [], [], "bad_label"
    for number, line in enumerate(lines, start=1):
        if fault is not None or not line.strip():
            continue
        row = _row(line, keypoints)
        if isinstance(row, str):
            fault = f"Line {number} {row}: {line.strip()[:80]!r}."
        elif row[0] >= len(names):
            fault, kind = f"Line {number}: the class {row[0]} has no name.", "unknown_class"
        else:
            index, x1, y1, x2, y2 = row
            if max(map(abs, row[1:])) > MAX_SHARE:
                fault = (
                    f"Line {number} has pixels; coordinates are shares of the picture, 0 to 1: {line.strip()[:80]!r}."
                )
                continue
            boxes.append((x1 * width, y1 * height, x2 * width, y2 * height))
            classes.append(index)
    if fault is not None:  # an object that cannot be read must not be taught as background
        if kind == "bad_label" or names:
            defects.append(LabelDefect(kind, str(label.relative_to(root)), fault))
        tally.drop("unreadable_label" if kind == "bad_label" else "unknown_class", count, path)
        return None
    return make_sample(name, path, boxes, classes, (width, height))


def _row(line: str, keypoints: int = 0) -> tuple[int, float, float, float, float] | str:
    """A line's class and box x1 y1 x2 y2 as shares of the picture, or what is wrong with it.

    Args:
        line: of a label file.
        keypoints: numbers behind the box, in data sets of poses.
    """
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
    if keypoints and len(values) == 4 + keypoints:
        values = values[:4]
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
