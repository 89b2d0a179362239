"""Batches of fixed shape. A batch is a function of the seed and the step alone, so a resumed run needs no state."""

import copy
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

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
        starts = range(0, len(self.samples), self.batch_size)
        parts = (range(at, min(at + self.batch_size, len(self.samples))) for at in starts)
        yield from self._ahead((part, self._places(part)) for part in parts)

    def steps(self, seed: int, first: int, last: int, rows: slice = slice(None)) -> Iterator[Batch]:
        """The shuffled training batches of steps first..last-1; all of them are full.

        Every image comes once before any comes twice; the order of an epoch depends on seed and epoch alone.

        Args:
            seed: of the order.
            first, last: steps.
            rows: which of every batch are made, where processes share it.
        """
        count = len(self.samples)

        @lru_cache(maxsize=2)
        def order(epoch: int) -> NDArray[np.int64]:
            return np.random.default_rng((seed, epoch)).permutation(count)

        def plan(step: int) -> Plan:
            positions = range(step * self.batch_size, (step + 1) * self.batch_size)
            indices = [int(order(position // count)[position % count]) for position in positions]
            return indices[rows], self._places(indices)  # of the whole batch: chance is drawn by its shape

        yield from self._ahead(plan(step) for step in range(first, last))

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
            labels[row, :count] = np.where(sample.difficult | sample.crowd, IGNORED, sample.labels)
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
