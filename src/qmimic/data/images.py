"""Pictures from strangers' files: as a person sees them, RGB, and never more than memory can hold."""

import contextlib
import hashlib
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image

from qmimic.errors import InputError

MAX_PIXELS = 100_000_000
Source: TypeAlias = Path | BinaryIO  # a file, or one that was sent to us
SENT = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # formats of the latter; few test Pillow's others
# What makes a picture upright, by EXIF's orientation, as in `ImageOps.exif_transpose`.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
LYING = {TURNS[5], TURNS[6], TURNS[7], TURNS[8]}
# What Pillow raises, as fuzzing shows, when bytes are not what the header promises.
BROKEN = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    TypeError,
    LookupError,
    ArithmeticError,
    struct.error,
    NotImplementedError,
)


def read_image(path: Path) -> Image.Image:
    """An image file as an RGB picture: EXIF rotation applied, 16 bits scaled to 8, the first frame of an animation,
    transparency on black.

    Raises:
        InputError: the file is missing, empty, truncated, over 100 megapixels or not an image.
    """
    with _opened(path) as file:
        file.load()
        return upright(file)


def read_resized(path: Source, target: Callable[[int, int], tuple[int, int]]) -> tuple[Image.Image, tuple[int, int]]:
    """An image file as a smaller (or larger) RGB picture, and the (width, height) that it had.

    A JPEG holds frequencies, of which a decoder can leave out the highest: half, a quarter or an eighth of the size
    costs a fraction of the time. So it is decoded no larger than a quarter more than what is wanted; pixels then differ
    by less than a grey level on average.

    Args:
        path: of the file, or the file itself.
        target: from the whole (width, height), as a person sees the picture, to the wanted one.

    Raises:
        InputError: as `read_image`.
    """
    with _opened(path) as file:
        turn = TURNS.get(_orientation(file))
        lies = turn in LYING
        whole = (file.height, file.width) if lies else (file.width, file.height)
        wanted = target(*whole)
        width, height = wanted[::-1] if lies else wanted
        drafted = file.draft(None, (width * 5 // 4, height * 5 // 4))
        file.load()
        # Where sides are no multiples of 8 the last pixels of a draft are in part beyond the picture; the box is not.
        picture = resized(_rgb(file), (width, height), drafted[1] if drafted else None)
        return picture if turn is None else picture.transpose(turn), whole


def resized(
    picture: Image.Image, size: tuple[int, int], box: tuple[float, float, float, float] | None = None
) -> Image.Image:
    """A picture, or a box of it in pixels, at another (width, height)."""
    # `reducing_gap` shrinks by whole factors first: far faster, and no visible difference at 3.
    return picture.resize(size, Image.Resampling.BILINEAR, box, reducing_gap=3.0)


def upright(picture: Image.Image) -> Image.Image:
    """An opened picture as `read_image` gives it."""
    turn = TURNS.get(_orientation(picture))
    return _rgb(picture if turn is None else picture.transpose(turn))


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) as a person sees the picture, from the file's header alone.

    Raises:
        InputError: the file is missing, over 100 megapixels or not an image.
    """
    with _opened(path) as file:
        lies = TURNS.get(_orientation(file)) in LYING
        return (file.height, file.width) if lies else (file.width, file.height)


def turned_by_exif(path: Path) -> bool:
    """Whether a picture is stored lying, so that a viewer turns it by its EXIF.

    Raises:
        InputError: as `image_size`.
    """
    with _opened(path) as file:
        return TURNS.get(_orientation(file)) in LYING


def whole_size(path: Path) -> tuple[tuple[int, int], int]:
    """The same of an image whose pixels are all there, and a number of 63 bits that images of equal pixels share.

    It is decoded as small and fast as its format allows, so a JPEG and its copy in another format differ in the number.

    Raises:
        InputError: as `read_image`.
    """
    size = image_size(path)
    with _opened(path) as file:
        file.draft("RGB", (1, 1))
        file.load()
        turned = TURNS.get(_orientation(file))
        facts = repr((size, file.mode, turned)).encode()
        digest = hashlib.blake2b(facts + file.tobytes(), digest_size=8).digest()
    return size, (int.from_bytes(digest) >> 1) or 1


@contextlib.contextmanager
def _opened(path: Source) -> Iterator[Image.Image]:
    """An image file with its header read; whatever goes wrong with it becomes an InputError."""
    name = path if isinstance(path, Path) else "The picture"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large images; the limit below refuses them
        try:
            with Image.open(path, formats=None if isinstance(path, Path) else SENT) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                yield file
        except FileNotFoundError as error:
            raise InputError(f"There is no image {name}; check the name.") from error
        except Image.DecompressionBombError as error:
            raise InputError(f"{name} has over {MAX_PIXELS // 10**6} million pixels; shrink it first.") from error
        except BROKEN as error:
            raise InputError(f"{name} is no whole image ({error}); replace or remove it.") from error


def _orientation(file: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 is upright, as Pillow makes TIFF files itself."""
    if file.format == "TIFF":
        return 1
    try:
        return int(file.getexif().get(0x0112, 1))
    except BROKEN:  # the pixels are whole, only what is said of them is spoilt
        return 1


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow would clip 16 bits to 255; the high byte is the picture.
        values = np.array(image, dtype=np.float64)
        if image.mode.startswith("I;16") or values.max(initial=0) > 255:
            values /= 257  # in place: a large picture is 400 MB of these
        np.clip(values, 0, 255, out=values).round(out=values)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")
