"""Suppression in numpy, as `qmimic.detectors` does it, for files that leave it to the runtime."""

import numpy as np
from numpy.typing import NDArray

from qmimic.runtime.metadata import Metadata

CANDIDATES = 4  # candidates for each detection that stays
BLOCK = 16  # boxes compared with all later ones at once: calling numpy costs more than the arithmetic
Floats = NDArray[np.float32]


def suppress(boxes: Floats, threshold: float, most: int) -> NDArray[np.intp]:
    """Greedy non-maximum suppression: indices of the boxes that stay, at most `most`.

    Args:
        boxes: [K, 4], xyxy, in falling order of score.
        threshold: largest IoU of two boxes that both stay.
        most: how many are wanted.
    """
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    stays = np.ones(len(boxes), np.bool_)
    kept: list[int] = []
    for start in range(0, len(boxes), BLOCK):
        rows = start + np.flatnonzero(stays[start : start + BLOCK])
        low = np.maximum(boxes[rows, None, :2], boxes[start:, :2])
        high = np.minimum(boxes[rows, None, 2:], boxes[start:, 2:])
        sides = np.clip(high - low, 0, None)
        apart = sides[..., 0] * sides[..., 1] * (1 + threshold) <= threshold * (areas[rows, None] + areas[start:])
        for row, free in zip(rows.tolist(), apart, strict=True):
            if len(kept) >= most:
                return np.array(kept, np.intp)
            if stays[row]:
                kept.append(row)
                stays[start:] &= free
    return np.array(kept[:most], np.intp)


def propose(candidates: Floats, metadata: Metadata) -> tuple[Floats, NDArray[np.bool_]]:
    """Regions [P, 4] from candidates [K, 4] in falling order of objectness, and which of them are valid, bool [P]."""
    usable = candidates[((candidates[:, 2:] - candidates[:, :2]) > 1e-3).all(1)]
    kept = usable[suppress(usable, metadata.proposal_nms_threshold, metadata.proposals)]
    regions = np.zeros((metadata.proposals, 4), np.float32)
    regions[: len(kept)] = kept
    return regions, np.arange(metadata.proposals) < len(kept)


def detect(scores: Floats, boxes: Floats, metadata: Metadata) -> tuple[Floats, Floats, NDArray[np.int64]]:
    """Detections of one image from the scores and boxes of its regions.

    Args:
        scores: [P, K], below 0 where there is no region; boxes: [P, K or 1, 4], xyxy.
        metadata: thresholds and sizes.

    Returns:
        Boxes [D, 4], scores [D], below 0 where there are fewer than D, and classes [D], like a graph with suppression.
    """
    height, width = metadata.size
    most = metadata.max_detections
    boxes = np.clip(boxes, 0, np.array([width, height, width, height], np.float32))
    boxes = np.broadcast_to(boxes, (*scores.shape, 4)).reshape(-1, 4)
    flat = scores.reshape(-1)
    usable = np.flatnonzero((flat > metadata.score_threshold) & ((boxes[:, 2:] - boxes[:, :2]) > 1e-2).all(1))
    best = usable[np.argsort(-flat[usable], kind="stable")][: CANDIDATES * most]
    labels = best % scores.shape[1]
    apart = (labels * (max(height, width) + 1.0)).astype(np.float32)[:, None]  # classes do not suppress each other
    kept = suppress(boxes[best] + apart, metadata.nms_threshold, most)
    corners, filled, classes = np.zeros((most, 4), np.float32), np.full(most, -1, np.float32), np.zeros(most, np.int64)
    corners[: len(kept)], filled[: len(kept)], classes[: len(kept)] = boxes[best[kept]], flat[best[kept]], labels[kept]
    return corners, filled, classes
