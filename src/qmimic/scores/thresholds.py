"""The score at which a detector's boxes count as objects, chosen for each class on pictures with labels."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmimic.scores.curves import best_cut
from qmimic.scores.matches import Matches

LEAST_BOXES = 20  # labelled boxes of a class that has a threshold of its own
MOST_HITS = 5  # that a threshold needs, so that it does not rest on a detection or two; a quarter of few boxes
LEAST_PRECISION = 0.5  # of what is taken: labels that are more often wrong than right teach the wrong thing


@dataclass(frozen=True)
class Threshold:
    """Of a class.

    Attributes:
        score: the lowest score that is taken; None if no detection is taken.
        doubt: the lowest score of a detection that may still be an object.
        own: chosen by the boxes of this class alone; else by those of all classes together.
        boxes: labelled boxes of the class that are to be found.
        precision, recall: of the detections that are taken, 0..1; None where nothing can be counted.
    """

    score: float | None
    doubt: float
    own: bool
    boxes: int
    precision: float | None
    recall: float | None


def thresholds(matches: Matches, doubt: float) -> tuple[Threshold, ...]:
    """The threshold with the best F1 for each class, among those at which at least half of the detections are right.

    Five of them must be right, or a quarter of the boxes where these are fewer than 20. Classes with fewer than
    `LEAST_BOXES` boxes share one threshold of all classes together, but for one whose own detections above it are
    mostly wrong: it has none, for what is known of it speaks against it.

    Args:
        matches: of a split whose truth is known.
        doubt: share of the threshold, 0..1, at which a detection may be an object; where none is taken, of the
            threshold with the best F1.
    """

    def cut(which: NDArray[np.bool_], positives: int, least: float) -> float | None:
        hits = max(1, min(MOST_HITS, positives // 4))
        return best_cut(matches.hit[which], matches.score[which], positives, least, hits)

    counted = ~matches.ignored
    found = []
    for label in range(matches.classes):
        boxes = int(matches.positives[label])
        own = boxes >= LEAST_BOXES
        mine = counted & (matches.label == label)
        which, positives = (mine, boxes) if own else (counted, int(matches.positives.sum()))
        score = cut(which, positives, LEAST_PRECISION)
        usual = score or cut(which, positives, 0.0) or 1.0
        taken = mine & (matches.score >= (np.inf if score is None else score))
        hits, count = int(matches.hit[taken].sum()), int(taken.sum())
        if not own and hits < LEAST_PRECISION * count:  # not the others' fault: confused classes
            score, hits, count = None, 0, 0
        precision, recall = hits / count if count else None, hits / boxes if boxes else None
        found.append(Threshold(score, doubt * usual, own, boxes, precision, recall))
    return tuple(found)
