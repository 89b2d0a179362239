"""A deployed detector on pictures: pixels in and boxes out exactly as in training."""

import os
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmimic.data.letterbox import Letterbox
from qmimic.detections import Detections
from qmimic.errors import InputError, Notice
from qmimic.runtime.engine import Engine
from qmimic.runtime.formats import format_of
from qmimic.runtime.metadata import GRAPH_SUM, INPUT, KEY, OUTPUTS, REGIONS, Metadata, from_properties
from qmimic.runtime.pictures import Picture, fitted, is_one, score_limit
from qmimic.runtime.suppression import detect
from qmimic.zoo import DEPLOYED, located


class ChangedFileWarning(Notice):
    """A file's graph or weights are not those that were proved."""


class Detector:
    """A deployed file that finds objects in pictures. (For training there is `qmimic.detectors.detector.Detector`.)

    Threads may share a detector. A copy, or one that was pickled and sent to another process, loads the file again.

    Args:
        path: of a file of one of the formats (`qmimic.runtime.formats.FORMATS`), or `zoo:NAME`.
        threads: on which one picture is computed.

    Attributes:
        engine: that runs the file.
        metadata: the file's description. If the file was changed since it was proved, `metadata.changed` is true,
            and a `ChangedFileWarning` is issued.
        batch: pictures that the graph takes at once; None: any number.

    Raises:
        InputError: there is no such file, qmimic did not write it, its description was edited, or the installed engine
            cannot run it.
    """

    metadata: Metadata

    def __init__(self, path: Path | str, threads: int = 1) -> None:
        if not isinstance(path, str | os.PathLike):
            raise InputError(
                f"A detector is named by the path of its file, not by a {type(path).__name__}; pass a str or Path."
            )
        path = located(path, DEPLOYED)
        self.engine = Engine(path, threads)
        properties = self.engine.properties
        inputs = self.engine.inputs
        if KEY not in properties:
            takes = ", ".join(f"{name} {one}" for name, one in inputs.items())
            raise InputError(
                f"{path} is not a qmimic detector but another model, which takes {takes}; name a file that "
                "`qmimic export` wrote."
            )
        checksum = format_of(path).checksum(path) if GRAPH_SUM in properties else ""
        self.metadata = from_properties(properties, path, checksum)
        if self.metadata.changed:
            warnings.warn(
                f"{path} was changed since it was proved, and may not detect what the trained model does; export the "
                "detector again, or measure it with `qmimic eval`.",
                ChangedFileWarning,
                stacklevel=2,
            )
        if list(inputs) != [INPUT] or inputs[INPUT].shape[1:] != (*self.metadata.size, 3):
            raise InputError(f"The graph in {path} does not match its description; export the detector again.")
        self.batch = inputs[INPUT].shape[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the index is the label."""
        return self.metadata.classes

    def __call__(self, picture: Picture, min_score: float = 0.0) -> Detections:
        """Detections in one picture; see `many`."""
        return next(self.many([picture], min_score))

    def many(
        self, pictures: Iterable[Picture], min_score: float = 0.0, batch: int | None = None
    ) -> Iterator[Detections]:
        """Detections in pictures, in their order.

        Args:
            pictures: files, Pillow images, or RGB arrays uint8 [H, W, 3]; or a generator of them.
            min_score: detections below this score are left out, 0..1.
            batch: pictures computed at once, if the file takes any number; None: as many as the file takes, or one.

        Yields:
            Detections of each picture, boxes xyxy in pixels of the picture as displayed (EXIF rotation applied).

        Raises:
            InputError: a file is missing, truncated, too large or not an image; an array has another shape or type; or
                the score or the batch is out of range.
        """
        if is_one(pictures):
            raise InputError("many() takes several pictures; call the detector itself with one.")
        if not isinstance(pictures, Iterable):
            raise InputError(f"many() takes a list or generator of pictures, not {type(pictures).__name__}.")
        for found in self.each(pictures, min_score, batch):
            if isinstance(found, InputError):
                raise found
            yield found

    def each(
        self, pictures: Iterable[Picture], min_score: float = 0.0, batch: int | None = None
    ) -> Iterator[Detections | InputError]:
        """As `many`, but a picture that cannot be read yields its error, and the others follow."""
        least = score_limit(min_score)
        if batch is not None and (
            not isinstance(batch, int | np.integer) or batch < 1 or self.batch not in (None, batch)
        ):
            takes = f"{self.batch} at once" if self.batch else "1 or more at once"
            raise InputError(
                f"batch={batch!r} is not possible: {self.engine.path.name} takes {takes} (see `export --batch`)."
            )
        rest = iter(pictures)
        while part := list(islice(rest, self.batch or batch or 1)):
            yield from self._of(part, least)

    def _of(self, pictures: list[Picture], min_score: float) -> list[Detections | InputError]:
        results: dict[int, Detections | InputError] = {}
        inputs: dict[int, tuple[NDArray[np.uint8], Letterbox]] = {}
        for place, picture in enumerate(pictures):
            try:
                inputs[place] = fitted(picture, self.metadata.size)
            except InputError as error:
                results[place] = error
        if inputs:
            rows = zip(*self.raw(np.stack([pixels for pixels, _ in inputs.values()])), strict=True)
            for (place, (_, placed)), (boxes, scores, labels) in zip(inputs.items(), rows, strict=True):
                results[place] = placed.restored(Detections(boxes, scores, labels).keep(scores >= min_score))
        return [results[place] for place in range(len(pictures))]

    def raw(self, images: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]]:
        """The graph's own outputs.

        Args:
            images: uint8 [N, H, W, 3], RGB, of the input's size; N is at most the graph's batch, if that is fixed.

        Returns:
            Boxes [N, D, 4], xyxy in pixels of the input; scores [N, D], below 0 where an image has fewer than D;
            classes [N, D].
        """
        count = len(images)
        if self.batch:  # a graph with a fixed batch does not take fewer
            images = np.concatenate([images, np.repeat(images[:1], self.batch - count, 0)])
        found = self.engine.run({INPUT: images})
        if REGIONS[0] in found:  # suppression is left to the runtime
            pairs = zip(*(found[name] for name in REGIONS), strict=True)
            each = [detect(scores, boxes, self.metadata) for boxes, scores in pairs]
            boxes, scores, labels = (np.stack(values) for values in zip(*each, strict=True))
        else:
            boxes, scores, labels = (found[name] for name in OUTPUTS)
        return boxes[:count], scores[:count], labels[:count]
