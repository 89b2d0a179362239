"""Detections in one image, in the form that all scores, drawings and writers use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections in one image, in falling order of score.

    Attributes:
        boxes: float32 [D, 4], xyxy, 0-based, absolute pixels of the original image.
        scores: float32 [D], 0..1.
        labels: int64 [D], indices into the dataset's (detector's) classes.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.scores)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Detections):
            return NotImplemented
        pairs = (self.boxes, other.boxes), (self.scores, other.scores), (self.labels, other.labels)
        return all(np.array_equal(own, their) for own, their in pairs)

    __hash__ = None  # type: ignore[assignment]  # arrays can change

    def as_plain(self, classes: Sequence[str]) -> list[dict[str, Any]]:
        """Plain values for JSON: boxes x1, y1, x2, y2 to a hundredth of a pixel, class names, scores."""
        rows = zip(self.boxes.tolist(), self.labels.tolist(), self.scores.tolist(), strict=True)
        return [
            {"box": [round(side, 2) for side in box], "class": classes[label], "score": round(score, 4)}
            for box, label, score in rows
        ]

    def keep(self, mask: NDArray[np.bool_] | NDArray[np.int64]) -> "Detections":
        """Those where a mask, bool [D], is true, in the same order; or those at these indices, int64 [K]."""
        return Detections(self.boxes[mask], self.scores[mask], self.labels[mask])
