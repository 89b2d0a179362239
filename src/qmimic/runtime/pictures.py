"""Whatever is given as a picture: fitted into an input, or refused with the reason and the fix."""

import os
import warnings
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qmimic.data.images import FLAT, MAX_PIXELS, upright
from qmimic.data.letterbox import Letterbox, letterbox, letterbox_file
from qmimic.errors import InputError, Notice

Picture = Image.Image | Path | str | NDArray[np.uint8]
TAKEN = "a picture is a path, a Pillow image, or an RGB array uint8 [height, width, 3]"


def fitted(picture: Any, size: tuple[int, int]) -> tuple[NDArray[np.uint8], Letterbox]:
    """A picture fitted into an input of this size: pixels uint8 [H, W, 3], and its position there.

    Raises:
        InputError: it is not a `Picture`, or its file is missing, truncated, too large or not an image.
    """
    if isinstance(picture, np.ndarray):
        picture = Image.fromarray(_rgb(picture))
    if isinstance(picture, Image.Image):
        try:
            return letterbox(upright(picture), size)
        except Exception as error:  # from Pillow, which reads the file only now, or cannot convert its mode
            raise InputError(f"The Pillow image cannot be read as RGB ({error}); convert or load it first.") from error
    if isinstance(picture, str | os.PathLike):
        path = _file(os.fspath(picture))
        pixels, placed = letterbox_file(path, size)
        seen = pixels[: placed.inner[1], : placed.inner[0]]
        span = int((seen.max((0, 1)) - seen.min((0, 1))).max())
        if span < FLAT:
            warnings.warn(
                f"{path} has almost a single colour: its pixels span {span} of 255 levels; if it stores 10, 12 or 14 "
                "bits in 16, scale them to all 16.",
                Notice,
                stacklevel=2,
            )
        return pixels, placed
    raise InputError(f"{_not_a_picture(picture)}; {TAKEN}.")


def score_limit(score: object) -> float:
    """Check a lowest score. Raises InputError: it is not a number from 0 to 1."""
    if isinstance(score, Real) and 0 <= float(score) <= 1:
        return float(score)
    percent = f" ({score} % is {float(score) / 100:g})" if isinstance(score, Real) and 1 < float(score) <= 100 else ""
    raise InputError(f"{score!r} is not a valid lowest score; give a number from 0 to 1{percent}.")


def is_one(pictures: object) -> bool:
    """Whether a single picture was given where several are expected."""
    single = isinstance(pictures, str | os.PathLike | Image.Image | bytes | bytearray | memoryview) or hasattr(
        pictures, "read"
    )
    return single or (isinstance(pictures, np.ndarray) and pictures.ndim < 4)


def _file(name: str | bytes) -> Path:
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    if "://" in name or name.startswith("data:"):
        raise InputError(f"{name[:60]!r} is an address, not a file; download it and name the file.")
    if not name:
        raise InputError("The name of the picture is empty; name a file.")
    return Path(name)


def _not_a_picture(given: object) -> str:
    kind = type(given)
    if given is None:
        return "The picture is None, which cv2.imread returns for a missing or damaged file; check the file"
    if isinstance(given, bytes | bytearray | memoryview):
        return "These are the bytes of a file; open them with PIL.Image.open(io.BytesIO(data))"
    if hasattr(given, "read"):
        return "This is an open file; pass its path, or open it with PIL.Image.open"
    if kind.__module__.partition(".")[0] == "torch":
        return "This is a tensor; pass tensor.permute(1, 2, 0).byte().numpy() if it is uint8 [3, height, width]"
    if isinstance(given, list | tuple) or hasattr(given, "__next__"):
        return "These are several pictures; use many()"
    return f"A {kind.__module__}.{kind.__qualname__} is not a picture"


def _rgb(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3 and array.size:
        if array.size > 3 * MAX_PIXELS:
            raise InputError(f"The array has over {MAX_PIXELS // 10**6} million pixels; shrink it first.")
        return array
    if not array.size:
        fix = "it has no pixels"
    elif array.dtype.kind == "f":
        fix = "if it is from 0 to 1, pass (255 * array).round().astype(np.uint8)"
    elif array.dtype != np.uint8:
        fix = "scale its values to 0..255, then .astype(np.uint8)"
    elif array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 1):
        fix = "for a grey one pass np.dstack([array] * 3)"
    elif array.ndim == 4:
        fix = "for several use many()"
    elif array.ndim == 3 and array.shape[2] == 4:
        fix = "drop its fourth channel with array[..., :3]"
    elif array.ndim == 3 and array.shape[0] == 3:
        fix = "its channels come first; pass array.transpose(1, 2, 0)"
    else:
        fix = "convert it"
    shape = list(array.shape)
    raise InputError(
        f"A picture as an array is uint8 [height, width, 3], RGB; this one is {array.dtype} {shape}: {fix}."
    )
