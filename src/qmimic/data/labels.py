"""What readers and writers of label files share: limits, safe names and paths, boxes that become a `Sample`."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol, Self
from unicodedata import category, normalize
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from qmimic import files
from qmimic.data.images import image_size
from qmimic.data.sample import Sample
from qmimic.errors import InputError
from qmimic.files import inside, is_there

MAX_LABEL_BYTES = files.LARGE
MAX_DEPTH = 32  # folders in a name that a label gives
MAX_COORDINATE = 1e9  # pixels; float32 overflows far beyond, and no image is that large
READ = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff")
NOT_READ = (  # of pictures all the same: they are counted, and named where a label is theirs
    *(".jp2", ".j2k", ".j2c", ".jpf", ".jpx", ".jxl", ".jxr", ".avif", ".heic", ".heif", ".hif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".tga", ".pcx", ".ico", ".svg", ".psd", ".exr", ".hdr"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".dcm"),
)
SUFFIXES = (*READ, *NOT_READ)


class Folder(Protocol):
    """Where a writer puts its label files: a `Path`, or what works like one."""

    def __truediv__(self, name: str, /) -> Self: ...

    def mkdir(self, *, parents: bool, exist_ok: bool = False) -> None: ...

    def write_text(self, data: str, /, encoding: str) -> int: ...


def read_text(path: Path, root: Path | None = None) -> str:
    """A label file as text.

    Args:
        path: of the file.
        root: the dataset's folder, which the file may not leave, links followed.

    Raises:
        InputError: the file is missing, unreadable, too large or not UTF-8.
    """
    return files.read_text(path, MAX_LABEL_BYTES, root)


def read_bytes(path: Path, root: Path | None = None) -> bytes:
    """A label file as it is. Args, raises: as `read_text`, in any encoding."""
    return files.read_bytes(path, MAX_LABEL_BYTES, root)


def is_picture(path: Path) -> bool:
    """Whether a file's name is that of a picture; names that begin with a dot are not data."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def apart(pictures: Iterable[Path]) -> tuple[list[Path], list[Path]]:
    """Pictures, and those that lie beside one of the same name that can be read, as a camera's .heic does.

    Only the first can have labels; the others are copies in a format that is not read.
    """
    own = list(pictures)
    read = {path.with_suffix("") for path in own if path.suffix.lower() in READ}
    copies = {path for path in own if path.suffix.lower() in NOT_READ and path.with_suffix("") in read}
    return [path for path in own if path not in copies], sorted(copies)


def locate(root: Path, folders: Sequence[Path], name: str) -> Path | None:
    """The file that a label names, in one of some folders inside the root; None if there is none.

    Labels are written on other machines: backslashes, `%20` and the other machine's folders in front are forgiven, as
    the longest tail of the name that is a file decides. Nothing outside the root is ever found.
    """
    plain = name.replace("\\", "/")
    for spelling in dict.fromkeys((name, plain, unquote(plain))):
        parts = [part for part in PurePosixPath(spelling).parts if part not in ("/", ".", "..")]
        for start in range(min(len(parts), MAX_DEPTH)):
            for folder in folders:
                path = folder.joinpath(*parts[start:])
                if is_file(path):
                    return inside(root, path)
    return None


def by_folded_name(pictures: Iterable[Path]) -> dict[str, Path]:
    """Pictures by `folded` name, those alone whose name no other has: disks and tools differ in case and accents."""
    found: dict[str, list[Path]] = {}
    for path in pictures:
        found.setdefault(folded(path.name), []).append(path)
    return {name: own[0] for name, own in found.items() if len(own) == 1}


def folded(name: str) -> str:
    """The last part of a name, without differences of case and of how accents are written."""
    return normalize("NFC", PurePosixPath(name.replace("\\", "/")).name).casefold()


def bounds(box: tuple[float, float, float, float], degrees: float) -> tuple[float, float, float, float]:
    """The upright box around a box that is turned about its centre; x1, y1, x2, y2."""
    x1, y1, x2, y2 = box
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    width, height = (x2 - x1) * cos + (y2 - y1) * sin, (x2 - x1) * sin + (y2 - y1) * cos
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2


def is_file(path: Path) -> bool:
    """Whether a name stands for a file. One that cannot be read does so too: reading it says why."""
    return is_there(path) and not path.is_dir()


def finite(*values: float) -> bool:
    """Whether all numbers are finite, and small enough to stay so as float32 pixels; NaN is not."""
    return all(abs(value) <= MAX_COORDINATE for value in values)


def make_sample(
    image_id: str,
    image: Path,
    boxes: Sequence[tuple[float, float, float, float]],
    labels: Sequence[int],
    size: tuple[int, int] | None,
    difficult: Sequence[bool] = (),
    crowd: Sequence[bool] = (),
    attributes: Mapping[str, NDArray[np.int64]] | None = None,
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
        attributes or {},
    )


def number(value: float) -> int | float:
    """The same number as label files spell it: an integer where it is one."""
    return int(value) if value.is_integer() else value


def one_line(text: str) -> bool:
    """Whether a name has no line break, control character or undecodable byte: then every format can hold it."""
    return not any(category(c) in ("Cc", "Cs", "Zl", "Zp") or c in "\ufffe\uffff" for c in text)


def stated_size(sample: Sample) -> tuple[int, int]:
    """(width, height) of a sample's image as its label says, else as the image file says.

    Raises:
        InputError: the label does not say and the file is missing or not an image.
    """
    return sample.size or actual_size(sample)


def actual_size(sample: Sample) -> tuple[int, int]:
    """(width, height) of a sample's image as the file says; drawn images are what their label says.

    Raises:
        InputError: the file is missing or not an image.
    """
    if sample.image is not None:
        return image_size(sample.image)
    assert sample.size is not None, "drawn images have a size"
    return sample.size


def image_name(sample: Sample) -> str:
    """The file name that a sample's image keeps in a written dataset; a drawn image becomes a PNG.

    Raises:
        InputError: no reader would find a file of this name.
    """
    name = sample.image.name if sample.image else f"{sample.image_id}.png"
    stem = Path(name).stem
    if Path(name).suffix.lower() not in SUFFIXES or stem != stem.strip() or not one_line(name):
        raise InputError(
            f"{str(sample.image)!r} is no name that every reader finds; rename it to letters and digits with one of "
            f"{' '.join(SUFFIXES)}."
        )
    return name


def same_labels(first: Sample, second: Sample) -> bool:
    """Whether two samples of one picture have the same boxes, classes and flags, in any order."""

    def rows(own: Sample) -> NDArray[np.float64]:
        found = np.column_stack([own.boxes, own.labels, own.difficult, own.crowd]).astype(np.float64)
        return found[np.lexsort(found.T)]

    return np.array_equal(rows(first), rows(second))


def reserve(taken: dict[Path, Sample], folder: Path, sample: Sample, alike: bool = True) -> Path:
    """Give a sample's image its place in a dataset that is being written.

    Args:
        taken: places given so far, and whose they are; gets the new one.
        folder: of the image, relative to the new dataset's root.
        sample: any sample; one that was here before keeps its place.
        alike: refuse an image that comes twice with different labels, for formats of one label file an image.

    Returns:
        The image's path relative to the root, without its suffix: labels are paired to images by that.

    Raises:
        InputError: another image has this name, or this image has other labels.
    """
    place = folder / Path(image_name(sample)).stem
    if taken.setdefault(place, sample).image != sample.image and _is_place(sample.image_id):
        place = folder / sample.image_id  # its own name is another image's too, and ids tell them apart
    first = taken.setdefault(place, sample)
    if first.image != sample.image:
        raise InputError(f"{first.image} and {sample.image} would both become {place}; rename one of them.")
    if alike and not same_labels(first, sample):
        raise InputError(f"{sample.image} is listed twice with different boxes; remove one of the lists.")
    return place


def file_of(place: Path, sample: Sample) -> str:
    """The file name of an image at a place that `reserve` gave."""
    return place.name + Path(image_name(sample)).suffix


def _is_place(image_id: str) -> bool:
    """Whether an image's id can be a path below a folder."""
    parts = image_id.split("/")
    return one_line(image_id) and all(part.strip() == part and part.strip(".") for part in parts)
