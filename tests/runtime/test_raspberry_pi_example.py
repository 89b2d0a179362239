"""The loop over a Raspberry Pi's camera, with a video file and with a stand-in for picamera2."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from qmimic.runtime import Detector

EXAMPLE = Path(__file__).parents[2] / "examples" / "raspberry_pi.py"
CAMERA = """
import numpy as np


class Picamera2:
    def create_video_configuration(self, main):
        return main

    def configure(self, main):
        assert main["format"] == "BGR888"
        self.size = main["size"][::-1]

    def start(self):
        self.turn = 0

    def capture_array(self):
        self.turn += 1
        return np.random.default_rng(self.turn).integers(0, 256, (*self.size, 3), dtype=np.uint8)

    def stop(self):
        print("stopped")
"""


def run(folder: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(EXAMPLE), *map(str, arguments)]
    path = ":".join([str(folder), *filter(None, sys.path)])
    return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": path, "PATH": ""}, check=False)


def test_a_video_is_looked_at_frame_by_frame(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    from qmimic.data.synthetic import digits

    dataset = digits(train=1, val=12, select=1)
    pictures = [np.asarray(dataset.load(sample)) for sample in dataset.splits["val"]]
    path = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, pictures[0].shape[1::-1])
    for one in pictures:
        writer.write(np.ascontiguousarray(one[..., ::-1]))
    writer.release()
    done = run(tmp_path, "zoo:digits", "--source", path, "--threads", 1)
    assert done.returncode == 0, done.stderr
    *lines, last = done.stdout.splitlines()
    assert re.fullmatch(r"12 frames, [\d.]+ a second, [\d.]+ ms of each in the detector", last)
    assert len(lines) > 8
    capture, detector = cv2.VideoCapture(str(path)), Detector("zoo:digits")
    for line in lines:
        number, _, objects = line.partition(": ")
        capture.set(cv2.CAP_PROP_POS_FRAMES, int(number) - 1)
        found = detector(np.ascontiguousarray(capture.read()[1][..., ::-1]), min_score=0.4)
        assert re.findall(r"(\d) [\d.]+ \[", objects) == [detector.classes[label] for label in found.labels]


def test_the_pi_s_own_camera(tmp_path: Path) -> None:
    (tmp_path / "picamera2.py").write_text(CAMERA)
    done = run(tmp_path, "zoo:digits", "--frames", 3, "--threads", 1)
    assert done.returncode == 0, done.stderr
    *_, stopped, last = done.stdout.splitlines()
    assert (stopped, last[:10]) == ("stopped", "3 frames, ")


def test_bad_input(tmp_path: Path) -> None:
    for arguments, said in (
        (("zoo:digits",), "picamera2 is not installed"),
        (("none.onnx",), "There is no file none.onnx"),
        (("zoo:digits", "--source", tmp_path / "none.avi"), "There is no video"),
    ):
        done = run(tmp_path, *arguments)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
