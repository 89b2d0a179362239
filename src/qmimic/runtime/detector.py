"""A deployed detector on pictures: the same pixels in and boxes out as where it was trained."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qmimic.data.images import upright
from qmimic.data.letterbox import Letterbox, letterbox, letterbox_file
from qmimic.detections import Detections
from qmimic.errors import InputError
from qmimic.runtime.engine import load
from qmimic.runtime.metadata import INPUT, OUTPUTS, REGIONS, Metadata, from_properties
from qmimic.runtime.suppression import detect

Picture = Image.Image | Path | str | NDArray[np.uint8]


class Detector:
    """A file that `qmimic export` wrote.

    Args:
        path: of the file, `.onnx`, OpenVINO's `.xml` or ExecuTorch's `.pte`.
        threads: that one picture is computed on.

    Attributes:
        metadata: what the file says of itself.
        batch: pictures that the graph takes at once; None: any number.

    Raises:
        InputError: there is no such file, it is not qmimic's, its description was edited, or the installed engine
            cannot run it.
    """

    metadata: Metadata

    def __init__(self, path: Path | str, threads: int = 1) -> None:
        path = Path(path)
        self._engine = load(path, threads)
        self.metadata = from_properties(self._engine.properties, path)
        inputs = self._engine.inputs
        if list(inputs) != [INPUT] or inputs[INPUT].shape[1:] != (*self.metadata.size, 3):
            raise InputError(f"The graph in {path} does not fit its description; export the detector again.")
        self.batch = inputs[INPUT].shape[0]

    def __call__(self, picture: Picture, min_score: float = 0.0) -> Detections:
        """Detections in one picture; see `many`."""
        return next(self.many([picture], min_score))

    def many(self, pictures: Sequence[Picture], min_score: float = 0.0, batch: int = 1) -> Iterator[Detections]:
        """Detections in pictures, in their order.

        Args:
            pictures: files, Pillow images, or RGB arrays uint8 [H, W, 3].
            min_score: detections below this score are left out.
            batch: pictures computed at once, if the file takes any number.

        Yields:
            Boxes xyxy in pixels of the picture as a person sees it (EXIF rotation applied).

        Raises:
            InputError: a file is missing, truncated, too large or not an image; an array is of another shape or type.
        """
        count = self.batch or batch
        for first in range(0, len(pictures), count):
            fitted = [self._fitted(picture) for picture in pictures[first : first + count]]
            boxes, scores, labels = self.raw(np.stack([image for image, _ in fitted]))
            for row, (_, placed) in enumerate(fitted):
                found = Detections(boxes[row], scores[row], labels[row])
                yield placed.restored(found.keep(found.scores >= max(min_score, 0.0)))

    def raw(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """What the graph gives.

        Args:
            images: uint8 [N, H, W, 3], RGB, fitted into the input; N is at most the graph's batch, if that is fixed.

        Returns:
            Boxes [N, D, 4], xyxy in pixels of the input; scores [N, D], below 0 where an image has fewer than D;
            classes [N, D].
        """
        count = len(images)
        if self.batch:  # a graph of fixed batch takes no fewer
            images = np.concatenate([images, np.repeat(images[:1], self.batch - count, 0)])
        found = self._engine.run({INPUT: images})
        if REGIONS[0] in found:  # suppression is left to us
            pairs = zip(*(found[name] for name in REGIONS), strict=True)
            each = [detect(scores, boxes, self.metadata) for boxes, scores in pairs]
            boxes, scores, labels = (np.stack(values) for values in zip(*each, strict=True))
        else:
            boxes, scores, labels = (found[name] for name in OUTPUTS)
        return boxes[:count], scores[:count], labels[:count]

    def _fitted(self, picture: Picture) -> tuple[NDArray[np.uint8], Letterbox]:
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[2] != 3 or 0 in picture.shape:
                raise InputError(
                    f"A picture as an array is uint8 [height, width, 3], RGB; this one is {picture.dtype} "
                    f"{list(picture.shape)}."
                )
            picture = Image.fromarray(picture)
        if isinstance(picture, Image.Image):
            return letterbox(upright(picture), self.metadata.size)
        return letterbox_file(Path(picture), self.metadata.size)
