"""Precision against recall, and the score threshold with the best F1."""

import numpy as np
from numpy.typing import NDArray

from qmimic.scores.matches import Matches


def precision_recall(matches: Matches, label: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Recall and precision of a class after each of its detections, best first, [D] each; empty without positives."""
    positives = int(matches.positives[label])
    hits = matches.hit[(matches.label == label) & ~matches.ignored]
    if not positives:
        return np.zeros(0), np.zeros(0)
    true = np.cumsum(hits)
    return true / positives, true / np.arange(1, len(hits) + 1)


def best_threshold(matches: Matches) -> float:
    """The score threshold that gives the best F1 over all classes together; 1 if there is no hit."""
    counted = ~matches.ignored
    found = best_cut(matches.hit[counted], matches.score[counted], int(matches.positives.sum()))
    return 1.0 if found is None else found


def best_cut(
    hits: NDArray[np.bool_], scores: NDArray[np.float64], positives: int, precision: float = 0.0, least: int = 1
) -> float | None:
    """The lowest score to keep for the best F1; None where no score has the hits and the precision.

    Args:
        hits: bool [D], which detections are right.
        scores: float64 [D], theirs, in falling order.
        positives: what there is to find.
        precision: that those which are kept need at least, 0..1.
        least: hits that they need, 1 or more.
    """
    true, kept = np.cumsum(hits), np.arange(1, len(hits) + 1)
    last_of_score = np.append(scores[1:] != scores[:-1], True)[
        : len(scores)
    ]  # a threshold keeps all detections of equal score
    fit = last_of_score & (true >= precision * kept) & (true >= least)
    return float(scores[np.argmax(np.where(fit, 2 * true / (kept + positives), -1))]) if fit.any() else None
