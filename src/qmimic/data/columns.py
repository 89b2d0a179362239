"""Samples as columns: a million of them are a few arrays, in memory or mapped from an index, not a million objects."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from qmimic.data.sample import Sample
from qmimic.errors import InputError
from qmimic.files import inside


@dataclass(frozen=True)
class Store:
    """The arrays of N samples with T boxes in all.

    Attributes:
        id_bytes, id_starts: uint8 [..] and int64 [N + 1]; sample i's name is the bytes between two starts.
        image_bytes, image_starts: the same for the image files, relative to the dataset's folder; empty if drawn.
        image_sizes: int32 [N, 2], width and height in pixels, 0 where they are not known.
        image_lengths: int64 [N], bytes of the image files, 0 if drawn.
        image_times: int64 [N], last change of the image files, ns, 0 if drawn.
        image_pixels: int64 [N], a number that images of equal pixels share, 0 where nobody looked.
        starts: int64 [N + 1], where a sample's boxes begin.
        boxes: float32 [T, 4], xyxy, pixels.
        labels: int32 [T].
        difficult, crowd: bool [T].
    """

    id_bytes: NDArray[np.uint8]
    id_starts: NDArray[np.int64]
    image_bytes: NDArray[np.uint8]
    image_starts: NDArray[np.int64]
    image_sizes: NDArray[np.int32]
    image_lengths: NDArray[np.int64]
    image_times: NDArray[np.int64]
    image_pixels: NDArray[np.int64]
    starts: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int32]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]

    @property
    def ignored(self) -> NDArray[np.bool_]:
        """bool [T], as `Sample.ignored`."""
        ignored: NDArray[np.bool_] = self.difficult | self.crowd
        return ignored


class Columns(Sequence[Sample]):
    """Some samples of a store, in some order; a `Sample` is made when one is asked for, without attributes of boxes.

    Args:
        store: the arrays, shared and never copied.
        root: folder of the image files.
        rows: int64 [n], which samples of the store.
    """

    def __init__(self, store: Store, root: Path | None, rows: NDArray[np.int64]) -> None:
        self.store, self.root, self.rows = store, root, rows

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> "Columns": ...

    def __getitem__(self, place: int | slice) -> "Sample | Columns":
        if isinstance(place, slice):
            return Columns(self.store, self.root, self.rows[place])
        store, row = self.store, int(self.rows[place])
        own = slice(int(store.starts[row]), int(store.starts[row + 1]))
        image = _text(store.image_bytes, store.image_starts, row)
        width, height = store.image_sizes[row].tolist()
        path = None
        if image:
            assert self.root is not None
            path = self.root / image
            if image.startswith("/") or ".." in image or "\0" in image:
                inside(self.root, path)  # where links lead is asked by whoever opens it
            kept, now = (int(store.image_lengths[row]), int(store.image_times[row])), _file(path)
            if any(kept) and any(now) and kept != now:
                raise InputError(
                    f"{path} has changed since the data were read; start again, and if they have an index, run `qmimic "
                    f"data index {self.root}` first."
                )
        return Sample(
            _text(store.id_bytes, store.id_starts, row),
            path,
            np.array(store.boxes[own]),
            store.labels[own].astype(np.int64),
            np.array(store.difficult[own]),
            np.array(store.crowd[own]),
            (width, height) if width and height else None,
            pixels=int(store.image_pixels[row]),
        )

    @property
    def ids(self) -> list[str]:
        """The samples' names."""
        return [_text(self.store.id_bytes, self.store.id_starts, row) for row in self.rows.tolist()]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Boxes of each sample, int64 [n]."""
        return _lengths(self.store.starts, self.rows)

    @property
    def image_sizes(self) -> NDArray[np.int32]:
        """Widths and heights of the images in pixels, int32 [n, 2]; 0 where they are not known."""
        return self.store.image_sizes[self.rows]

    @property
    def image_lengths(self) -> NDArray[np.int64]:
        """Bytes of the image files, int64 [n]."""
        return self.store.image_lengths[self.rows]

    @property
    def image_times(self) -> NDArray[np.int64]:
        """Last change of the image files, ns, int64 [n]."""
        return self.store.image_times[self.rows]

    @property
    def image_pixels(self) -> NDArray[np.int64]:
        """Numbers that images of equal pixels share, int64 [n]; 0 where nobody looked."""
        return self.store.image_pixels[self.rows]

    @property
    def id_bytes(self) -> NDArray[np.uint8]:
        """The names one behind the other, uint8 [..]."""
        return self.store.id_bytes[_places(self.store.id_starts, self.rows)]

    @property
    def id_lengths(self) -> NDArray[np.int64]:
        """Bytes of each name, int64 [n]."""
        return _lengths(self.store.id_starts, self.rows)

    @property
    def box_rows(self) -> NDArray[np.int64]:
        """Where in the store's columns of boxes these samples' are, int64 [t], in their order."""
        return _places(self.store.starts, self.rows)

    def take(self, places: Sequence[int]) -> "Columns":
        """The samples at some places."""
        return Columns(self.store, self.root, self.rows[np.array(places, np.int64)])


def in_columns(splits: Mapping[str, Sequence[Sample]], root: Path | None) -> dict[str, Columns]:
    """Splits as columns of one store, in which a sample of several splits is held once; columns stay what they are."""
    kept = {split: samples for split, samples in splits.items() if isinstance(samples, Columns)}
    if len(kept) == len(splits):
        return kept
    unique = {id(sample): sample for samples in splits.values() for sample in samples}
    place = {key: row for row, key in enumerate(unique)}
    store = _store(list(unique.values()), root)
    return {
        split: Columns(store, root, np.array([place[id(sample)] for sample in samples], np.int64))
        for split, samples in splits.items()
    }


def box_counts(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """Boxes of each sample, int64 [n]."""
    if isinstance(samples, Columns):
        return samples.counts
    return np.array([len(sample.boxes) for sample in samples], np.int64)


def _store(samples: Sequence[Sample], root: Path | None) -> Store:
    id_bytes, id_starts = _texts([sample.image_id for sample in samples])
    # Label files may name images absolutely where the dataset was named relatively.
    names = [os.path.relpath(sample.image, root) if sample.image and root else "" for sample in samples]
    image_bytes, image_starts = _texts(names)

    files = np.array([_file(sample.image) for sample in samples], np.int64).reshape(-1, 2)

    def joined(pick: Callable[[Sample], NDArray[Any]], empty: NDArray[Any]) -> NDArray[Any]:
        return np.concatenate([empty, *(pick(sample) for sample in samples)])

    return Store(
        id_bytes=id_bytes,
        id_starts=id_starts,
        image_bytes=image_bytes,
        image_starts=image_starts,
        image_sizes=np.array([sample.size or (0, 0) for sample in samples], np.int32).reshape(-1, 2),
        image_lengths=files[:, 0],
        image_times=files[:, 1],
        image_pixels=np.array([sample.pixels for sample in samples], np.int64),
        starts=np.cumsum([0, *(len(sample.boxes) for sample in samples)], dtype=np.int64),
        boxes=joined(lambda sample: sample.boxes, np.zeros((0, 4), np.float32)),
        labels=joined(lambda sample: sample.labels, np.zeros(0, np.int64)).astype(np.int32),
        difficult=joined(lambda sample: sample.difficult, np.zeros(0, np.bool_)),
        crowd=joined(lambda sample: sample.crowd, np.zeros(0, np.bool_)),
    )


def _lengths(starts: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """From a row's start to the next one's, int64 [n]."""
    lengths: NDArray[np.int64] = starts[rows + 1] - starts[rows]
    return lengths


def _places(starts: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """All places from a row's start to the next one's, row after row."""
    lengths = _lengths(starts, rows)
    places: NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(
        starts[rows] - np.cumsum(lengths) + lengths, lengths
    )
    return places


def _file(image: Path | None) -> tuple[int, int]:
    """Bytes and last change (ns) of a file; zeros of one that is missing, which whoever reads it will tell."""
    try:
        found = image.stat() if image else None
    except (OSError, ValueError):  # ValueError: a name that no disk can hold
        found = None
    return (found.st_size, found.st_mtime_ns) if found else (0, 0)


def _texts(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Texts one behind the other, uint8 [..], and where each begins, int64 [N + 1]. A file's name need not be UTF-8."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([0, *map(len, encoded)], dtype=np.int64)


def _text(blob: NDArray[np.uint8], starts: NDArray[np.int64], row: int) -> str:
    try:
        return blob[int(starts[row]) : int(starts[row + 1])].tobytes().decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:  # of an index that was damaged or made up
        raise InputError(f"Sample {row} of an index has no readable name; run `qmimic data index` again.") from error
