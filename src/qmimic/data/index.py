"""An index: a checked dataset as columns on disk, so that a million images open in a moment.

It lies in the dataset's own folder, or in the user's cache where that folder is read-only, as `.npy` files that are
memory-mapped and a JSON file that describes them. All of it carries checksums, which are verified when it is opened.
Training reads it instead of the label files; everything else reads the labels themselves.
"""

import hashlib
import os
import re
import warnings
import zlib
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, unquote_to_bytes

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, ValidationError

from qmimic.config import explain
from qmimic.data.accounts import Accounts
from qmimic.data.columns import Columns, Store, in_columns
from qmimic.data.formats import load_dataset, usable
from qmimic.data.labels import is_file, read_text
from qmimic.data.sample import NOTES, Dataset, LabelDefect
from qmimic.errors import InputError
from qmimic.files import building, is_there, open_file

FOLDER = "qmimic-index"
TOP = "."
DESCRIPTION = "index.json"
VERSION = 5  # 1 had no times of the images, 2 not what tells equal images and no account, 3 no checksums, 4 no notes
MOST_NOTES = 10**6  # of a kind; a stranger's index may state any number
COLUMNS = {  # dtype and length: of N samples, their N + 1 starts, T boxes or bytes of text
    "id_bytes": (np.uint8, ""),
    "id_starts": (np.int64, "N+1"),
    "image_bytes": (np.uint8, ""),
    "image_starts": (np.int64, "N+1"),
    "image_sizes": (np.int32, "N"),
    "image_lengths": (np.int64, "N"),
    "image_times": (np.int64, "N"),
    "image_pixels": (np.int64, "N"),
    "starts": (np.int64, "N+1"),
    "boxes": (np.float32, "T"),
    "labels": (np.int32, "T"),
    "difficult": (np.bool_, "T"),
    "crowd": (np.bool_, "T"),
}
FEW = 100  # in a folder of no more files, each label file is watched
LABEL_SUFFIXES = (".json", ".yaml", ".yml", ".txt", ".xml", ".mat")


class _Description(BaseModel):
    """What an index says of itself.

    Attributes:
        version: of the layout.
        classes: names; the index is the label.
        splits: names; split k's rows are in `split-k.npy`.
        drop_bad: bad boxes and images were left out.
        stamps: last change (ns) and size of the dataset's folders and of label files that stand beside few others.
        accounted: what became of pictures, labels and boxes.
        notes: what is worth knowing and stops nothing: of each kind the first, and how many there are.
        sums: checksums of the arrays, by name of the file.
        sum: of all the rest of this.
    """

    version: int
    classes: list[str]
    splits: list[str]
    drop_bad: bool
    stamps: dict[str, tuple[int, int]]
    accounted: Accounts | None = None
    notes: list[tuple[str, str, str, Annotated[int, Field(ge=1, le=MOST_NOTES)]]] = []
    sums: dict[str, int]
    sum: str = ""

    def own_sum(self) -> str:
        return hashlib.sha256(self.model_copy(update={"sum": ""}).model_dump_json().encode()).hexdigest()[:16]


def write(dataset: Dataset, drop_bad: bool, stamps: dict[str, tuple[int, int]] | None = None) -> str:
    """Check a dataset of files and write its index into its folder, in place of an older one; if that folder cannot be
    written, into the user's cache.

    Args:
        dataset: as read.
        drop_bad: leave out bad boxes and images; if False, any of them is an error.
        stamps: of the folder before it was read, so that what changed meanwhile is noticed; None: as it is now.

    Returns:
        One sentence for a person.

    Raises:
        InputError: something is bad and `drop_bad` is False, or the disk is full.
    """
    root = dataset.root
    if root is None:
        raise InputError(f"{dataset.name} is drawn and needs no index; name the folder of a dataset.")
    place = root / FOLDER if os.access(root, os.W_OK) else _elsewhere(root)
    if place.is_symlink() or (place.exists() and not is_file(place / DESCRIPTION)):
        raise InputError(f"{place} is not a qmimic index and would be lost; move it away.")
    checked = usable(dataset, drop_bad)
    splits = in_columns(checked.splits, root)
    if not splits:
        raise InputError(f"{root} has no split, there is nothing to index.")
    store = next(iter(splits.values())).store
    stamps = stamps or _stamps(root)  # before the folder that is being built stands in it
    with building(place, replace=_ours) as folder:
        arrays = {f"{name}.npy": getattr(store, name) for name in COLUMNS}
        arrays |= {f"split-{number}.npy": samples.rows for number, samples in enumerate(splits.values())}
        for name, array in arrays.items():
            np.save(folder / name, array)
        description = _Description(
            version=VERSION,
            classes=list(dataset.classes),
            splits=list(splits),
            drop_bad=drop_bad,
            stamps=stamps,
            accounted=checked.accounted,
            notes=_notes(checked.defects),
            sums={name: _sum(array) for name, array in arrays.items()},
        )
        whole = description.model_copy(update={"sum": description.own_sum()})
        (folder / DESCRIPTION).write_text(whole.model_dump_json(), encoding="utf-8")
    size = sum(path.stat().st_size for path in place.iterdir())
    counts = ", ".join(f"{split} {len(samples):,}" for split, samples in splits.items())
    said = f"{place}: {counts} images with {len(store.boxes):,} boxes in {size / 1e6:.1f} MB."
    return said if place.parent == root else f"{said} It is there because {root} cannot be written."


def make(root: Path, drop_bad: bool) -> str:
    """Read a dataset's folder and index it. Args, returns, raises: as `write`."""
    before = _stamps(root) if root.is_dir() else None
    return write(load_dataset(root), drop_bad, before)


def exists(root: Path) -> bool:
    """Whether a dataset's folder has an index."""
    return is_file(_place(root) / DESCRIPTION)


def _place(root: Path) -> Path:
    """Where the index of a folder is: in it, or in the user's cache if none is in it."""
    return root / FOLDER if is_there(root / FOLDER) else _elsewhere(root)


def _elsewhere(root: Path) -> Path:
    """Where the index of a folder that cannot be written is kept."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))  # noqa: PTH111 (it never fails)
    if not home.is_absolute():  # nobody's home is known
        return root / FOLDER
    return home / "qmimic" / FOLDER / hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]


def read(root: Path, drop_bad: bool) -> Dataset:
    """Open the index of a dataset's folder. Only what is asked for is read from the disk.

    Args:
        root: the dataset's folder.
        drop_bad: whether bad boxes and images are to be left out; the index must have been made so.

    Raises:
        InputError: the index is broken, of another version, was made otherwise, or the folder has changed since.
    """
    folder = _place(root)
    again = f"run `qmimic data index {root}` again, or delete {folder}"
    try:
        description = _Description.model_validate_json(read_text(folder / DESCRIPTION, folder.parent))
    except ValidationError as error:
        raise InputError(f"{folder} is not a complete index ({explain(error)}); {again}.") from error
    if description.version != VERSION:
        raise InputError(f"{folder} is of another version of qmimic; {again}.")
    if description.sum != description.own_sum():
        raise InputError(f"{folder} is damaged: the checksum of {DESCRIPTION} does not fit; {again}.")
    if description.drop_bad and not drop_bad:
        raise InputError(f"{folder} leaves out bad boxes; set data.drop_bad_boxes=true, or delete it.")
    changed = _changed(root, description.stamps)
    if changed is not None:
        raise InputError(f"{changed} has changed since {folder} was made; {again}.")
    try:
        store = Store(**{name: _column(folder / f"{name}.npy") for name in COLUMNS})
        rows = [_column(folder / f"split-{k}.npy") for k in range(len(description.splits))]
    except Exception as error:  # NumPy reads a header as Python, with all the errors that Python has
        raise InputError(f"{folder} is not a complete index ({error}); {again}.") from error
    fault = _fault(store, rows, len(description.classes))
    if fault is not None:
        raise InputError(f"{folder} is not a complete index ({fault}); {again}.")
    arrays = {f"{name}.npy": getattr(store, name) for name in COLUMNS}
    arrays |= {f"split-{number}.npy": own for number, own in enumerate(rows)}
    with ThreadPoolExecutor() as pool:
        sums = dict(zip(arrays, pool.map(_sum, arrays.values()), strict=True))
    damaged = next((name for name, own in sums.items() if description.sums.get(name) != own), None)
    if damaged is not None:
        raise InputError(f"{folder} is damaged: the checksum of {damaged} does not fit; {again}.")
    splits = {split: Columns(store, root, own) for split, own in zip(description.splits, rows, strict=True)}
    notes = tuple(one for *own, count in description.notes for one in (LabelDefect(*own),) * count)
    accounted = description.accounted
    return Dataset(root.name, root, tuple(description.classes), splits, notes, checked=True, accounted=accounted)


def _notes(defects: Sequence[LabelDefect]) -> list[tuple[str, str, str, int]]:
    """Kind, file and detail of the first note of each kind, and how many there are."""
    kinds = Counter(one.kind for one in defects if one.kind in NOTES)
    first = {one.kind: one for one in reversed(defects)}
    return [(kind, first[kind].file, first[kind].detail, min(count, MOST_NOTES)) for kind, count in kinds.items()]


def _ours(name: str) -> bool:
    """Whether a name is that of a file of an index."""
    return name == DESCRIPTION or bool(re.fullmatch(r"split-\d+\.npy", name)) or name.removesuffix(".npy") in COLUMNS


def _sum(array: NDArray[Any]) -> int:
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _column(path: Path) -> NDArray[Any]:
    """An array of an index, mapped; its header alone is read.

    Raises:
        InputError: it is no regular file inside the index.
        Exception: it is not a whole `.npy` file of numbers.
    """
    with open_file(path, path.parent) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise ValueError(f"{path.name} is of the unknown version {version}")
        shape, by_column, dtype = read(file)
        if dtype.hasobject or by_column or min(shape, default=0) < 0:
            raise ValueError(f"{path.name} is not an array of numbers")
        if 0 in shape:
            return np.zeros(shape, dtype)
        return np.memmap(file, dtype, "r", file.tell(), shape)


def _fault(store: Store, rows: Sequence[NDArray[np.int64]], classes: int) -> str | None:
    """What is wrong with the arrays of an index, None if nothing."""
    if any(getattr(store, name).ndim == 0 for name in COLUMNS):
        return "a column is a single number"
    lengths = {"N": len(store.image_lengths), "N+1": len(store.image_lengths) + 1, "T": len(store.labels)}
    for name, (dtype, length) in COLUMNS.items():
        column: NDArray[np.generic] = getattr(store, name)
        tail = {"boxes": (4,), "image_sizes": (2,)}.get(name, ())
        if column.dtype != dtype or column.shape != (lengths.get(length, len(column)), *tail):
            return f"{name} has the shape {column.shape} of {column.dtype}"
    for name, total in (("id", store.id_bytes), ("image", store.image_bytes), ("", store.boxes)):
        starts = getattr(store, f"{name}_starts" if name else "starts")
        if starts[0] != 0 or starts[-1] != len(total) or (np.diff(starts) < 0).any():
            return f"{name or 'box'} starts are out of order"
    if not (np.diff(store.id_starts) > 0).all() or not (np.diff(store.image_starts) > 0).all():
        return "a sample has no name"
    if not (store.image_sizes > 0).all():
        return "an image has no size"
    for own in rows:
        if own.dtype != np.int64 or own.ndim != 1 or (len(own) and not 0 <= own.min() <= own.max() < lengths["N"]):
            return "a split names samples that are not there"
    if lengths["T"] and not 0 <= store.labels.min() <= store.labels.max() < classes:
        return "a label has no class"
    if not np.isfinite(store.boxes.sum(dtype=np.float64)):
        return "a box is not finite"
    return None


def _stamps(root: Path) -> dict[str, tuple[int, int]]:
    """Last change and size of folders below a dataset's, and of label files that stand beside few others."""
    watched: list[Path] = []
    for name, folders, files in os.walk(root):
        here = Path(name)
        if FOLDER in folders:
            folders.remove(FOLDER)
        watched += [here / folder for folder in folders]
        if len(files) <= FEW:
            watched += [here / file for file in files if Path(file).suffix.lower() in LABEL_SUFFIXES]
    found = {TOP: _entries(root)}
    for path in watched:
        if path.exists():  # a link may lead nowhere
            found[quote(os.fsencode(path.relative_to(root)))] = _stamp(path)
    return found


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def _changed(root: Path, stamps: dict[str, tuple[int, int]]) -> Path | None:
    """The first folder or file that is no longer as it was."""
    for name, stamp in {TOP: (0, 0), **stamps}.items():
        path = root / os.fsdecode(unquote_to_bytes(name))
        try:
            if (_entries(root) if name == TOP else _stamp(path)) != stamp:
                return path
        except (OSError, ValueError):
            return path
    return None


def _entries(root: Path) -> tuple[int, int]:
    """A number for the names in the top folder, whose own time changes with the index, and how many they are."""
    names = sorted(os.fsencode(path.name) for path in root.iterdir() if not path.name.lstrip(".").startswith(FOLDER))
    return int(hashlib.sha256(b"\0".join(names)).hexdigest()[:12], 16), len(names)
