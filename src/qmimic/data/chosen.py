"""The dataset that a recipe chooses, and what is known of it at once: a name for it, and the sizes of its boxes."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmimic.config import REST, DataConfig
from qmimic.data import index
from qmimic.data.accounts import Accounts
from qmimic.data.columns import Columns, in_columns
from qmimic.data.faults import findable, remedy
from qmimic.data.formats import load_dataset, usable
from qmimic.data.letterbox import fit
from qmimic.data.sample import Dataset, has_area
from qmimic.data.splits import TRAIN, VAL, choose, with_share
from qmimic.data.unlabelled import Unlabelled, pictures_of, without_labels
from qmimic.errors import InputError, single_line

SAID = (
    "split_stands_in",
    "counted_from_zero",
    "turned_by_exif",
    "duplicate_box",
    "another_layout",
    "unused_label_file",
    "linked_folder",
)  # notes that training repeats


def open_dataset(config: DataConfig) -> Dataset:
    """The dataset of a recipe, checked, without what it cannot use; its splits are TRAIN and VAL.

    Raises:
        InputError: the dataset cannot be read or used, or a split is missing.
    """
    return _opened(config)[0]


def open_with_unlabelled(config: DataConfig) -> tuple[Dataset, Unlabelled | None]:
    """The same, with the pictures that the teacher is to label, where a recipe names some.

    Raises:
        InputError: as `open_dataset`; or these pictures cannot be read, or are VAL's.
    """
    dataset, rest = _opened(config)
    if config.unlabelled is None:
        return dataset, None
    if config.unlabelled == REST:
        return dataset, without_labels(dataset, rest)
    return dataset, pictures_of(Path(config.unlabelled), dataset, config)


def _opened(config: DataConfig) -> tuple[Dataset, Columns]:
    """The dataset, and the training samples whose labels do not count."""
    root = Path(config.root)
    if index.exists(root):
        dataset = index.read(root, config.drop_bad_boxes)
    else:
        dataset = usable(load_dataset(root), config.drop_bad_boxes)
    chosen = choose(dataset, config.train, config.val, config.fold)
    apart = _apart(chosen, config)
    accounts = _without(dataset.accounted, dataset, chosen, "not_chosen")
    accounts = _without(accounts, chosen, apart, "also_in_val")
    splits = in_columns(apart.splits, apart.root)
    if config.label_share == 1:
        return replace(apart, accounted=accounts), splits[TRAIN].take([])
    kept, rest = with_share(splits[TRAIN], config.label_share)
    labelled = replace(apart, splits={TRAIN: kept, VAL: splits[VAL]})
    return replace(labelled, accounted=_without(accounts, apart, labelled, "beyond_label_share")), rest


def remarks(dataset: Dataset, limits: Mapping[str, int], allow_capped: bool) -> tuple[str, ...]:
    """What a person has to know of the data before the first step: what is used, what is not, and why.

    Args:
        dataset: from `open_dataset`.
        limits: settings that cap what the detector finds, see `faults.limits`.
        allow_capped: go on where a picture has more objects than that.

    Raises:
        InputError: one has, and `allow_capped` is False.
    """
    said = [dataset.accounted.as_text()] if dataset.accounted else []
    kinds = Counter(defect.kind for defect in dataset.defects if defect.kind in SAID)
    for kind, count in kinds.items():
        first = next(defect for defect in dataset.defects if defect.kind == kind)
        said.append(
            single_line(f"{first.file}: {first.detail}") + (f" ({count - 1:,} more like it.)" if count > 1 else "")
        )
    splits = in_columns(dataset.splits, dataset.root)
    empty = int((splits[TRAIN].counts == 0).sum())
    if empty:
        said.append(f"{empty:,} training pictures are labelled as empty and teach background.")
    counts = _objects(splits)
    capped = findable(counts, limits)
    if capped and not allow_capped:
        raise InputError(f"{capped.rstrip('.')}; {remedy(int(counts.max()), limits)}.")
    return tuple([*said, capped] if capped else said)


def _objects(splits: Mapping[str, Columns]) -> NDArray[np.int64]:
    """How many objects of each sample are to be found: those that are neither difficult nor a crowd, int64 [n]."""
    store = next(iter(splits.values())).store
    before = np.concatenate([[0], np.cumsum(~store.ignored, dtype=np.int64)])
    rows = np.concatenate([own.rows for own in splits.values()])
    counts: NDArray[np.int64] = before[store.starts[rows + 1]] - before[store.starts[rows]]
    return counts


def _apart(dataset: Dataset, config: DataConfig) -> Dataset:
    """The dataset, if no image of VAL is trained on; else without them in TRAIN, where bad data are to be dropped.

    Raises:
        InputError: some are, and `config.drop_bad_boxes` is not set; or nothing would be left.
    """
    splits = in_columns(dataset.splits, dataset.root)
    train, val = splits[TRAIN], splits[VAL]
    known = np.sort(val.image_pixels[val.image_pixels > 0])
    same = _held([val])[train.rows] | _among(train.image_pixels, known)
    if not same.any():
        return dataset
    shown = train.take(np.flatnonzero(same).tolist())
    seen = np.sort(shown.image_pixels[shown.image_pixels > 0])
    count = int((_held([shown])[val.rows] | _among(val.image_pixels, seen)).sum())
    if not config.drop_bad_boxes or same.all():
        first = train[int(np.flatnonzero(same)[0])].image_id
        raise InputError(
            f"{count} of {len(val)} images of {config.scored} are in {config.train} too, the first: {first}; scores on "
            "training images say nothing. Take them out of one of the two"
            + ("." if same.all() else ", or leave them out of training (data.drop_bad_boxes=true).")
        )
    kept = train.take(np.flatnonzero(~same).tolist())
    return replace(dataset, splits={TRAIN: kept, VAL: val})


def _without(accounts: Accounts | None, before: Dataset, after: Dataset, kind: str) -> Accounts | None:
    """The accounts after the samples that only `before` has were left out."""
    if accounts is None:
        return None
    old, new = (list(in_columns(one.splits, one.root).values()) for one in (before, after))
    gone = np.flatnonzero(_held(old) & ~_held(new))
    starts = old[0].store.starts
    boxes = int((starts[gone + 1] - starts[gone]).sum())
    if not len(gone):
        return accounts
    return Accounts(
        accounts.pictures.without(kind, len(gone)),
        accounts.labels.without(kind, len(gone)),
        accounts.boxes.without(kind, boxes) if boxes else accounts.boxes,
    )


def _held(splits: Sequence[Columns]) -> NDArray[np.bool_]:
    """Which samples of their common store some splits hold, bool [N]."""
    held = np.zeros(len(splits[0].store.image_lengths), np.bool_)
    for own in splits:
        held[own.rows] = True
    return held


def _among(values: NDArray[np.int64], known: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which values are among sorted ones, bool."""
    if not len(known):
        return np.zeros(len(values), np.bool_)
    found: NDArray[np.bool_] = known[np.minimum(np.searchsorted(known, values), len(known) - 1)] == values
    return found


def box_sizes(samples: Columns, size: tuple[int, int]) -> NDArray[np.float32]:
    """Widths and heights of a split's boxes, [N, 2]. Args and which boxes: as `scaled_boxes`."""
    boxes, _ = scaled_boxes(samples, size)
    sides: NDArray[np.float32] = boxes[:, 2:] - boxes[:, :2]
    return sides


def scaled_boxes(samples: Columns, size: tuple[int, int]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """A split's boxes that are learnt, xyxy in pixels at the training size, [N, 4], and whose they are, [N].

    Those without area, difficult ones and crowds are left out.

    Args:
        samples: with images of known sizes.
        size: height and width of the network's input, pixels.
    """
    store, rows = samples.store, samples.box_rows
    known, which = np.unique(samples.image_sizes, axis=0, return_inverse=True)
    scales = np.array([fit(width, height, size).scale for width, height in known], np.float32).reshape(-1, 4)[which]
    boxes = store.boxes[rows]
    keep = has_area(boxes) & ~store.ignored[rows]
    scaled: NDArray[np.float32] = (boxes * np.repeat(scales, samples.counts, 0))[keep]
    return scaled, np.repeat(np.arange(len(samples)), samples.counts)[keep]


def dataset_fingerprint(dataset: Dataset) -> str:
    """A name for the labels and images of a dataset's splits; pixels count by size and last change of their files."""
    return _fingerprint(dataset, copied=False)


def content_fingerprint(dataset: Dataset, unlabelled: Unlabelled | None) -> str:
    """A name for labels and pictures that copies of the same files share: pixels count by size alone.

    Args:
        dataset, unlabelled: from `open_with_unlabelled`.
    """
    parts = [dataset, unlabelled.dataset] if unlabelled else [dataset]
    return " ".join(_fingerprint(part, copied=True) for part in parts)


def _fingerprint(dataset: Dataset, copied: bool) -> str:
    """What both are made of. Args: of the dataset; copied: leave out when files changed, which a copy may forget."""
    digest = hashlib.sha256("\n".join(dataset.classes).encode("utf-8", "surrogatepass"))
    for split, samples in in_columns(dataset.splits, dataset.root).items():
        store, boxes = samples.store, samples.box_rows
        digest.update(f"{split} {len(samples)}\n".encode("utf-8", "surrogatepass"))
        times = () if copied else (samples.image_times,)
        for array in (samples.id_bytes, samples.id_lengths, samples.image_lengths, *times, samples.counts):
            digest.update(array.tobytes())
        for column in (store.boxes, store.labels, store.difficult, store.crowd):
            digest.update(column[boxes].tobytes())
    return digest.hexdigest()[:16]
