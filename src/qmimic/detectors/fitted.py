"""What a recipe leaves open in a detector, chosen by the sizes of the training boxes.

Levels follow from the finest map that at least a share `LEAST` of the boxes needs.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

STRIDES = (8, 16, 32)
REACH = 6.0  # a level is for boxes of up to this many strides; the coarsest is also for all larger ones
LEAST = 0.1  # smallest share of the boxes for which a finest level is worth having
COARSE: Literal[16] = 16  # output stride of a two-stage detector whose boxes fill a cell of it
FINE: Literal[8] = 8  # output stride where they do not
MOST_BOXES = 50_000  # that anchors are fitted to


def choose_levels(box_sizes: NDArray[np.float32], size: tuple[int, int], shared: int | None = None) -> tuple[int, ...]:
    """Strides of the levels: the finest that enough boxes need, and all coarser ones.

    The coarser ones are included because they are cheap: without them, stages of the backbone that now halve the map
    would be dilated instead. (`resnet18/16` at 320 x 320 pixels: levels 8, 16 and 32 take 34 million
    multiply-accumulates, level 8 alone takes 92.)

    Args:
        box_sizes: widths and heights of the training boxes in pixels at the training size, [N, 2].
        size: height and width of the network's input, pixels; a level whose stride does not divide both is left out.
        shared: stride of the one map of the run's other detector; on a level of that stride, one can imitate the other.
    """
    possible = [stride for stride in STRIDES if not any(side % stride for side in size)]
    sides = np.sqrt(box_sizes.prod(1))
    level = np.searchsorted([REACH * stride for stride in possible[:-1]], sides)
    finer = np.cumsum(np.bincount(level, minlength=len(possible))) >= LEAST * max(1, len(sides))
    finest = possible[int(finer.argmax())]
    return tuple(stride for stride in possible if stride >= min(finest, shared or finest))


def choose_output_stride(box_sizes: NDArray[np.float32]) -> Literal[16, 8]:
    """The output stride of a detector with one map: 8 if enough boxes are smaller than a cell of stride 16, else 16.

    Args:
        box_sizes: as `choose_levels`.
    """
    sides = np.sqrt(box_sizes.prod(1))
    return FINE if (sides < COARSE).sum() >= LEAST * max(1, len(sides)) else COARSE


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
