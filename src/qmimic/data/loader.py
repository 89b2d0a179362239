"""Batches of fixed shape. A batch is a function of the seed and the step alone, so a resumed run needs no state."""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmimic.data.columns import box_counts
from qmimic.data.letterbox import Letterbox
from qmimic.data.pixel_cache import PixelCache
from qmimic.data.sample import Dataset, Sample
from qmimic.data.splits import samples_of
from qmimic.data.targets import IGNORED, PADDING, Targets

Plan = tuple[Sequence[int], int]  # images of a batch, and places for their boxes


@dataclass(frozen=True)
class Batch:
    """Images and labels as the network takes them.

    Attributes:
        images: uint8 [B, 3, H, W], RGB, letterboxed, in channels-last memory as pictures and networks have it.
        targets: boxes [B, M, 4] and labels [B, M]; M is the power of two that holds the most boxes of an image in it:
            a crowd in one image must not slow down all batches, nor each batch have a shape of its own.
        placed: how each image lies in its input.
        samples: where each image came from.
        indices: int64 [B], their places in the split.
    """

    images: Tensor
    targets: Targets
    placed: tuple[Letterbox, ...]
    samples: tuple[Sample, ...]
    indices: Tensor


def _shuffled(count: int, *seed: int) -> Callable[[int], NDArray[np.int64]]:
    """A function that gives the order of an epoch, int64 [count]."""

    @lru_cache(maxsize=2)
    def order(epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((seed[0], epoch, *seed[1:])).permutation(count)

    return order


def _drawn(order: Callable[[int], NDArray[np.int64]], count: int, first: int, last: int) -> list[int]:
    """What stands at places first..last-1 of epochs of `count` one after another."""
    return [int(order(place // count)[place % count]) for place in range(first, last)]


class Loader:
    """Decodes images, or reads them decoded, and makes batches ahead of time.

    Args:
        dataset: the dataset.
        split: one of its splits, or several joined by +.
        size: height and width of the network's input, pixels.
        batch_size: images a batch.
        cache: of this split and size; None to decode an image whenever it comes up.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        size: tuple[int, int],
        batch_size: int,
        cache: PixelCache | None = None,
    ) -> None:
        self.dataset = dataset
        self.samples = samples_of(dataset, split)
        self.size = size
        self.batch_size = batch_size
        self._counts = box_counts(self.samples)
        self.cache = cache

    def with_batch_size(self, batch_size: int) -> "Loader":
        """The same images in batches of another size; decoded images are shared."""
        other = copy.copy(self)
        other.batch_size = batch_size
        return other

    def once(self) -> Iterator[Batch]:
        """Every image once, in order; the last batch may be smaller."""
        yield from self.batches(self.parts())

    def parts(self) -> Iterator[range]:
        """The places of the images of each batch of `once`."""
        starts = range(0, len(self.samples), self.batch_size)
        return (range(at, min(at + self.batch_size, len(self.samples))) for at in starts)

    def batches(self, parts: Iterable[Sequence[int]]) -> Iterator[Batch]:
        """A batch of the images at each of some lists of places."""
        yield from self._ahead((part, self._places(part)) for part in parts)

    def steps(self, seed: int, first: int, last: int, rows: slice = slice(None)) -> Iterator[Batch]:
        """The shuffled training batches of steps first..last-1; all of them are full.

        Every image comes once before any comes twice; the order of an epoch depends on seed and epoch alone.

        Args:
            seed: of the order.
            first, last: steps.
            rows: which of every batch are made, where processes share it.
        """
        draw = self._draws(seed)

        def plan(step: int) -> Plan:
            indices = draw(step * self.batch_size, (step + 1) * self.batch_size)
            return indices[rows], self._places(indices)  # of the whole batch: chance is drawn by its shape

        yield from self._ahead(plan(step) for step in range(first, last))

    def _draws(self, seed: int) -> Callable[[int, int], list[int]]:
        """A function that gives the images at places first..last-1 of the endless order of a seed."""
        return partial(_drawn, _shuffled(len(self.samples), seed), len(self.samples))

    def _places(self, indices: Sequence[int]) -> int:
        """Places for boxes in a batch of these images."""
        most = int(self._counts[list(indices)].max(initial=1))
        return 1 << (most - 1).bit_length()

    def _ahead(self, plans: Iterable[Plan]) -> Iterator[Batch]:
        """Batches in order, the next two being made while one is used."""
        with ThreadPoolExecutor(1, thread_name_prefix="loader") as pool:
            waiting: list[Future[Batch]] = []
            try:
                for plan in plans:
                    waiting.append(pool.submit(self._batch, *plan))
                    if len(waiting) > 2:
                        yield waiting.pop(0).result()
                while waiting:
                    yield waiting.pop(0).result()
            finally:
                for future in waiting:
                    future.cancel()

    def _batch(self, indices: Sequence[int], places: int) -> Batch:
        images = np.empty((len(indices), *self.size, 3), np.uint8)
        boxes = np.zeros((len(indices), places, 4), np.float32)
        labels = np.full((len(indices), places), PADDING, np.int64)
        placed: list[Letterbox] = []
        for row, index in enumerate(indices):
            images[row], where = self._image(index)
            placed.append(where)
            sample = self.samples[index]
            count = len(sample.boxes)
            boxes[row, :count] = sample.boxes * where.scale
            labels[row, :count] = np.where(sample.ignored, IGNORED, sample.labels)
        targets = Targets(torch.from_numpy(boxes), torch.from_numpy(labels))
        return Batch(
            torch.from_numpy(images).permute(0, 3, 1, 2),
            targets,
            tuple(placed),
            tuple(self.samples[i] for i in indices),
            torch.tensor(list(indices)),
        )

    def _image(self, index: int) -> tuple[NDArray[np.uint8], Letterbox]:
        kept = self.cache.read(index) if self.cache else None
        if kept is None:
            kept = self.dataset.fitted(self.samples[index], self.size)
            if self.cache:
                self.cache.write(index, *kept)
        return kept


class Mixture(Loader):
    """Batches of the images of two loaders: of labelled pictures, and of others that a teacher has labelled.

    Both kinds go through epochs of their own, so that the labelled ones come in the order in which they come alone. The
    images of the second loader have the places behind those of the first.

    Args:
        labelled: of the first kind.
        others: of the second; of the same size.
        taken: int64 [n], which of the others are drawn.
        share: of the others in a batch, 0..1; kept from batch to batch as nearly as whole images allow.
    """

    def __init__(self, labelled: Loader, others: Loader, taken: NDArray[np.int64], share: float) -> None:
        self.dataset, self.size, self.batch_size, self.cache = (
            labelled.dataset,
            labelled.size,
            labelled.batch_size,
            None,
        )
        self.samples = Chained(labelled.samples, others.samples)
        self._counts = np.concatenate([box_counts(labelled.samples), box_counts(others.samples)])
        self._parts, self._taken, self._share = (labelled, others), taken, share

    def _draws(self, seed: int) -> Callable[[int, int], list[int]]:
        labelled, others = len(self._parts[0].samples), len(self._taken)
        first_order, other_order = _shuffled(labelled, seed), _shuffled(others, seed, 1)

        def draw(first: int, last: int) -> list[int]:
            low, high = (math.floor(place * self._share) for place in (first, last))
            own = _drawn(first_order, labelled, first - low, last - high)
            return own + [labelled + int(self._taken[k]) for k in _drawn(other_order, others, low, high)]

        return draw

    def _image(self, index: int) -> tuple[NDArray[np.uint8], Letterbox]:
        labelled, others = self._parts
        behind = index - len(labelled.samples)
        return labelled._image(index) if behind < 0 else others._image(behind)


class Chained(Sequence[Sample]):
    """Two sequences of samples, one behind the other."""

    def __init__(self, first: Sequence[Sample], second: Sequence[Sample]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    @overload
    def __getitem__(self, place: int) -> Sample: ...

    @overload
    def __getitem__(self, place: slice) -> Sequence[Sample]: ...

    def __getitem__(self, place: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(place, slice):
            return [self[one] for one in range(*place.indices(len(self)))]
        behind = range(len(self))[place] - len(self._first)
        return self._first[behind + len(self._first)] if behind < 0 else self._second[behind]
