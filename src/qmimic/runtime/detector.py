"""A deployed detector on pictures: the same pixels in and boxes out as where it was trained."""

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
    """A file's graph or weights are not those that its proof was of."""


class Detector:
    """A deployed file that finds objects in pictures. (The networks of training are `qmimic.detectors`'.)

    Threads may share one. Copies, and those that were pickled and sent to another process, load the file again.

    Args:
        path: of a file of one of the formats (`qmimic.runtime.formats.FORMATS`), or `zoo:NAME`.
        threads: that one picture is computed on.

    Attributes:
        engine: that runs the file.
        metadata: what the file says of itself. Of a file that was changed since it was proved, `metadata.changed` is
            true, and a `ChangedFileWarning` is given.
        batch: pictures that the graph takes at once; None: any number.

    Raises:
        InputError: there is no such file, it is not qmimic's, its description was edited, or the installed engine
            cannot run it.
    """

    metadata: Metadata

    def __init__(self, path: Path | str, threads: int = 1) -> None:
        if not isinstance(path, str | os.PathLike):
            raise InputError(f"A detector is named by the path of its file, not by {type(path).__name__}.")
        path = located(path, DEPLOYED)
        self.engine = Engine(path, threads)
        properties = self.engine.properties
        inputs = self.engine.inputs
        if KEY not in properties:
            takes = ", ".join(f"{name} {one}" for name, one in inputs.items())
            raise InputError(
                f"{path} is not a detector of qmimic, but another model, which takes {takes}; name a file that "
                "`qmimic export` wrote."
            )
        checksum = format_of(path).checksum(path) if GRAPH_SUM in properties else ""
        self.metadata = from_properties(properties, path, checksum)
        if self.metadata.changed:
            warnings.warn(
                f"{path} was changed since it was proved: it may not detect as the trained model does; export the "
                "detector again, or measure it by `qmimic eval`.",
                ChangedFileWarning,
                stacklevel=2,
            )
        if list(inputs) != [INPUT] or inputs[INPUT].shape[1:] != (*self.metadata.size, 3):
            raise InputError(f"The graph in {path} does not fit its description; export the detector again.")
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
            pictures: files, Pillow images, or RGB arrays uint8 [H, W, 3]; a generator of them will do.
            min_score: detections below this score are left out, 0..1.
            batch: pictures computed at once, if the file takes any number; None: as many as the file takes, or one.

        Yields:
            Boxes xyxy in pixels of the picture as a person sees it (EXIF rotation applied).

        Raises:
            InputError: a file is missing, truncated, too large or not an image; an array is of another shape or type;
                the score or the batch cannot be.
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
        """As `many`, but what is wrong with a picture is given in its place, and the others follow."""
        least = score_limit(min_score)
        if batch is not None and (
            not isinstance(batch, int | np.integer) or batch < 1 or self.batch not in (None, batch)
        ):
            takes = f"{self.batch} at once" if self.batch else "1 or more at once"
            raise InputError(f"batch={batch!r} cannot be: {self.engine.path.name} takes {takes} (`export --batch`).")
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
        found = self.engine.run({INPUT: images})
        if REGIONS[0] in found:  # suppression is left to us
            pairs = zip(*(found[name] for name in REGIONS), strict=True)
            each = [detect(scores, boxes, self.metadata) for boxes, scores in pairs]
            boxes, scores, labels = (np.stack(values) for values in zip(*each, strict=True))
        else:
            boxes, scores, labels = (found[name] for name in OUTPUTS)
        return boxes[:count], scores[:count], labels[:count]
