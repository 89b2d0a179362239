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
    hits, scores = matches.hit[counted], matches.score[counted]
    if not hits.any():
        return 1.0
    f1 = 2 * np.cumsum(hits) / (np.arange(1, len(hits) + 1) + matches.positives.sum())
    last_of_score = np.append(scores[1:] != scores[:-1], True)  # a threshold keeps all detections of equal score
    return float(scores[np.argmax(np.where(last_of_score, f1, -1))])
