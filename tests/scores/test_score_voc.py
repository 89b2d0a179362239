"""VOC scores against the devkit's rules in plain loops, and against cases worked out by hand."""

import math
from dataclasses import astuple

import devkit
import numpy as np
import pytest
from hypothesis import given, settings
from score_cases import CLASSES, Case, cases, detections, jittered, sample

from qmimic.data.sample import Dataset
from qmimic.scores import matches
from qmimic.scores.voc import voc_ap


def as_devkit(case: Case) -> list[devkit.Image]:
    """The same images as VOC would hold them; labels without area are no objects."""
    samples, found = case
    images = []
    for one in samples:
        image = devkit.Image()
        flags = (one.difficult | one.crowd).tolist()
        for box, label, ignored in zip(one.boxes.tolist(), one.labels.tolist(), flags, strict=True):
            corners = [box[0] + 1, box[1] + 1, box[2], box[3]]
            if corners[2] > corners[0] and corners[3] > corners[1]:
                image.things.setdefault(CLASSES[label], []).append(devkit.Thing(corners, ignored))
        if one.image_id in found:
            own = found[one.image_id]
            for box, score, label in zip(own.boxes.tolist(), own.scores.tolist(), own.labels.tolist(), strict=True):
                image.detections.append((CLASSES[label], score, [box[0] + 1, box[1] + 1, box[2], box[3]]))
        images.append(image)
    return images


def assert_as_devkit(case: Case, iou: float = 0.5) -> None:
    images = as_devkit(case)
    scores = voc_ap(*case, CLASSES, iou)
    wanted = [devkit.evaluate(images, name, iou) for name in CLASSES]
    for name, (ap07, ap, positives) in zip(CLASSES, wanted, strict=True):
        own = scores.per_class[name]
        assert own.positives == positives
        assert own.ap07 == pytest.approx(ap07, abs=1e-12, nan_ok=True)
        assert own.ap == pytest.approx(ap, abs=1e-12, nan_ok=True)
    counted = [row for row in wanted if row[2]]
    if counted:
        assert scores.map07 == pytest.approx(sum(row[0] for row in counted) / len(counted))
        assert scores.map_area == pytest.approx(sum(row[1] for row in counted) / len(counted))
    else:
        assert math.isnan(scores.map07)
        assert math.isnan(scores.map_area)


@settings(max_examples=100, deadline=None)
@given(cases())
def test_random_cases_score_as_the_devkit(case: Case) -> None:
    assert_as_devkit(case)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_another_threshold_scores_as_the_devkit(case: Case) -> None:
    assert_as_devkit(case, iou=0.75)


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_small_pieces_give_the_same(case: Case) -> None:
    whole = voc_ap(*case, CLASSES)
    for pairs in (1, 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(matches, "PAIRS_AT_ONCE", pairs)
            pieces = voc_ap(*case, CLASSES)
        for name in CLASSES:
            np.testing.assert_equal(astuple(pieces.per_class[name]), astuple(whole.per_class[name]))


@pytest.mark.parametrize("seed", range(3))
def test_real_labels_with_jittered_detections_score_as_the_devkit(bccd: Dataset, seed: int) -> None:
    assert len(bccd.classes) == len(CLASSES)  # only their names differ
    samples = list(bccd.splits["val"])
    case = samples, jittered(samples, len(CLASSES), seed)
    assert_as_devkit(case)
    assert 0.1 < voc_ap(*case, CLASSES).map07 < 0.95


def test_real_labels_found_exactly_score_one(bccd: Dataset) -> None:
    samples = bccd.splits["val"]
    found = {
        one.image_id: detections([(box, 0.9, label) for box, label in zip(one.boxes, one.labels, strict=True)])
        for one in samples
    }
    scores = voc_ap(samples, found, bccd.classes)
    assert scores.map07 == scores.map_area == 1


def test_by_hand() -> None:
    # Four cats. In order of score: hit, duplicate, hit, false. Recall 1/4, 1/4, 2/4, 2/4; precision 1, 1/2, 2/3, 1/2.
    samples = [
        sample("a", [(0, 0, 10, 10), (20, 0, 30, 10)], [0, 0]),
        sample("b", [(0, 0, 10, 10), (20, 0, 30, 10)], [0, 0]),
    ]
    found = {
        "a": detections([((0, 0, 10, 10), 0.9, 0), ((0, 0, 10, 9), 0.8, 0), ((20, 0, 30, 10), 0.7, 0)]),
        "b": detections([((50, 50, 60, 60), 0.6, 0)]),
    }
    scores = voc_ap(samples, found, ["cat"]).per_class["cat"]
    # Area: 1/4 at precision 1 and 1/4 at 2/3. Points: 0, 0.1, 0.2 see 1; 0.3, 0.4, 0.5 see 2/3; the others 0.
    assert scores.ap == pytest.approx(1 / 4 + 1 / 4 * 2 / 3)
    assert scores.ap07 == pytest.approx((3 * 1 + 3 * 2 / 3) / 11)
    assert scores.positives == 4


def test_a_difficult_box_neither_counts_nor_costs() -> None:
    samples = [sample("a", [(0, 0, 10, 10), (20, 0, 30, 10)], [0, 0], difficult=[True, False])]
    found = {
        "a": detections([((0, 0, 10, 10), 0.9, 0), ((0, 0, 10, 10), 0.8, 0), ((20, 0, 30, 10), 0.7, 0)]),
    }
    scores = voc_ap(samples, found, ["cat"]).per_class["cat"]
    assert (scores.ap, scores.ap07, scores.positives) == (1, 1, 1)


def test_an_overlap_of_just_one_half_is_a_hit() -> None:
    samples = [sample("a", [(0, 0, 10, 10)], [0])]
    assert voc_ap(samples, {"a": detections([((0, 0, 10, 5), 0.5, 0)])}, ["cat"]).map_area == 1
    assert voc_ap(samples, {"a": detections([((0, 0, 10, 4.75), 0.5, 0)])}, ["cat"]).map_area == 0


def test_a_detection_does_not_turn_to_its_second_best_box() -> None:
    # Both overlap the left box most. The second one would reach the right box too, but the devkit does not look again.
    samples = [sample("a", [(0, 0, 10, 10), (2, 0, 12, 10)], [0, 0])]
    found = {"a": detections([((0, 0, 10, 10), 0.9, 0), ((0.5, 0, 10.5, 10), 0.8, 0)])}
    assert voc_ap(samples, found, ["cat"]).map_area == pytest.approx(1 / 2)


def test_an_object_of_one_click_is_none() -> None:
    # xmin = xmax = 5 in a VOC file is one pixel wide by its own rules.
    samples = [sample("a", [(4, 4, 5, 9), (20, 0, 30, 10)], [0, 0])]
    found = {"a": detections([((20, 0, 30, 10), 0.5, 0)])}
    scores = voc_ap(samples, found, ["cat"]).per_class["cat"]
    assert (scores.ap, scores.positives) == (1, 1)
    on_it = voc_ap(samples, {"a": detections([((4, 4, 5, 9), 0.9, 0), ((20, 0, 30, 10), 0.5, 0)])}, ["cat"])
    assert on_it.map_area == pytest.approx(1 / 2)


def test_without_any_label_there_is_no_score() -> None:
    for found in ({}, {"a": detections([((0, 0, 10, 10), 0.9, 0)])}):
        scores = voc_ap([sample("a", [], [])], found, ["cat"])
        assert math.isnan(scores.map07)
        assert scores.per_class["cat"].positives == 0
    assert math.isnan(voc_ap([], {}, ["cat"]).map_area)


def test_detections_of_unknown_images_count_for_nothing() -> None:
    samples = [sample("a", [(0, 0, 10, 10)], [0])]
    found = {"a": detections([((0, 0, 10, 10), 0.1, 0)]), "other": detections([((0, 0, 10, 10), 0.9, 0)])}
    assert voc_ap(samples, found, ["cat"]).map_area == 1


@pytest.mark.parametrize("box", [(10, 0, 0, 10), (10, 10, 0, 0), (5, 5, 5, 5), (0, 0, math.inf, 10)])
def test_a_senseless_detection_is_false_and_no_more(box: tuple[float, ...]) -> None:
    samples = [sample("a", [(0, 0, 10, 10)], [0])]
    found = {"a": detections([(box, 0.9, 0), ((0, 0, 10, 10), 0.5, 0)])}
    assert voc_ap(samples, found, ["cat"]).map_area == pytest.approx(1 / 2)
