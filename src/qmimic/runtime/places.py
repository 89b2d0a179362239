"""From a one-stage network's last layers to boxes and scores, for engines whose graph has no exponentials.

An int8 file has one step for all its outputs, a sixteenth; sides are stored doubled, which gives them a step of a
thirty-second. So decoding needs only two tables of 256 entries. Distances are rounded to sixteenths of a pixel, so that
processors without floating point can use integers.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmimic.runtime.metadata import Metadata

LOGIT_STEP = 1 / 16  # step of a class's output: logits from -8 to +8
SIDE_STEP = 1 / 32  # step of a side's output
MAX_LOG_SIDE = 4.0  # bounds the exponential: a side is at most 55 strides from its place, and at least a 55th
PIXEL_STEPS = 16  # units of integer distances in a pixel
Floats = NDArray[np.float32]


def place_grid(size: tuple[int, int], strides: tuple[int, ...]) -> Floats:
    """All places of an image [N, 3]: x, y and stride, pixels; level by level, by row and column.

    Args:
        size: height and width of the image, pixels.
        strides: of the levels.
    """
    return np.concatenate([cells((size[0] // stride, size[1] // stride), stride) for stride in strides])


def cells(shape: tuple[int, int], stride: float) -> Floats:
    """The centres of a grid's cells [rows * columns, 3]: x, y and stride, pixels; by row and column.

    Args:
        shape: rows and columns.
        stride: side of a cell, pixels.
    """
    y, x = np.meshgrid(*((np.arange(count) + 0.5) * stride for count in shape), indexing="ij")
    return np.stack([x, y, np.full_like(x, stride)], -1).reshape(-1, 3).astype(np.float32)


def place_count(metadata: Metadata) -> int:
    """N, the number of places that a file covers.

    Raises:
        ValueError: its description does not say where they are.
    """
    whole = all(isinstance(stride, int) and stride > 0 for stride in metadata.levels)
    if not metadata.levels or not whole or list(metadata.levels) != sorted(set(metadata.levels)):
        raise ValueError("its description does not say where its places are")
    height, width = metadata.size
    return sum((height // stride) * (width // stride) for stride in metadata.levels)


def score_table() -> Floats:
    """Scores of the outputs -128 to 127, float32 [256]."""
    return sigmoid(np.arange(-128, 128) * np.float32(LOGIT_STEP))


def distance_table(stride: int) -> NDArray[np.int32]:
    """Distances of the outputs -128 to 127, int32 [256], in sixteenths of a pixel."""
    exact = np.exp(np.arange(-128, 128, dtype=np.float64) * SIDE_STEP) * stride * PIXEL_STEPS
    whole: NDArray[np.int32] = np.rint(exact).astype(np.int32)
    return whole


def decode(outputs: NDArray[Any], metadata: Metadata) -> tuple[Floats, Floats]:
    """Boxes and scores of all places.

    Args:
        outputs: float32 [B, N, K + 4], see `qmimic.detectors.detector.Detector.place_outputs`; or int8, as described
            at the top of this module.
        metadata: of the file.

    Returns:
        Boxes [B, N, 1, 4], xyxy in pixels, not clipped; scores [B, N, K].
    """
    classes = len(metadata.classes)
    grid = place_grid(metadata.size, metadata.levels)
    if outputs.dtype == np.int8:
        index = outputs.astype(np.intp) + 128
        scores = score_table()[index[..., :classes]]
        tables = np.stack([distance_table(stride) for stride in metadata.levels])
        level = np.searchsorted(metadata.levels, grid[:, 2])
        distance = tables[level[:, None], index[..., classes:]].astype(np.float32) / np.float32(PIXEL_STEPS)
    else:
        scores = sigmoid(outputs[..., :classes])
        distance = np.exp(np.clip(outputs[..., classes:], -MAX_LOG_SIDE, MAX_LOG_SIDE)) * grid[:, 2:]
    boxes = np.concatenate([grid[:, :2] - distance[..., :2], grid[:, :2] + distance[..., 2:]], -1)
    return boxes[:, :, None].astype(np.float32), scores


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    small = np.exp(-np.abs(x))
    result: Floats = (np.where(x < 0, small, np.float32(1)) / (1 + small)).astype(np.float32)
    return result
