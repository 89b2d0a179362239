"""What a detector says of one image; every scorer, drawer and writer speaks this."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
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

    def keep(self, mask: NDArray[np.bool_] | NDArray[np.int64]) -> "Detections":
        """Those where a mask, bool [D], is true, in the same order; or those at these places, int64 [K]."""
        return Detections(self.boxes[mask], self.scores[mask], self.labels[mask])
