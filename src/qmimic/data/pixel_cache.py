"""Decoded images, fitted to the network's size, kept in one memory-mapped file from run to run."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmimic.data.letterbox import Letterbox
from qmimic.records import RecordFile

FACTS = 4  # int32 behind the pixels: the original's width and height, the inner width and height


class PixelCache:
    """The first images of a split as the network takes them.

    Args:
        path: of its file, named by all that decides what is in it; see `RecordFile`.
        images: of the split.
        size: height and width of the network's input, pixels.
        limit: of the file, bytes; images beyond it are not kept.

    Raises:
        InputError: as `RecordFile`.
    """

    def __init__(self, path: Path, images: int, size: tuple[int, int], limit: int) -> None:
        self.size = size
        pixels = 3 * size[0] * size[1]
        length = pixels + 4 * FACTS
        self.count = min(images, limit // RecordFile.size(1, length))
        self._file = None
        if self.count:
            self._file = RecordFile(path, self.count, length, "cache of decoded images", "data.cache_mib")

    def read(self, index: int) -> tuple[NDArray[np.uint8], Letterbox] | None:
        """An image [H, W, 3] and how it lies in the input; None if it is not kept.

        Args:
            index: place of the image in the split.
        """
        record = self._file.read(index) if self._file and index < self.count else None
        if record is None:
            return None
        width, height, *inner = record[-4 * FACTS :].view("<i4").tolist()
        return record[: -4 * FACTS].reshape(*self.size, 3), Letterbox(width, height, (inner[0], inner[1]))

    def write(self, index: int, pixels: NDArray[np.uint8], placed: Letterbox) -> None:
        """Keep an image [H, W, 3], if there is room for it."""
        if self._file and index < self.count:
            facts = np.array([placed.width, placed.height, *placed.inner], "<i4")
            self._file.write(index, np.concatenate([pixels.reshape(-1), facts.view(np.uint8)]))
