"""Which pictures of a YOLO folder belong to which split, and what its classes are called: `data.yaml`, `obj.data`."""

import contextlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from qmimic.data.labels import (
    MAX_DEPTH,
    is_file,
    is_picture,
    locate,
    read_text,
)
from qmimic.data.sample import LabelDefect
from qmimic.errors import InputError
from qmimic.files import inside, is_there
from qmimic.yaml_text import parse_yaml

SPLITS = ("train", "val", "test")  # the keys of data.yaml
NO_SPLITS = ("images", "names", "path", "nc", "download")  # what else these words mean in this layout
MAX_KEYPOINTS = 10_000  # numbers of a line
NO_VALUE = ("", "~", "null", "Null", "NULL")


def config_file(root: Path) -> Path | None:
    """`data.yaml`, or the one other YAML file of its kind; None if there is none.

    Raises:
        InputError: there are several.
    """
    if is_file(root / "data.yaml"):
        return root / "data.yaml"
    found = _config_files(root)
    if len(found) > 1:
        raise InputError(f"{found[0]} and {found[1]} both describe {root}; keep one of them, as data.yaml.")
    return found[0] if found else None


def _config_files(root: Path) -> list[Path]:
    found = []
    for path in sorted([*root.glob("*.yaml"), *root.glob("*.yml")]):
        if not path.name.startswith("."):
            text = read_text(path, root)
            if "names:" in text and ("train:" in text or (root / "labels").is_dir()):
                found.append(path)
    return found


def keypoint_numbers(config: dict[str, Any]) -> int:
    """How many numbers stand behind the box of a line, where the configuration says that there are keypoints."""
    shape = config.get("kpt_shape")
    if not isinstance(shape, list) or len(shape) != 2 or not all(str(own).isdecimal() for own in shape):
        return 0
    return min(int(str(shape[0])[:6]) * int(str(shape[1])[:6]), MAX_KEYPOINTS)


def disagreements(root: Path, config: dict[str, Any], names: tuple[str, ...]) -> list[LabelDefect]:
    """Where the configuration contradicts itself, and others like it that are not read."""
    found = []
    own = str(config.get("") or "")
    count = str(config.get("nc") or len(names)).strip()
    if own and names and count != str(len(names)):
        text = f"`nc: {count[:20]}` and {len(names)} names do not agree; correct one of them."
        found.append(LabelDefect("class_count", Path(own).name, text))
    others: list[Path] = []
    with contextlib.suppress(InputError):  # what is not read need not be in order
        others = _config_files(root) if own else []
    for path in others:
        if str(path) != own:
            text = f"It describes the folder too and is not read; {Path(own).name} is."
            found.append(LabelDefect("unused_label_file", path.name, text))
    return found


def read_config(root: Path) -> dict[str, Any]:
    """What `data.yaml`, or CVAT's `obj.data`, says; plain values are all text, so that a name stays as it is.

    The key "" holds the file's own name, for messages; without a file the table is empty.

    Raises:
        InputError: the file cannot be read as such a table.
    """
    path = config_file(root)
    if path is None:
        return _darknet(root)
    config = parse_yaml(read_text(path, root), str(path), texts=True)
    if not isinstance(config, dict):
        raise InputError(f"{path} needs `names:` and the folders of its splits.")
    if isinstance(config.get("path"), list | dict):
        raise InputError(f"`path:` in {path} is not a folder; write one name.")
    return {**config, "": str(path)}


def darknet_file(root: Path) -> Path | None:
    """Darknet's `obj.data`, whatever it is called; None if there is none, or several."""
    found = [path for path in sorted(root.glob("*.data")) if is_file(path) and not path.name.startswith(".")]
    found = [path for path in found if path.name == "obj.data" or "names" in read_text(path, root)]
    own = [path for path in found if path.name == "obj.data"] or found
    return own[0] if len(own) == 1 else None


def _darknet(root: Path) -> dict[str, Any]:
    path = darknet_file(root)
    if path is None:
        return {}
    pairs = [line.split("=", 1) for line in read_text(path, root).splitlines() if "=" in line]
    said = {key.strip(): value.strip() for key, value in pairs}
    config: dict[str, Any] = {"val" if key == "valid" else key: said[key] for key in said if key in (*SPLITS, "valid")}
    listed = locate(root, [root], said.get("names", "obj.names"))
    if listed is not None:
        config["names"] = lines_of(root, listed)
    return {**config, "nc": said.get("classes"), "": str(path)}


def lines_of(root: Path, path: Path) -> list[str]:
    """The lines of a text file in the root, without those that are empty."""
    return [line.strip() for line in read_text(path, root).splitlines() if line.strip()]


def labelled_folders(root: Path) -> Iterator[Path]:
    """Folders without `images` in their name: `train/` with `images/` and `labels/`, or pictures beside labels."""
    for folder in [root, *sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))]:
        if folder != root and (is_file(folder / "data.yaml") or darknet_file(folder) is not None):
            continue  # a dataset of its own
        if folder != root and (folder / "images").is_dir() and (folder / "labels").is_dir():
            yield folder / "images"
        elif any(is_picture(path) and is_file(path.with_suffix(".txt")) for path in folder.iterdir()):
            yield folder


def split_members(
    root: Path, config: dict[str, Any], pictures: list[Path], lists: set[Path], defects: list[LabelDefect]
) -> dict[str, list[Path]]:
    """The pictures of every split, in order.

    Args:
        root: the dataset's folder.
        config: see `read_config`.
        pictures: all picture files.
        lists: gets the lists of pictures that were read.
        defects: gets what is named and not there.

    Raises:
        InputError: a value of the configuration is neither a folder nor a list.
    """
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
        found_folders = list(labelled_folders(root))
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
    for line in dict.fromkeys(lines_of(root, source)):
        path = locate(root, [root, source.parent], line)
        if path is None:
            text = f"It lists {line}, which is not there."
            defects.append(LabelDefect("label_without_image", str(source.relative_to(root)), text))
        elif is_picture(path):
            yield root / path.resolve().relative_to(root.resolve()) if path.exists() else path
        else:
            text = f"It lists {line}, whose name is not that of a picture."
            defects.append(LabelDefect("label_without_image", str(source.relative_to(root)), text))


def class_names(root: Path, config: dict[str, Any]) -> tuple[str, ...]:
    """The classes in order of index: from the configuration, or a file of names; empty if they stand nowhere.

    Raises:
        InputError: they are no list of names, or a name is there twice.
    """
    names = config.get("names")
    source = config.get("") or str(root / "data.yaml")
    if isinstance(names, dict) and set(names) == set(map(str, range(len(names)))):
        names = [names[str(index)] for index in range(len(names))]
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) and n.strip() for n in names)):
        raise InputError(f"`names:` in {source} is not a list of class names from index 0 on; correct it.")
    for place in (root / "classes.txt", root / "labels" / "classes.txt", root / "obj.names"):
        if names is None and is_file(place):
            names, source = lines_of(root, place), str(place)
    if names is None:  # LabelImg's, or Roboflow's for Darknet; where several folders have one, all have to say the same
        found = sorted([*root.glob("*/classes.txt"), *root.glob("*/_darknet.labels")])
        told = {path: lines_of(root, path) for path in found if not path.parent.name.startswith(".")}
        source, names = next(((str(path), own) for path, own in told.items()), (source, []))
        names = names if all(own == names for own in told.values()) else []
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise InputError(f"{source} names the class {twice[0]!r} twice; give each class its own name.")
    return tuple(names)
