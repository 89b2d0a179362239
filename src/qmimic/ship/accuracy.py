"""What an int8 file detects on val: its engine rounds in its own way, so it is measured itself."""

from dataclasses import dataclass

from qmimic.data.loader import Loader
from qmimic.data.splits import VAL
from qmimic.detections import Detections
from qmimic.runtime.detector import Detector as ShippedDetector
from qmimic.scores.summary import score


@dataclass(frozen=True)
class Accuracy:
    """The score of an int8 file beside that of the detector it was made from.

    Attributes:
        images: of val.
        map50, map50_float: VOC mAP@0.5, 0..1, of the file and of the trained detector.
        trained: steps of training on the grids.
        in_float: parts that are not on a grid.
    """

    images: int
    map50: float
    map50_float: float
    trained: int
    in_float: tuple[str, ...]

    @property
    def lost(self) -> float:
        """mAP@0.5 that int8 costs, 0..1."""
        return self.map50_float - self.map50


def map50_of_file(shipped: ShippedDetector, loader: Loader) -> float:
    """VOC mAP@0.5 of a deployed file on a loader's split, 0..1."""
    return score(loader.dataset, VAL, detections_of_file(shipped, loader)).voc_map50


def detections_of_file(shipped: ShippedDetector, loader: Loader) -> dict[str, Detections]:
    """Detections of a deployed file in every image of a loader's split, by image id, as `detect_all` gives them."""
    found: dict[str, Detections] = {}
    for batch in loader.with_batch_size(shipped.batch or loader.batch_size).once():
        boxes, scores, labels = shipped.raw(batch.images.permute(0, 2, 3, 1).contiguous().numpy())
        for row, (sample, placed) in enumerate(zip(batch.samples, batch.placed, strict=True)):
            one = Detections(boxes[row], scores[row], labels[row])
            found[sample.image_id] = placed.restored(one.keep(one.scores >= 0))
    return found
