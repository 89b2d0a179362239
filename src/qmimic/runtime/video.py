"""Frames of a video, a stream or a camera, read by OpenCV (optional)."""

import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from qmimic.errors import InputError

STREAMS = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "tcp")
PATIENCE = 10_000  # milliseconds that a stream may take to answer
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before each try to reach a stream or camera again
MOST_IN_A_ROW = 10_000  # failed frames in a row after which no more are expected


def frames(source: str, fault: Callable[[str], None]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Numbers, from 0, and frames uint8 [H, W, 3], RGB, until the video ends or the stream stops for good.

    Frames that cannot be read are skipped. If a stream or camera stops, it is opened again.

    Args:
        source: a file, an address (rtsp, http and the like), `/dev/videoN`, or the number of a camera.
        fault: called at the end with a sentence on what was not read.

    Raises:
        InputError: OpenCV is not installed, there is no such file or camera, or it gives no frame at all.
    """
    try:
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # it would print addresses with their passwords
        import cv2
    except ImportError as error:
        raise InputError("Videos and cameras need OpenCV: pip install 'qmimic[video]'.") from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    what, live = _what(source)
    capture = _opened(cv2, source)
    try:
        good, frame = capture.read()
        count = max(0, int(capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        live = live and count == 0
        if not good and not (count and not live):
            raise InputError(f"The {what} gives no picture; check that it is connected, or undamaged.")
        number = read = in_a_row = 0
        while good or (not live and number < count and in_a_row < MOST_IN_A_ROW):
            if good:
                yield number, np.ascontiguousarray(frame[..., ::-1])
                read, in_a_row = read + 1, 0
            else:
                in_a_row += 1
            number += 1
            good, frame = capture.read()
            if live and not good:
                capture.release()
                capture, good, frame = _again(cv2, source)
        if not read:
            raise InputError(f"The {what} gives no picture, although it claims to have {count} frames; copy it again.")
        if live:
            fault(f"The {what} stopped after {read} frames and could not be reached again in {len(WAITS)} tries.")
        elif read < count:
            fault(f"The {what} claims to have {count} frames, but {count - read} could not be read; copy it again.")
    finally:
        capture.release()


def _what(source: str) -> tuple[str, bool]:
    """What a source is, in words that reveal no password, and whether it may be live."""
    if source.isdecimal():
        return f"camera {source}", True
    scheme = source.partition("://")[0].lower()
    if "://" in source:
        if scheme not in STREAMS:
            raise InputError(f"{scheme}:// streams are not supported; give one of {', '.join(STREAMS)}, or a file.")
        return f"stream {scheme}://{_host(source)}", True
    path = Path(source)
    if path.exists() and stat.S_ISCHR(path.stat().st_mode):
        return f"camera {source}", True
    if source.startswith("/dev/video"):
        raise InputError(f"There is no camera {source}; `ls /dev/video*` lists those that are connected.")
    if not source or not path.is_file():
        raise InputError(
            f"There is no video {source!r}; name a file, an address such as rtsp://host/path, /dev/video0, or the "
            "number of a camera."
        )
    return f"video {source}", False


def _host(address: str) -> str:
    """Host and port of an address, for messages. Some cameras have a password in the path, and some passwords have a
    slash: everything else is left out, and an ambiguous address altogether.

    Raises:
        InputError: host or port is invalid.
    """
    try:
        parts = urlsplit(address)
        where = f"{parts.hostname or ''}{f':{parts.port}' if parts.port else ''}"
    except ValueError as error:
        raise InputError("The address of the stream cannot be read; check its host and port.") from error
    return "..." if "@" in parts.path + parts.query + parts.fragment else where


def _opened(cv2: Any, source: str) -> Any:
    if source.isdecimal():
        return cv2.VideoCapture(int(source))
    if "://" in source:
        limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, PATIENCE, cv2.CAP_PROP_READ_TIMEOUT_MSEC, PATIENCE]
        return cv2.VideoCapture(source, cv2.CAP_FFMPEG, limits)
    return cv2.VideoCapture(source)


def _again(cv2: Any, source: str) -> tuple[Any, bool, Any]:
    """A source that stopped, opened again, and its next frame."""
    for seconds in WAITS:
        time.sleep(seconds)
        capture = _opened(cv2, source)
        good, frame = capture.read()
        if good:
            break
        capture.release()
    return capture, good, frame
