"""How good a detector is on val: by VOC's figure while it is trained, by all scores at the end, looked at once."""

from collections.abc import Mapping

from qmimic.data.splits import VAL
from qmimic.detections import Detections
from qmimic.detectors.detector import Detector
from qmimic.detectors.evaluation import detect_all
from qmimic.run.prepare import Prepared
from qmimic.scores.summary import Scores, score, voc_map50


class Validation:
    """A network's validation. Called with it in evaluation mode, it gives the network's VOC mAP@0.5 on val, 0..1.

    Training calls it last after its last step, so what it saw then is what the trained network sees.

    Args:
        prepared: the run.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._dataset, self._loader = prepared.dataset, prepared.val
        self._seen: tuple[Mapping[str, Detections], float] | None = None

    def __call__(self, detector: Detector) -> float:
        """See the class."""
        found = detect_all(detector, self._loader)
        self._seen = found, voc_map50(self._dataset, VAL, found)
        return self._seen[1]

    def map50(self, trained: Detector) -> float:
        """VOC mAP@0.5 of the network as its training left it; val is looked at only if training did not."""
        return self._seen[1] if self._seen else self(trained)  # no step was left to train: nobody called

    def scores(self, trained: Detector) -> Scores:
        """All its scores, likewise."""
        self.map50(trained)
        assert self._seen is not None
        return score(self._dataset, VAL, self._seen[0])
