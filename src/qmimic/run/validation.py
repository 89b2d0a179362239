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
        self._prepared = prepared
        self._seen: Mapping[str, Detections] | None = None

    def __call__(self, detector: Detector) -> float:
        """See the class."""
        self._seen = detect_all(detector, self._prepared.val)
        return voc_map50(self._prepared.dataset, VAL, self._seen)

    def scores(self, trained: Detector) -> Scores:
        """All scores of the network as its training left it; it looks at val only if training did not."""
        if self._seen is None:  # no step was trained, or none since the last checkpoint
            self._seen = detect_all(trained, self._prepared.val)
        return score(self._prepared.dataset, VAL, self._seen)
