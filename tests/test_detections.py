"""What is kept of detections."""

import json

import numpy as np

from qmimic.detections import Detections


def test_a_mask_keeps_whole_rows_in_their_order() -> None:
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    kept = Detections(boxes, np.array([0.9, 0.5, 0.2], np.float32), np.array([4, 5, 6])).keep(np.array([1, 0, 1], bool))
    assert kept.boxes.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]]
    assert np.allclose(kept.scores, [0.9, 0.2])
    assert kept.labels.tolist() == [4, 6]


def test_they_are_counted_compared_and_written_as_json() -> None:
    boxes = np.array([[0, 0, 1.006, 2], [1, 1, 3, 3]], np.float32)
    found = Detections(boxes, np.array([0.98768, 0.5], np.float32), np.array([1, 0]))
    assert len(found) == 2
    assert found == found.keep(np.array([0, 1]))
    assert found != found.keep(np.array([0]))
    assert found != "detections"
    plain = json.loads(json.dumps(found.as_plain(("cat", "dog"))))
    assert plain == [
        {"box": [0.0, 0.0, 1.01, 2.0], "class": "dog", "score": 0.9877},
        {"box": [1.0, 1.0, 3.0, 3.0], "class": "cat", "score": 0.5},
    ]
