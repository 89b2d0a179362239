"""Anchors: their grid over the map, and sizes fitted to the training boxes."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST_BOXES = 50_000


def anchor_grid(sizes: tuple[tuple[float, float], ...], size: tuple[int, int], stride: int) -> Tensor:
    """All anchors of an image.

    Args:
        sizes: widths and heights in pixels.
        size: height and width of the image in pixels.
        stride: output stride of the map.

    Returns:
        float32 [A * H/stride * W/stride, 4], xyxy in pixels; ordered by anchor, row, column, like the RPN's output.
        Each centre is the middle of a cell.
    """
    rows = (torch.arange(size[0] // stride) + 0.5) * stride
    columns = (torch.arange(size[1] // stride) + 0.5) * stride
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    centres = torch.stack([x, y, x, y], -1)
    half = torch.tensor(sizes) / 2
    return (centres[None] + torch.cat([-half, half], -1)[:, None, None]).reshape(-1, 4)


def anchors_in_cells(
    sides: tuple[float, ...], ratios: tuple[float, ...], stride: int
) -> tuple[tuple[float, float], ...]:
    """Widths and heights in pixels of anchors, given the sides of squares in cells of the map.

    Args:
        sides: of the squares, in cells.
        ratios: width to height; each square gives one anchor of its area per ratio.
        stride: output stride of the map, pixels a cell.
    """
    pixels = [(side * stride, ratio**0.5) for side in sides for ratio in ratios]
    return tuple((round(side * root, 2), round(side / root, 2)) for side, root in pixels)


def fit_anchors(box_sizes: NDArray[np.float32], count: int, seed: int = 0) -> tuple[tuple[float, float], ...]:
    """Anchor sizes by k-means with 1 - IoU of centred boxes as the distance (Redmon & Farhadi, CVPR 2017).

    If there are more than `MOST_BOXES` boxes, that many are drawn at random.

    Args:
        box_sizes: widths and heights of the training boxes in pixels at the training size, [N, 2], all > 0.
        count: number of anchors.
        seed: of the k-means++ start.

    Returns:
        `count` (width, height) pairs in increasing order of area; fewer distinct ones if the boxes have no more.
    """
    random = np.random.default_rng(seed)
    boxes = box_sizes.astype(np.float64)
    if len(boxes) > MOST_BOXES:
        boxes = boxes[random.choice(len(boxes), MOST_BOXES, replace=False)]
    centres = boxes[random.integers(len(boxes))][None]
    while len(centres) < count:
        distance = 1 - _centred_iou(boxes, centres).max(1)
        if distance.sum() <= 1e-9:
            break
        centres = np.concatenate([centres, boxes[random.choice(len(boxes), p=distance / distance.sum())][None]])
    for _ in range(100):
        nearest = _centred_iou(boxes, centres).argmax(1)
        members = [boxes[nearest == k] for k in range(len(centres))]
        moved = np.stack([np.median(m, 0) if len(m) else c for m, c in zip(members, centres, strict=True)])
        if np.allclose(moved, centres):
            break
        centres = moved
    ordered = centres[np.argsort(centres.prod(1), kind="stable")]
    return tuple((round(float(w), 2), round(float(h), 2)) for w, h in ordered)


def _centred_iou(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    overlap = np.minimum(a[:, None], b[None]).prod(-1)
    iou: NDArray[np.float64] = overlap / (a.prod(-1)[:, None] + b.prod(-1)[None] - overlap)
    return iou
