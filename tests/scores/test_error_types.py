"""Kinds of errors: cases worked out by hand, and properties that hold whatever a detector says."""

import pytest
from hypothesis import given, settings
from score_cases import CLASSES, Case, cases, detections, sample

from qmimic.scores.curves import best_threshold, precision_recall
from qmimic.scores.error_types import FALSE_KINDS, KINDS, Errors, confusion, corrected_map, costs, find_errors
from qmimic.scores.matches import match
from qmimic.scores.voc import voc_ap

BOX = (0.0, 0.0, 10.0, 10.0)
FAR = (50.0, 50.0, 60.0, 60.0)
HALF_OFF = (5.0, 0.0, 15.0, 10.0)  # IoU 1/3 with BOX


def errors_of(truth: list[tuple[tuple[float, ...], int]], found: list[tuple[tuple[float, ...], float, int]]) -> Errors:
    samples = [sample("a", [box for box, _ in truth], [label for _, label in truth])]
    return find_errors(match(samples, {"a": detections(found)}, len(CLASSES)))


@pytest.mark.parametrize(
    ("found", "kind"),
    [
        ((HALF_OFF, 0.5, 0), "localisation"),
        ((BOX, 0.5, 1), "classification"),
        ((HALF_OFF, 0.5, 1), "both"),
        ((FAR, 0.5, 0), "background"),
        (((9.0, 0.0, 19.0, 10.0), 0.5, 0), "background"),  # IoU 1/19
    ],
)
def test_a_false_detection_is_of_one_kind(found: tuple[tuple[float, ...], float, int], kind: str) -> None:
    errors = errors_of([(BOX, 0)], [found])
    missed = 0 if kind in ("localisation", "classification") else 1
    assert errors.counts == {**dict.fromkeys(KINDS, 0), kind: 1, "missed": missed}


def test_a_second_detection_of_a_box_is_a_duplicate() -> None:
    errors = errors_of([(BOX, 0)], [(BOX, 0.9, 0), (BOX, 0.8, 0)])
    assert errors.counts == {**dict.fromkeys(KINDS, 0), "duplicate": 1}
    assert errors.found.tolist() == [True]


def test_an_image_without_labels_has_background_alone() -> None:
    assert errors_of([], [(BOX, 0.9, 0)]).counts["background"] == 1
    assert costs(errors_of([], [(BOX, 0.9, 0)])) == dict.fromkeys(KINDS, 0.0)


def test_what_a_kind_costs() -> None:
    # Two boxes of one class: one is found after a false detection on the background, one is not found at all.
    errors = errors_of([(BOX, 0), ((20.0, 0.0, 30.0, 10.0), 0)], [(FAR, 0.9, 0), (BOX, 0.8, 0)])
    assert corrected_map(errors, ()) == pytest.approx(1 / 4)  # recall 1/2 at precision 1/2
    assert costs(errors) == pytest.approx(
        {**dict.fromkeys(KINDS, 0.0), "background": 1 / 2 - 1 / 4, "missed": 1 / 2 - 1 / 4}
    )


def test_a_corrected_class_is_a_hit_of_the_right_class_and_no_false_one_of_the_wrong() -> None:
    # The cat is called a dog before the dog is found.
    errors = errors_of([(BOX, 0), (FAR, 1)], [(BOX, 0.9, 1), (FAR, 0.8, 1)])
    assert corrected_map(errors, ()) == pytest.approx((0 + 1 / 2) / 2)
    assert corrected_map(errors, ("classification",)) == 1
    assert confusion(errors).tolist() == [[0, 1, 0], [0, 1, 0], [0, 0, 0]]


def test_of_two_corrected_boxes_the_better_stays() -> None:
    errors = errors_of([(BOX, 0)], [(HALF_OFF, 0.9, 0), (HALF_OFF, 0.8, 0)])
    assert errors.counts["localisation"] == 2
    assert corrected_map(errors, ("localisation",)) == 1


def test_a_correction_of_a_box_that_was_found_is_only_removed() -> None:
    errors = errors_of([(BOX, 0)], [(HALF_OFF, 0.9, 0), (BOX, 0.8, 0)])
    assert corrected_map(errors, ()) == pytest.approx(1 / 2)
    assert corrected_map(errors, ("localisation",)) == 1


def test_difficult_boxes_are_not_missed_and_explain_nothing() -> None:
    samples = [sample("a", [BOX], [0], difficult=[True])]
    errors = find_errors(match(samples, {"a": detections([(BOX, 0.9, 1), (BOX, 0.9, 0)])}, len(CLASSES)))
    assert errors.counts == {**dict.fromkeys(KINDS, 0), "background": 1}


@settings(max_examples=150, deadline=None)
@given(cases())
def test_everything_is_counted_once_and_mending_all_leaves_nothing_wrong(case: Case) -> None:
    samples, found = case
    matches = match(samples, found, len(CLASSES))
    errors = find_errors(matches)
    counts = errors.counts
    false = sum(counts[name] for name in FALSE_KINDS)
    assert false + int(matches.hit.sum()) + int(matches.ignored.sum()) == len(matches.score)
    named = {int(row) for row, kind in zip(errors.blamed, errors.kind, strict=True) if kind in (0, 1)}
    pointed = sum(1 for row in named if not errors.found[row])
    assert int(errors.found.sum()) + counts["missed"] + pointed == int(matches.positives.sum())
    if matches.positives.sum():
        before = voc_ap(samples, found, CLASSES).map_area
        assert corrected_map(errors, ()) == pytest.approx(before)
        assert corrected_map(errors, KINDS) == pytest.approx(1)
        assert min(costs(errors).values()) > -1e-9


def test_the_threshold_is_that_of_the_best_f1() -> None:
    samples = [sample("a", [BOX, (20.0, 0.0, 30.0, 10.0)], [0, 0])]
    found = [(BOX, 0.9, 0), ((20.0, 0.0, 30.0, 10.0), 0.5, 0), (FAR, 0.4, 0)]
    matches = match(samples, {"a": detections(found)}, 1)
    assert best_threshold(matches) == pytest.approx(0.5)
    recall, precision = precision_recall(matches, 0)
    assert recall.tolist() == [0.5, 1, 1]
    assert precision == pytest.approx([1, 1, 2 / 3])
    assert best_threshold(match(samples, {}, 1)) == 1


def test_detections_of_one_score_are_kept_together() -> None:
    # Without the five false ones of equal score the second box would be worth having.
    samples = [sample("a", [BOX, (20.0, 0.0, 30.0, 10.0)], [0, 0])]
    found = [(BOX, 0.9, 0), ((20.0, 0.0, 30.0, 10.0), 0.5, 0), *[(FAR, 0.5, 0)] * 5]
    assert best_threshold(match(samples, {"a": detections(found)}, 1)) == pytest.approx(0.9)
