"""A page of text with very many detections of one picture."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qmimic.scores import widerface
from qmimic.scores.widerface import _best_faces, _iou
from wider_cases import write_text, write_truth


def test_the_best_faces_are_the_same_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    chance = np.random.default_rng(0)
    boxes, faces = (
        np.concatenate([chance.integers(0, 90, (n, 2)), chance.integers(1, 40, (n, 2))], 1) for n in (70, 9)
    )
    whole = _iou(boxes.astype(float), faces.astype(float))
    for pairs in (1, 9, 100, 1 << 21):
        monkeypatch.setattr(widerface, "PAIRS_AT_ONCE", pairs)
        taken, overlap = _best_faces(boxes.astype(float), faces.astype(float))
        np.testing.assert_array_equal(taken, whole.argmax(1))
        np.testing.assert_array_equal(overlap, whole.max(1))


def test_many_detections_of_one_image_take_little_memory(tmp_path: Path) -> None:
    faces = np.array([[x, y, 9, 9] for x in range(0, 400, 10) for y in range(0, 250, 10)], float)
    events = {"e": {"a": {"boxes": faces, **{level: np.arange(1, len(faces) + 1) for level in widerface.LEVELS}}}}
    truth = write_truth(tmp_path / "truth", events)
    rows = np.tile([1.0, 2, 3, 4, 0.5], (100_000, 1))
    rows[:, 0] = np.arange(100_000) % 390
    found = write_text(tmp_path / "found", {"e/a": rows})
    command = [sys.executable, "-m", "qmimic", "score", "--widerface", str(truth), "--detections", str(found)]

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_DATA, (2 << 30, 2 << 30))

    done = subprocess.run(command, capture_output=True, text=True, timeout=300, preexec_fn=little)
    assert (done.returncode, "hard" in done.stdout) == (0, True), done.stderr
