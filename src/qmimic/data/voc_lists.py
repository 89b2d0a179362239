"""Which annotations of a VOC folder belong to which split: the lists of ImageSets, or folders that are called so."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from qmimic.data.accounts import Tally
from qmimic.data.labels import (
    SUFFIXES,
    read_text,
)
from qmimic.data.sample import LabelDefect
from qmimic.data.voc_file import Annotation

SPLITS = ("train", "val", "valid", "validation", "test", "trainval")  # folders and lists that are splits by their name


def folders_of(root: Path) -> list[Path]:
    """The folders in a folder, by name; those whose names begin with a dot are not data."""
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def lists_of(base: Path) -> dict[str, Path]:
    """The lists of splits: in ImageSets/Main, in ImageSets, or beside the folders."""
    below = [folder for folder in folders_of(base) if folder.name.lower() == "imagesets"]
    main = [folder for own in below for folder in folders_of(own) if folder.name.lower() == "main"]
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


def members_by_folder(found: Mapping[str, Annotation | None]) -> dict[str, list[str]]:
    """Splits where no list names them: folders that are called so, or one."""
    tops = {key: PurePosixPath(key).parts[0] if "/" in key else "" for key in sorted(found)}
    if not tops or not set(tops.values()) <= set(SPLITS):
        return {"train": sorted(found)}
    return {split: [key for key, top in tops.items() if top == split] for split in SPLITS if split in tops.values()}


def listed_members(
    base: Path,
    lists: Mapping[str, Path],
    found: Mapping[str, Annotation | None],
    parsed: Mapping[str, Annotation],
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
