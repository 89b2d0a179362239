"""What every reader returns: an image's labels, and the dataset that holds them. Plain data."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qmimic.data.images import read_image
from qmimic.data.letterbox import Letterbox, letterbox, letterbox_file
from qmimic.errors import InputError

if TYPE_CHECKING:
    from qmimic.data.accounts import Accounts


@dataclass(frozen=True)
class Sample:
    """One image and its labels.

    Attributes:
        image_id: name of the image inside its dataset, without a suffix (`2007_000032`); unique in the dataset.
        image: the file with the pixels; None in embedded data, see `Dataset.render`.
        boxes: float32 [M, 4], xyxy, 0-based, absolute pixels of the image as a person sees it (EXIF applied);
            exactly as labelled, not clipped, nor cleaned.
        labels: int64 [M], indices into `Dataset.classes`.
        difficult: bool [M], VOC's flag; detections on these boxes count for nothing.
        crowd: bool [M], COCO's flag; such boxes are never trained on.
        size: (width, height) in pixels as the label states it, None if it does not.
        attributes: int64 [M] each, what a format knows of its boxes besides, such as WIDER FACE's "blur"; empty if
            nothing. They are counted by `data check` and not trained on.
        pixels: a number that images of equal pixels share (`images.look`), 0 where nobody looked.
    """

    image_id: str
    image: Path | None
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    size: tuple[int, int] | None = None
    attributes: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    pixels: int = 0

    @property
    def ignored(self) -> NDArray[np.bool_]:
        """bool [M], difficult boxes and crowds: they are not learnt, and detections on them count for nothing."""
        ignored: NDArray[np.bool_] = self.difficult | self.crowd
        return ignored


def has_area(boxes: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which labelled boxes [M, 4] (xyxy, pixels) are boxes at all, bool [M]; the others are defects.

    People who click once leave xmin = xmax in a VOC file. Read inclusively that is one pixel, hence the limit of one
    pixel: a box has area if it is wider and higher than that (VOC: xmax > xmin and ymax > ymin).
    """
    width, height = (boxes[:, 2:].astype(np.float64) - boxes[:, :2]).T
    positive: NDArray[np.bool_] = (width > 1) & (height > 1)
    return positive


def leaves(boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Which boxes [M, 4] (xyxy, pixels) reach out of an image of `size` (width, height), bool [M]; they are defects.

    A pixel is forgiven, and such boxes are clipped: YOLO's shares of the image are rounded to a few digits, and tools
    differ in whether they count from 0 or 1.
    """
    x1, y1, x2, y2 = boxes.T
    outside: NDArray[np.bool_] = (x1 < -1) | (y1 < -1) | (x2 > size[0] + 1) | (y2 > size[1] + 1)
    return outside


# Kinds of defects that are worth knowing and stop nothing; all others stop training as they fail `data check`.
NOTES = (
    *("image_without_label", "empty_class", "turned_by_exif", "missing_test", "counted_from_zero", "duplicate_box"),
    *("another_layout", "unused_label_file", "nearly_constant_image", "split_stands_in"),
    *("linked_folder", "same_image_other_labels"),
    *("allowed_crowd", "similar_classes"),
)


@dataclass(frozen=True)
class LabelDefect:
    """Something wrong with a label that a reader met and could pass over.

    Attributes:
        kind: one of the kinds in `qmimic.data.check`.
        file: the file at fault, relative to the dataset's root.
        detail: one sentence for a person.
    """

    kind: str
    file: str
    detail: str


@dataclass(frozen=True)
class Dataset:
    """A labelled set of images, read but not decoded.

    Attributes:
        name: how reports call it.
        root: its folder, None for embedded data.
        classes: class names; the index is the label.
        splits: split name ("train", "val", ...) to its samples.
        defects: what the reader passed over.
        checked: every image and box is known to be good, see `qmimic.data.formats.usable`.
        render: draws a sample's image, for embedded data; None where the images are files.
        accounted: what became of everything in its folder; None for embedded data.

    Raises:
        InputError: two classes have one name.
    """

    name: str
    root: Path | None
    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[Sample]]
    defects: tuple[LabelDefect, ...] = ()
    checked: bool = False
    render: Callable[[Sample], Image.Image] | None = None
    accounted: "Accounts | None" = None

    def __post_init__(self) -> None:
        twice = [name for place, name in enumerate(self.classes) if name in self.classes[:place]]
        if twice:
            raise InputError(f"{self.name} has two classes called {twice[0]!r}; give each its own name, or join them.")

    @property
    def unions(self) -> frozenset[str]:
        """Splits that hold nothing but what smaller ones hold together, such as VOC's trainval beside train and val.

        Their images are no duplicates, and whoever goes through all the other splits has seen every image.
        """
        members = {split: {s.image or s.image_id for s in samples} for split, samples in self.splits.items()}
        found = set()
        for split, own in members.items():
            parts = [other for other in members.values() if other < own]
            if own and own == set().union(*parts):
                found.add(split)
        return frozenset(found)

    def load(self, sample: Sample) -> Image.Image:
        """The sample's pixels as an RGB picture.

        Raises:
            InputError: the image is missing, truncated, too large or not an image.
        """
        if self.render is not None:
            return self.render(sample)
        assert sample.image is not None, "a dataset without files draws its images"
        return read_image(sample.image, self.root)

    def fitted(self, sample: Sample, size: tuple[int, int]) -> tuple[NDArray[np.uint8], Letterbox]:
        """The sample's pixels as the network takes them, uint8 [H, W, 3], and how the picture lies in them.

        Args:
            sample: of this dataset.
            size: height and width of the network's input, pixels.

        Raises:
            InputError: as `load`.
        """
        if self.render is not None:
            return letterbox(self.render(sample), size)
        assert sample.image is not None, "a dataset without files draws its images"
        return letterbox_file(sample.image, size, self.root)
