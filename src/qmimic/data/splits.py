"""Which images are trained on and scored, by which classes: splits by name, joined by +, or parts of one."""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches

import numpy as np

from qmimic.data.columns import Columns, Store, in_columns
from qmimic.data.labels import same_labels
from qmimic.data.sample import Dataset, LabelDefect, Sample
from qmimic.errors import InputError

TRAIN, VAL = "train", "val"
UNLABELLED = "unlabelled"  # of pictures whose labels do not count, or that have none
STAND_INS = ("valid", "validation")  # what other tools call val


def samples_of(dataset: Dataset, split: str) -> Sequence[Sample]:
    """The samples of a split, or of several joined by + (`train+val`), none of them twice; `valid` for a missing `val`.

    Raises:
        InputError: the dataset has no such split, or a picture has other labels in one of them than in another.
    """
    if split in dataset.splits:
        return dataset.splits[split]
    names = names_of(dataset, split)
    for name in names:
        if name not in dataset.splits:
            known = ", ".join(dataset.splits) or "none"
            raise InputError(f"{dataset.name} has no split {name!r}; its splits: {known}.{_next_step(dataset, name)}")
    parts = [part for name in names if isinstance(part := dataset.splits[name], Columns)]
    if len(parts) == len(names):  # of one store, then: no sample needs to be made
        rows: dict[str, int] = {}
        for part in parts:
            for place, (own, row) in enumerate(zip(part.ids, part.rows.tolist(), strict=True)):
                before = rows.setdefault(own, row)
                if before != row:
                    first = Columns(part.store, part.root, np.array([before], np.int64))[0]
                    _require_same(dataset, split, first, part[place])
        return Columns(parts[0].store, parts[0].root, np.array(list(rows.values()), np.int64))
    found: dict[str, Sample] = {}
    for name in names:
        for sample in dataset.splits[name]:
            _require_same(dataset, split, found.setdefault(sample.image_id, sample), sample)
    return tuple(found.values())


def _require_same(dataset: Dataset, split: str, first: Sample, second: Sample) -> None:
    """Raises: InputError: a picture of two splits has other labels in one of them."""
    if first is not second and not same_labels(first, second):
        raise InputError(
            f"{first.image_id} has other labels in one of the splits {split.replace('+', ' and ')} of {dataset.name} "
            "than in another; join them in one label file, or name one split."
        )


def names_of(dataset: Dataset, split: str) -> list[str]:
    """The splits that a name stands for: `a+b` is two, and `val` may be what other tools call it (`valid`)."""
    if split in dataset.splits:
        return [split]
    other = next((other for other in STAND_INS if other in dataset.splits), VAL)
    return [other if name == VAL and VAL not in dataset.splits else name for name in split.split("+")]


def said_of(dataset: Dataset, split: str) -> str | None:
    """A sentence for a person where another split than the one that was named is taken; None if it is that one."""
    taken = [name for name in names_of(dataset, split) if name in STAND_INS and name not in split.split("+")]
    return f"There is no split {VAL}; {taken[0]} is taken in its place." if taken else None


def with_classes(dataset: Dataset, classes: tuple[str, ...]) -> Dataset:
    """The dataset by a detector's list of classes: a folder may show or list fewer, in another order.

    Args:
        dataset: any.
        classes: what the detector knows; the index is the label.

    Raises:
        InputError: a box has a class that is not among them.
    """
    if dataset.classes == classes:
        return dataset
    splits = in_columns(dataset.splits, dataset.root)
    shown = {int(label) for own in splits.values() for label in np.unique(own.store.labels[own.box_rows])}
    unknown = [dataset.classes[label] for label in sorted(shown) if dataset.classes[label] not in classes]
    if unknown:
        raise InputError(
            f"{dataset.name} shows the class {', '.join(unknown)}, which the detector does not know; its classes: "
            f"{', '.join(classes)}."
        )
    place = np.array([classes.index(name) if name in classes else 0 for name in dataset.classes], np.int32)
    moved: dict[int, Store] = {}
    for own in splits.values():
        labels = place[own.store.labels] if len(place) else own.store.labels
        moved.setdefault(id(own.store), replace(own.store, labels=labels))
    chosen = {split: Columns(moved[id(own.store)], own.root, own.rows) for split, own in splits.items()}
    return replace(dataset, classes=classes, splits=chosen)


def choose(dataset: Dataset, train: str, val: str, fold: tuple[int, int] | None) -> Dataset:
    """A dataset of the two splits `TRAIN` and `VAL`.

    Args:
        dataset: any.
        train, val: names of splits, joined by + where they are several.
        fold: (k, n): the images of `train` are parted into n of equal size, of which the k-th (from 0) becomes VAL and
            the others TRAIN; `val` counts for nothing. The parts depend on the images' names and n alone.

    Raises:
        InputError: a split is missing or without images, or there are fewer images than parts.
    """
    samples = samples_of(dataset, train)
    if fold is None:
        chosen = {TRAIN: samples, VAL: samples_of(dataset, val)}
    else:
        part, parts = fold
        if len(samples) < parts:
            raise InputError(f"The split {train!r} of {dataset.name} has fewer than {parts} images; set data.fold.")
        samples = in_columns({train: samples}, dataset.root)[train]
        ids = samples.ids
        ordered = sorted(range(len(samples)), key=ids.__getitem__)
        order = np.random.default_rng(parts).permutation(len(samples))
        own = set(order[part::parts].tolist())
        chosen = {
            TRAIN: samples.take([place for rank, place in enumerate(ordered) if rank not in own]),
            VAL: samples.take([place for rank, place in enumerate(ordered) if rank in own]),
        }
    for name, found in chosen.items():
        if not found:
            known = ", ".join(dataset.splits)
            raise InputError(
                f"{dataset.name} has no images in the split {train if name == TRAIN else val!r}; its splits: {known}; "
                "set data.train and data.val."
            )
    said = [said_of(dataset, train), said_of(dataset, val) if fold is None else None]
    notes = [LabelDefect("split_stands_in", dataset.name, text) for text in dict.fromkeys(said) if text]
    return replace(dataset, splits=chosen, defects=(*dataset.defects, *notes))


def with_share(samples: Columns, share: float) -> tuple[Columns, Columns]:
    """A share of some samples, one at least, and the rest; a larger share holds all of a smaller one.

    Args:
        samples: any; which of them depends on their names and their number alone.
        share: 0..1.
    """
    ids = samples.ids
    ordered = sorted(range(len(samples)), key=ids.__getitem__)
    order = np.random.default_rng(0).permutation(len(samples))
    own = set(order[: max(1, round(share * len(samples)))].tolist())
    places = [[place for rank, place in enumerate(ordered) if (rank in own) == wanted] for wanted in (True, False)]
    return samples.take(places[0]), samples.take(places[1])


def _next_step(dataset: Dataset, name: str) -> str:
    """What to set where a split is missing: the one that other tools write for it, or a part of the only one."""
    others = list(dataset.splits)
    if name == VAL and len(others) == 1:
        return " To report on a fifth of it, set data.fold=[0,5]."
    near = get_close_matches(name, others, n=1, cutoff=0.6)
    if near:
        return f" Did you mean {near[0]}? In a recipe, set data.{name}={near[0]}." if name in (TRAIN, VAL) else ""
    return ""
