"""Fitting an image of any size into the network's fixed size, and boxes there and back."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qmimic.data.images import Source, read_resized, resized
from qmimic.detections import Detections

PIXELS = 3  # raised when the same file gives other pixels
FILL = (124, 116, 104)  # the mean that the detector subtracts: padding becomes zero


@dataclass(frozen=True)
class Letterbox:
    """How an image lies in the network's input: scaled, at the top left, the rest padded.

    Attributes:
        width, height: of the original image, pixels.
        inner: (width, height) of the scaled image, pixels.
    """

    width: int
    height: int
    inner: tuple[int, int]

    @property
    def scale(self) -> NDArray[np.float32]:
        """Factors of x1, y1, x2, y2 from the original to the network's input, [4]."""
        x, y = self.inner[0] / self.width, self.inner[1] / self.height
        return np.array([x, y, x, y], np.float32)

    def undo(self, boxes: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes [N, 4] of the network's input as boxes of the original image, clipped to it."""
        limit = np.array([self.width, self.height, self.width, self.height], np.float32)
        original: NDArray[np.float32] = np.clip(boxes / self.scale, 0, limit).astype(np.float32)
        return original

    def restored(self, found: Detections) -> Detections:
        """Detections in the network's input as detections in the original image."""
        return replace(found, boxes=self.undo(found.boxes))


def fit(width: int, height: int, size: tuple[int, int]) -> Letterbox:
    """The letterbox of an image of width x height in an input of `size` (height, width)."""
    scale = min(size[1] / width, size[0] / height)
    inner = (min(size[1], max(1, round(width * scale))), min(size[0], max(1, round(height * scale))))
    return Letterbox(width, height, inner)


def letterbox(image: Image.Image, size: tuple[int, int]) -> tuple[NDArray[np.uint8], Letterbox]:
    """The network's input uint8 [H, W, 3] for an RGB picture, and how the picture lies in it."""
    placed = fit(image.width, image.height, size)
    return _padded(resized(image, placed.inner), size), placed


def letterbox_file(
    path: Source, size: tuple[int, int], root: Path | None = None
) -> tuple[NDArray[np.uint8], Letterbox]:
    """The same of an image file, in a folder `root`; a JPEG is decoded no larger than it needs to be.

    Raises:
        InputError: as `read_image`.
    """
    image, (width, height) = read_resized(path, lambda width, height: fit(width, height, size).inner, root)
    return _padded(image, size), fit(width, height, size)


def _padded(image: Image.Image, size: tuple[int, int]) -> NDArray[np.uint8]:
    canvas = Image.new("RGB", (size[1], size[0]), FILL)
    canvas.paste(image)
    return np.array(canvas)
