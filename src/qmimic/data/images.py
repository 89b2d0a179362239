"""Pictures from strangers' files: as a person sees them, RGB, and never more than memory can hold.

This is the only place that decodes: training, `data check`, `predict` and the page read the same formats the same way.
"""

import contextlib
import hashlib
import io
import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from qmimic.errors import InputError
from qmimic.files import OTHER_KIND, MissingError, open_file, what_is

MAX_BYTES = 1 << 30  # of a file
SMALL = 4 << 20  # bytes of a file that is read at once
# Tags of TIFF: BitsPerSample, MaxSampleValue, SMinSampleValue, SMaxSampleValue.
BITS, MAXIMUM, LEAST, GREATEST = 258, 281, 340, 341
MAX_PIXELS = 100_000_000  # of a picture, and of all that are decoded at the same time in this process
MAX_SCANS = 100  # of a JPEG; each costs a pass over all pixels, however few bytes it has. Usual ones have up to 12
Source: TypeAlias = Path | BinaryIO  # a file, or one that was sent to us
# By content, whatever the name says. Others of Pillow's plugins start programs, or are seldom used and little tested.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
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
FLAT = 17  # levels of 255; a picture that spans fewer shows hardly anything, as 12 bits in a file of 16
THUMB = 16  # pixels, sides of the thumbnail by which pictures are known that were stored again
DRAFT = 8 * THUMB  # pixels, least sides of a draft: on smaller ones thumbnails depend on how a picture was stored
LYING = {TURNS[5], TURNS[6], TURNS[7], TURNS[8]}
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # in a JPEG, but for those within the pixels of a scan
SCAN, END = 0xDA, 0xD9


class UnknownFormatError(InputError):
    """The file is not a picture, or one in a format that is not read."""


class TooLargeError(InputError):
    """The picture has too many pixels."""


class UndeclaredDepthError(ValueError):
    """A picture does not say which of its values are black and white."""


def read_image(path: Path, root: Path | None = None) -> Image.Image:
    """An image file as an RGB picture: EXIF rotation applied, 16 bits scaled to 8, the first frame of an animation,
    transparency on black.

    Args:
        path: of the file.
        root: folder that the file may not leave, see `files.open_file`.

    Raises:
        InputError: the file is missing, truncated, over 100 megapixels or not a picture of `FORMATS`.
    """
    with _opened(path, root) as file, _decoded(file):
        return upright(file)


@dataclass(frozen=True)
class Look:
    """What a picture is.

    Attributes:
        size: width and height as a person sees it.
        pixels: a number of 63 bits, not 0, that equal pictures share.
        span: the levels that its pixels span, see `levels`.
        thumbnail: `THUMB` x `THUMB` grey levels, row by row, which hardly change when a picture is stored again or
            resized.
        turn: how EXIF turns it; None: it is stored as it is seen.
        drafted: `pixels` is of a JPEG's lowest frequencies: equal pictures share it only if they are stored alike.
    """

    size: tuple[int, int]
    pixels: int
    span: int
    thumbnail: bytes
    turn: Image.Transpose | None = None
    drafted: bool = False


def look(path: Path, root: Path | None = None, whole: bool = True) -> Look:
    """What the picture that `read_image` gives is.

    Args:
        path, root: as in `read_image`.
        whole: decode all of it; else as little and as fast as its format allows, which shows that it can be read.

    Raises:
        InputError: as `read_image`.

    Unlike pictures, these may be made in many threads: memory follows the pixels in progress.
    """
    with _opened(path, root) as file:
        turn = TURNS.get(_orientation(file))
        size = (file.height, file.width) if turn in LYING else (file.width, file.height)
        found = None if whole else file.draft(None, (DRAFT, DRAFT))
        with _decoded(file):
            return look_at(_rgb(file), size, turn, found[1]) if found else look_at(upright(file), size, turn)


def look_at(
    picture: Image.Image,
    size: tuple[int, int] | None = None,
    turn: Image.Transpose | None = None,
    draft: tuple[float, float, float, float] | None = None,
) -> Look:
    """What an RGB picture is.

    Args:
        picture: as a person sees it, or a draft of it as it is stored.
        size: as in `Look`; None: the size that it has.
        turn: as in `Look`.
        draft: the box that the picture fills in its draft, which may be larger by some pixels; None: it is whole.
    """
    size = size or picture.size
    digest = hashlib.blake2b(repr((size, turn if draft else None)).encode(), digest_size=8)
    digest.update(picture.tobytes())
    # Not BOX: it counts pixels on a border wholly or not at all, so a thumbnail would depend on the picture's size.
    small = picture.resize((THUMB, THUMB), Image.Resampling.BILINEAR, draft).convert("L")
    if draft and turn is not None:
        small = small.transpose(turn)
    pixels = (int.from_bytes(digest.digest()) >> 1) or 1
    return Look(size, pixels, levels(picture), small.tobytes(), turn, draft is not None)


def read_resized(
    path: Source, target: Callable[[int, int], tuple[int, int]], root: Path | None = None
) -> tuple[Image.Image, tuple[int, int]]:
    """An image file as a smaller (or larger) RGB picture, and the (width, height) that it had.

    A JPEG holds frequencies, of which a decoder can leave out the highest: half, a quarter or an eighth of the size
    costs a fraction of the time. So it is decoded no larger than a quarter more than what is wanted; pixels then differ
    by less than a grey level on average.

    Args:
        path: of the file, or the file itself.
        target: from the whole (width, height), as a person sees the picture, to the wanted one.
        root: as in `read_image`.

    Raises:
        InputError: as `read_image`.
    """
    with _opened(path, root) as file:
        turn = TURNS.get(_orientation(file))
        lies = turn in LYING
        whole = (file.height, file.width) if lies else (file.width, file.height)
        wanted = target(*whole)
        width, height = wanted[::-1] if lies else wanted
        drafted = file.draft(None, (width * 5 // 4, height * 5 // 4))
        with _decoded(file):
            # Where sides are no multiples of 8 the last pixels of a draft are in part beyond the picture; the box is
            # not.
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


def image_size(path: Source, root: Path | None = None) -> tuple[int, int]:
    """(width, height) as a person sees the picture, from the file's header alone. Args: as `read_resized`.

    Raises:
        InputError: the file is missing, over 100 megapixels or not a picture of `FORMATS`.
    """
    with _opened(path, root) as file:
        lies = TURNS.get(_orientation(file)) in LYING
        return (file.height, file.width) if lies else (file.width, file.height)


@contextlib.contextmanager
def _opened(path: Source, root: Path | None) -> Iterator[ImageFile.ImageFile]:
    """An image file with its header read; whatever goes wrong with it becomes an InputError."""
    name = path if isinstance(path, Path) else "The picture"
    with warnings.catch_warnings(), contextlib.ExitStack() as opened:
        warnings.simplefilter("ignore")  # Pillow warns of large images; the limit below refuses them
        try:
            own = opened.enter_context(_read(path, root)) if isinstance(path, Path) else path
            with Image.open(own, formats=FORMATS) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                yield file
        except MissingError as error:
            raise InputError(f"There is no image {name}; check the name.") from error
        except InputError:
            raise
        except UndeclaredDepthError as error:
            raise InputError(f"{name} cannot be read: {error}.") from error
        except UnidentifiedImageError as error:
            raise UnknownFormatError(
                f"{name} is not a picture in a known format ({', '.join(FORMATS)}){_but(path)}; convert, replace or "
                "remove it."
            ) from error
        except Image.DecompressionBombError as error:
            raise TooLargeError(f"{name} has over {MAX_PIXELS // 10**6} million pixels; shrink it first.") from error
        except Exception as error:  # fuzzing found a dozen kinds in Pillow when bytes are not what the header promises
            raise InputError(
                f"{name} is not a whole image ({str(error) or type(error).__name__}); replace or remove it."
            ) from error


def _read(path: Path, root: Path | None) -> BinaryIO:
    """A file to decode from: in memory where it is small, for decoders read in many small pieces."""
    file = open_file(path, root, MAX_BYTES)
    size = os.fstat(file.fileno()).st_size
    if size > SMALL:
        return file
    with file:
        return io.BytesIO(file.read(size))


def _but(path: Source) -> str:
    """What a file that is not read is instead, a clause; empty where nobody knows."""
    kind = what_is(path) if isinstance(path, Path) else OTHER_KIND
    if kind.rpartition(" ")[0].rpartition(" ")[2].upper() in FORMATS:
        return f", but {kind} that is cut short, or of a kind that is not read, such as floats in colour"
    return "" if kind == OTHER_KIND else f", but {kind}"


class _Room:
    """Pixels that may be in progress at once in all threads; who finds no room waits for it."""

    def __init__(self, pixels: int) -> None:
        self._left = pixels
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def taken(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: pixels <= self._left)
            self._left -= pixels
        try:
            yield
        finally:
            with self._changed:
                self._left += pixels
                self._changed.notify_all()


_ROOM = _Room(MAX_PIXELS)


@contextlib.contextmanager
def _decoded(file: ImageFile.ImageFile) -> Iterator[None]:
    """While the body runs, a picture's pixels are in memory, and count among those in progress."""
    if file.format in ("JPEG", "MPO"):
        _check_scans(file)
    with _ROOM.taken(file.width * file.height):
        file.load()
        yield


def _check_scans(file: ImageFile.ImageFile) -> None:
    """Refuse a JPEG that is a few bytes of scans without end.

    Raises:
        InputError: it has more than `MAX_SCANS` of them.
    """
    stream = file.fp
    assert stream is not None, "the picture is open"
    if isinstance(stream, io.BytesIO):
        content = stream.getvalue()  # no copy
    else:
        back = stream.tell()
        stream.seek(0)
        content = stream.read(MAX_BYTES)
        stream.seek(back)
    if content.count(b"\xff\xda") <= MAX_SCANS:
        return  # not even if all of them were markers
    place, scans = 2, 0
    while (found := MARKER.search(content, place)) is not None and content[found.start() + 1] != END:
        place = found.end()
        scans += content[found.start() + 1] == SCAN
        if scans > MAX_SCANS:
            raise ValueError(f"it has over {MAX_SCANS} scans, more than any program writes")
        place += int.from_bytes(content[place : place + 2], "big")  # what stands in a segment is no marker


def _orientation(file: Image.Image) -> int:
    """EXIF's, 1 to 8; 1 is upright, as Pillow makes TIFF files itself."""
    if file.format == "TIFF":
        return 1
    try:
        return int(file.getexif().get(0x0112, 1))
    except Exception:  # the pixels are whole, only what is said of them is spoilt
        return 1


def levels(picture: Image.Image) -> int:
    """The widest span of values, 0 to 255, of a channel of an RGB picture; 0: it is of one colour."""
    spans = np.array(picture.getextrema())
    return int((spans[:, 1] - spans[:, 0]).max())


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        # Pillow would clip to 255. No pixel decides how the others are scaled: what is black and white is declared.
        low, high = _black_and_white(image)
        values = np.array(image, dtype=np.float64)  # a large picture is 400 MB of these, hence all in place
        values -= low
        values /= (high - low) / 255
        np.nan_to_num(values, copy=False)
        np.clip(values, 0, 255, out=values).round(out=values)
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image).convert("RGB")
    return image.convert("RGB")


def _black_and_white(image: Image.Image) -> tuple[float, float]:
    """The values that are black and white in a picture of more than 8 bits, by its type or as its file declares.

    Raises:
        UndeclaredDepthError: neither says it.
    """
    tags = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        bits = int(tags[BITS][0]) if BITS in tags else 16  # Pillow opens 12 bits as 16
        return 0.0, float(np.ravel(tags.get(MAXIMUM, 2**bits - 1))[0])
    low, high = (float(np.ravel(tags.get(tag, 0.0))[0]) for tag in (LEAST, GREATEST))
    if not high > low:
        kind = "floats" if image.mode == "F" else "32-bit integers"
        raise UndeclaredDepthError(
            f"it holds {kind} and does not say which value is white; save it with 8 or 16 bits, scaled to all of them"
        )
    return low, high
