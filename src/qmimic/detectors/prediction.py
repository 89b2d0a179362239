"""A detector on single pictures."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from qmimic.detections import Detections
from qmimic.detectors.detector import Detector
from qmimic.detectors.evaluation import unpad
from qmimic.detectors.files import load_detector
from qmimic.errors import InputError
from qmimic.runtime.pictures import Picture, fitted, score_limit


def predict(detector: Detector | Path | str, picture: Picture, min_score: float = 0.0) -> Detections:
    """Detections in one picture.

    Args:
        detector: in evaluation mode, or its file.
        picture: a file, a Pillow image, or an RGB array uint8 [H, W, 3].
        min_score: detections below this score are left out, 0..1.

    Returns:
        Boxes xyxy in pixels of the picture as a person sees it (EXIF rotation applied).

    Raises:
        InputError: the file is missing, truncated, too large or not an image, or the score is out of range.
    """
    least = score_limit(min_score)
    if not isinstance(detector, Detector):
        detector, _ = load_detector(detector)
    pixels, placed = fitted(picture, detector.spec.size)
    found = unpad(detector.detect(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(detector.device)), 0)
    return placed.restored(found.keep(found.scores >= least))


class TrainedFinder:
    """A trained detector behind the interface `qmimic.runtime.drawing.Finder`, which looks at files.

    Args:
        path: of its file.

    Raises:
        InputError: as `load_detector`.
    """

    def __init__(self, path: Path) -> None:
        self._detector, _ = load_detector(path)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the index is the label."""
        return self._detector.spec.classes

    def each(
        self, pictures: Iterable[Path], min_score: float = 0.0, batch: int | None = None
    ) -> Iterator[Detections | InputError]:
        """For each picture, its detections of at least a score, or what is wrong with it; one picture at a time."""
        for path in pictures:
            try:
                found: Detections | InputError = predict(self._detector, path, min_score)
            except InputError as error:
                found = error
            yield found
