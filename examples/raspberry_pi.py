"""Detect objects in what a Raspberry Pi's camera sees, frame after frame; without PyTorch.

    pip install 'qmimic[ncnn]'            # or [litert], for an int8 .tflite
    python raspberry_pi.py student.ncnn.param
    python raspberry_pi.py student.ncnn.param --source 0          # a USB camera; pip install 'qmimic[video]'
    python raspberry_pi.py student.ncnn.param --source film.avi --frames 100

The Pi's own camera is read by picamera2 (`apt install python3-picamera2`; a virtual environment needs
--system-site-packages to see it). A line is printed for each frame with objects, and how fast the loop is at the end.
"""

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from qmimic.errors import InputError
from qmimic.runtime import Detector
from qmimic.runtime.video import frames

SIZE = 640, 480  # width and height that the camera is asked for, pixels
PI = "pi"


def of_the_pi() -> Iterator[NDArray[np.uint8]]:
    """Frames uint8 [H, W, 3], RGB, of the Pi's own camera, each the newest."""
    try:
        from picamera2 import Picamera2
    except ImportError as error:
        raise InputError("picamera2 is not installed: apt install python3-picamera2, or name a --source.") from error
    camera = Picamera2()
    # The format's name says how a pixel lies in a 24-bit number: its bytes come in the order red, green, blue.
    camera.configure(camera.create_video_configuration(main={"size": SIZE, "format": "BGR888"}))
    camera.start()
    try:
        while True:
            yield camera.capture_array()
    finally:
        camera.stop()


def main() -> int:
    """Run until the source ends, the frames are done, or Ctrl-C. Returns 0, or 2 after bad input."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a file of `qmimic export`")
    parser.add_argument("--source", default=PI, help="pi, a camera's number, /dev/videoN, or a video file")
    parser.add_argument("--frames", type=int, help="how many; without it, until the source ends")
    parser.add_argument("--min-score", type=float, default=0.4)
    parser.add_argument("--threads", type=int, default=4, help="a Pi has four cores")
    options = parser.parse_args()
    count, begin, busy = 0, time.perf_counter(), 0.0
    try:
        detector = Detector(options.model, options.threads)
        if options.source == PI:
            source = of_the_pi()
        else:
            source = (frame for _, frame in frames(options.source, lambda said: print(said, file=sys.stderr)))
        with contextlib.closing(source):
            for count, frame in enumerate(itertools.islice(source, options.frames), 1):
                start = time.perf_counter()
                found = detector(frame, min_score=options.min_score)
                busy += time.perf_counter() - start
                if len(found.scores):
                    rows = zip(found.labels, found.scores, found.boxes.round().astype(int).tolist(), strict=True)
                    objects = ", ".join(f"{detector.classes[label]} {score:.2f} {box}" for label, score, box in rows)
                    print(f"{count}: {objects}", flush=True)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        pass
    seconds = time.perf_counter() - begin
    if count:
        print(f"{count} frames, {count / seconds:.1f} a second, {1000 * busy / count:.1f} ms of each in the detector")
    return 0


if __name__ == "__main__":
    sys.exit(main())
