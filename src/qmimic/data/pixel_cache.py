"""Decoded images, fitted to the network's size, kept in one memory-mapped file from run to run."""

from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmimic.data.letterbox import Letterbox
from qmimic.data.records import RecordFile

FACTS = 4  # int32 behind the pixels: the original's width and height, the inner width and height


class PixelCache:
    """The first images of a split as the network takes them. The file is made when the first image is asked for.

    Args:
        path: of its file, named by all that decides what is in it; see `RecordFile`.
        images: of the split.
        size: height and width of the network's input, pixels.
        limit: of the file, bytes; images beyond it are not kept.
    """

    def __init__(self, path: Path, images: int, size: tuple[int, int], limit: int) -> None:
        self.path, self.size = path, size
        self._length = 3 * size[0] * size[1] + 4 * FACTS
        self.count = min(images, limit // RecordFile.size(1, self._length))

    @cached_property
    def _file(self) -> RecordFile:
        return RecordFile(self.path, self.count, self._length, "cache of decoded images", "data.cache_mib")

    def read(self, index: int) -> tuple[NDArray[np.uint8], Letterbox] | None:
        """An image [H, W, 3] and how it lies in the input; None if it is not kept.

        Args:
            index: place of the image in the split.

        Raises:
            InputError: as `RecordFile`.
        """
        record = self._file.read(index) if index < self.count else None
        if record is None:
            return None
        width, height, *inner = record[-4 * FACTS :].view("<i4").tolist()
        return record[: -4 * FACTS].reshape(*self.size, 3), Letterbox(width, height, (inner[0], inner[1]))

    def write(self, index: int, pixels: NDArray[np.uint8], placed: Letterbox) -> None:
        """Keep an image [H, W, 3], if there is room for it."""
        if index < self.count:
            facts = np.array([placed.width, placed.height, *placed.inner], "<i4")
            self._file.write(index, np.concatenate([pixels.reshape(-1), facts.view(np.uint8)]))
