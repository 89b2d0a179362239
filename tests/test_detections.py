"""What is kept of detections."""

import numpy as np

from qmimic.detections import Detections


def test_a_mask_keeps_whole_rows_in_their_order() -> None:
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    kept = Detections(boxes, np.array([0.9, 0.5, 0.2], np.float32), np.array([4, 5, 6])).keep(np.array([1, 0, 1], bool))
    assert kept.boxes.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert np.allclose(kept.scores, [0.9, 0.2])
    assert kept.labels.tolist() == [4, 6]
