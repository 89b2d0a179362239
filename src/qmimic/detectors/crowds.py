"""Objects of dense crowds that no place of a one-stage detector can learn."""

import numpy as np
from numpy.typing import NDArray

from qmimic.detectors.alignment import REACH
from qmimic.runtime.places import place_grid

MOST_PICTURES = 1000  # that are looked at; a matching takes milliseconds


def without_place(
    boxes: NDArray[np.float32], pictures: NDArray[np.int64], size: tuple[int, int], levels: tuple[int, ...]
) -> int:
    """How many objects are left over, at least, if every place within an object's reach learns one object.

    A place learns one object, and an object is learnt by places that `align` (alignment.py) gives it. The most objects
    that have a place each are a largest matching of the two.

    Args:
        boxes: of the objects, xyxy in pixels of the input, within it, [N, 4].
        pictures: whose each of them is, [N].
        size: height and width of the input, pixels.
        levels: strides of the levels, the finest first.
    """
    middles = (boxes[:, :2] + boxes[:, 2:]) / 2
    # A cell of the finest level with one object alone has a place for it.
    cells, count = np.unique(
        np.column_stack([pictures, np.floor(middles / levels[0])]).astype(np.int64), axis=0, return_counts=True
    )
    crowded = np.unique(cells[count > 1, 0])[:MOST_PICTURES]
    if not len(crowded):
        return 0
    from scipy.sparse import csr_array  # here: importing it takes most of a second
    from scipy.sparse.csgraph import maximum_bipartite_matching

    x, y, stride = place_grid(size, levels).T
    left = 0
    for picture in crowded.tolist():
        own = boxes[pictures == picture]
        middle, half = (own[:, :2] + own[:, 2:]) / 2, (own[:, 2:] - own[:, :2]) / 2
        reach = np.maximum(half[..., None], REACH * stride)
        offset = np.abs(np.stack([x, y]) - middle[..., None])
        within = csr_array((offset < reach).all(1))
        left += int((maximum_bipartite_matching(within, "column") < 0).sum())
    return left
