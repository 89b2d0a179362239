"""From which score on boxes are taken: against every threshold tried one by one."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folders import sample_of
from qmimic.detections import Detections
from qmimic.scores import thresholds as module
from qmimic.scores.curves import best_cut
from qmimic.scores.matches import match
from qmimic.scores.thresholds import thresholds


def by_hand(rows: list[tuple[float, bool]], positives: int, precision: float, least: int) -> float | None:
    """The lowest score of the best F1, of those with the precision and the hits."""
    best: tuple[float, float] | None = None
    for cut in {score for score, _ in rows}:
        kept = [hit for score, hit in rows if score >= cut]
        hits = sum(kept)
        if hits >= least and hits >= precision * len(kept):
            own = 2 * hits / (len(kept) + positives)
            if best is None or own > best[0] + 1e-12 or (abs(own - best[0]) <= 1e-12 and cut > best[1]):
                best = own, cut
    return best[1] if best else None


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.3, 0.5, 0.8]), st.booleans()), max_size=12), st.integers(0, 5))
def test_the_best_cut_is_the_best_of_all(rows: list[tuple[float, bool]], more: int) -> None:
    rows = sorted(rows, key=lambda row: -row[0])
    hits, scores = np.array([hit for _, hit in rows], bool), np.array([score for score, _ in rows], float)
    positives = int(hits.sum()) + more
    for precision, least in ((0.0, 1), (0.5, 1), (0.5, 3)):
        assert best_cut(hits, scores, positives, precision, least) == by_hand(rows, positives, precision, least)


def detections(*rows: tuple[float, float, int]) -> Detections:
    """Of x, score and label; boxes are ten pixels wide."""
    boxes = np.array([[x, 0, x + 10, 10] for x, _, _ in rows], np.float32).reshape(-1, 4)
    return Detections(
        boxes, np.array([row[1] for row in rows], np.float32), np.array([row[2] for row in rows], np.int64)
    )


def test_classes_with_enough_boxes_choose_for_themselves_and_the_others_together(tmp_path: Path) -> None:
    count = module.LEAST_BOXES
    samples, found = [], {}
    for number in range(count):
        sample = sample_of(
            tmp_path / f"{number}.png",
            [(0, 0, 10, 10), *([(40, 0, 50, 10)] if number < 2 else [])],
            [0, 1][: 1 + (number < 2)],
        )
        samples.append(sample)
        rows = [(0.0, 0.5, 0), (80.0, 0.125, 0)]
        rows += [(40.0, 0.75, 1)] if number < 2 else []
        found[sample.image_id] = detections(*rows, (80.0, 0.25, 2))
    first, second, third = thresholds(match(samples, found, 3), 0.5)
    assert (first.score, first.own, first.boxes, first.precision, first.recall) == (0.5, True, count, 1, 1)
    assert first.doubt == 0.25
    assert (second.score, second.own, second.boxes, second.precision, second.recall) == (0.5, False, 2, 1, 1)
    # What has no box there goes by the others' threshold; what is mostly wrong is not taken.
    assert (third.score, third.own, third.precision, third.recall) == (0.5, False, None, None)


def test_a_class_that_is_mostly_wrong_is_not_taken_and_its_boxes_are_in_doubt(tmp_path: Path) -> None:
    samples = [sample_of(tmp_path / f"{number}.png", [(0, 0, 10, 10)], [0]) for number in range(module.LEAST_BOXES)]
    wrong = [(float(20 * k), 0.5, 0) for k in range(1, 4)]
    found = {sample.image_id: detections(*wrong, (0.0, 0.375, 0)) for sample in samples}
    (own,) = thresholds(match(samples, found, 1), 0.5)
    assert (own.score, own.precision, own.doubt) == (None, None, 0.1875)
    (none,) = thresholds(match(samples, {}, 1), 0.5)
    assert (none.score, none.doubt, none.recall) == (None, 0.5, 0)


def test_a_threshold_does_not_rest_on_a_detection_or_two(tmp_path: Path) -> None:
    """Of 20 boxes two are found, surely; all that is below is wrong. So the class is not taken."""
    samples = [sample_of(tmp_path / f"{number}.png", [(0, 0, 10, 10)], [0]) for number in range(module.LEAST_BOXES)]
    wrong = [(float(20 * k), 0.5, 0) for k in range(1, 4)]
    for sure, score in ((2, None), (module.MOST_HITS, 0.75)):
        found = {
            sample.image_id: detections(*([(0.0, 0.75, 0)] if number < sure else []), *wrong)
            for number, sample in enumerate(samples)
        }
        (own,) = thresholds(match(samples, found, 1), 0.5)
        assert own.score == score


@pytest.mark.parametrize("pictures", [1, 3, 10])
def test_a_class_of_few_boxes_that_is_confused_with_another_is_not_taught(tmp_path: Path, pictures: int) -> None:
    """Classes 1 and 2 are taken for each other; class 0 alone would carry the threshold that all share."""
    samples, found = [], {}
    for place in range(pictures):
        path = tmp_path / f"{place}.png"
        corners = [(0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10), (60, 0, 70, 10)]
        samples.append(sample_of(path, corners, [0, 0, 1, 2]))
        found[samples[-1].image_id] = detections((0, 0.9, 0), (20, 0.9, 0), (40, 0.9, 2), (60, 0.9, 1))
    chosen = thresholds(match(samples, found, 3), 0.5)
    assert [one.boxes for one in chosen] == [2 * pictures, pictures, pictures]
    assert chosen[0].score is not None
    assert [one.score for one in chosen[1:]] == [None, None]
