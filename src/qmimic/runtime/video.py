"""Frames of a video or a camera, by OpenCV, an option of the runtime."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmimic.errors import InputError


def frames(source: str) -> Iterator[NDArray[np.uint8]]:
    """Frames uint8 [H, W, 3], RGB, until the video ends or the camera stops.

    Args:
        source: a file, or the number of a camera.

    Raises:
        InputError: OpenCV is not installed, there is no such file or camera, or it gives no frame.
    """
    try:
        import cv2
    except ImportError as error:
        raise InputError("Videos and cameras need OpenCV: pip install 'qmimic[video]'.") from error
    if not source.isdecimal() and not Path(source).is_file():
        raise InputError(f"There is no video {source}; name a file, or the number of a camera.")
    what = f"camera {source}" if source.isdecimal() else f"video {source}"
    capture = cv2.VideoCapture(int(source) if source.isdecimal() else source)
    try:
        opened, frame = capture.read()
        if not opened:
            raise InputError(f"The {what} gives no picture; check that it is connected, or whole.")
        while opened:
            yield np.ascontiguousarray(frame[..., ::-1])
            opened, frame = capture.read()
    finally:
        capture.release()
