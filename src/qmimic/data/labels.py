"""What the readers of label files share: limits, safe paths, and boxes that become a `Sample`."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from qmimic.data.sample import Sample
from qmimic.errors import InputError

MAX_LABEL_BYTES = 1 << 30
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def read_text(path: Path) -> str:
    """A label file as text.

    Raises:
        InputError: the file is missing, unreadable, too large or not UTF-8.
    """
    try:
        if path.stat().st_size > MAX_LABEL_BYTES:
            raise InputError(f"{path} is over 1 GiB; split it.")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text; save it as UTF-8.") from error


def inside(root: Path, path: Path) -> Path:
    """The path, if it stays in the dataset's folder, links followed.

    Raises:
        InputError: it leads out of the folder.
    """
    if not path.resolve().is_relative_to(root.resolve()):
        raise InputError(f"{path} leads out of {root}; a dataset keeps its files inside its folder.")
    return path


def image_files(folder: Path) -> dict[str, Path]:
    """The image files of a folder by name without suffix, in order of name."""
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}


def finite(*values: float) -> bool:
    """Whether all numbers are finite."""
    return all(math.isfinite(value) for value in values)


def make_sample(
    image_id: str,
    image: Path,
    boxes: Sequence[tuple[float, float, float, float]],
    labels: Sequence[int],
    size: tuple[int, int] | None,
    difficult: Sequence[bool] = (),
    crowd: Sequence[bool] = (),
) -> Sample:
    """A sample from plain lists; boxes xyxy, 0-based pixels; missing flags are False."""
    count = len(boxes)
    return Sample(
        image_id,
        image,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(difficult or [False] * count, np.bool_),
        np.array(crowd or [False] * count, np.bool_),
        size,
    )
