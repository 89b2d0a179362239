"""COCO scores against pycocotools."""

import contextlib
import io
import math

import numpy as np
import pytest
from hypothesis import given, settings
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from score_cases import CLASSES, Case, cases, detections, jittered, sample

from qmimic.data.sample import Dataset, Sample
from qmimic.detections import Detections
from qmimic.scores.coco import CocoScore, coco_ap


def referee(case: Case) -> dict[str, float]:
    """pycocotools' numbers; its -1 for nothing to find becomes NaN."""
    samples, found = case
    annotations, results = [], []
    for image, one in enumerate(samples):
        for index, (x1, y1, x2, y2) in enumerate(one.boxes.tolist()):
            if x2 - x1 <= 1 or y2 - y1 <= 1:
                continue  # no object, by the house's rule
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": int(one.labels[index]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": int(one.crowd[index] or one.difficult[index]),
                }
            )
        if one.image_id in found:
            own = found[one.image_id]
            for (x1, y1, x2, y2), score, label in zip(
                own.boxes.tolist(), own.scores.tolist(), own.labels.tolist(), strict=True
            ):
                bbox = [x1, y1, x2 - x1, y2 - y1]
                results.append({"image_id": image, "category_id": label, "bbox": bbox, "score": score})
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": image} for image in range(len(samples))],
            "categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES)],
            "annotations": annotations,
        }
        truth.createIndex()
        if results:
            detected = truth.loadRes(results)
        else:  # which loadRes does not take
            detected = COCO()
            detected.dataset = {**truth.dataset, "annotations": []}
            detected.createIndex()
        evaluation = COCOeval(truth, detected, "bbox")
        evaluation.params.imgIds = list(range(len(samples)))
        evaluation.params.catIds = list(range(len(CLASSES)))
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("ap", "ap50", "ap75", "small", "medium", "large")
    numbers = dict(zip(names, map(float, evaluation.stats[:6]), strict=True))
    for label, name in enumerate(CLASSES):
        precision = evaluation.eval["precision"][:, :, label, 0, -1]
        numbers[name] = float(precision[precision > -1].mean()) if (precision > -1).any() else -1.0
    return {name: math.nan if number == -1 else number for name, number in numbers.items()}


def plain(scores: CocoScore) -> dict[str, float]:
    numbers = {name: getattr(scores, name) for name in ("ap", "ap50", "ap75", "small", "medium", "large")}
    return numbers | scores.per_class


def assert_as_pycocotools(case: Case) -> None:
    assert plain(coco_ap(*case, CLASSES)) == pytest.approx(referee(case), abs=1e-6, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_random_cases_score_as_pycocotools(case: Case) -> None:
    assert_as_pycocotools(case)


@pytest.mark.parametrize("seed", range(2))
def test_real_labels_with_jittered_detections_score_as_pycocotools(bccd: Dataset, seed: int) -> None:
    samples = list(bccd.splits["val"])
    case = samples, jittered(samples, len(CLASSES), seed)
    assert_as_pycocotools(case)
    assert 0.05 < coco_ap(*case, CLASSES).ap < 0.9


def test_crowds_are_crowds() -> None:
    # Three small boxes lie inside one crowd: whatever their IoU with it, they count for nothing.
    samples = [sample("a", [(0, 0, 200, 200), (300, 0, 400, 100)], [0, 0], crowd=[True, False])]
    inside = [((10 * k, 0, 10 * k + 9, 9), 0.9, 0) for k in range(3)]
    case = samples, {"a": detections([*inside, ((300, 0, 400, 100), 0.5, 0)])}
    assert_as_pycocotools(case)
    assert coco_ap(*case, CLASSES).ap == pytest.approx(1)


def test_sizes_by_hand() -> None:
    # One object of each size, of which the medium one is missed.
    boxes = [(0, 0, 20, 20), (100, 0, 150, 50), (200, 0, 400, 200)]
    samples = [sample("a", boxes, [0, 0, 0])]
    case = samples, {"a": detections([(boxes[0], 0.9, 0), (boxes[2], 0.8, 0)])}
    scores = coco_ap(*case, CLASSES)
    assert (scores.small, scores.medium, scores.large) == pytest.approx((1, 0, 1))
    # 101 points of recall, of which 0, 0.01, ... 0.66 are reached, at precision 1.
    assert scores.ap == scores.ap50 == pytest.approx(67 / 101)
    assert_as_pycocotools(case)


def test_more_than_a_hundred_detections_are_cut() -> None:
    samples = [sample("a", [(0, 0, 10, 10)], [0])]
    false = [((50 + k, 50, 60 + k, 60), 0.9, 0) for k in range(100)]
    case = samples, {"a": detections([*false, ((0, 0, 10, 10), 0.1, 0)])}
    assert_as_pycocotools(case)
    assert coco_ap(*case, CLASSES).ap == 0


@pytest.mark.parametrize("found", [{}, {"a": detections([])}])
def test_without_detections_the_score_is_zero(found: dict[str, Detections]) -> None:
    scores = coco_ap([sample("a", [(0, 0, 10, 10)], [1])], found, CLASSES)
    assert scores.ap == scores.ap50 == scores.small == scores.per_class["dog"] == 0
    assert math.isnan(scores.per_class["cat"])
    assert math.isnan(scores.large)


@pytest.mark.parametrize("samples", [[], [sample("a", [], [])], [sample("a", [(0, 0, 1, 9)], [0])]])
def test_without_labels_there_is_no_score(samples: list[Sample]) -> None:
    for found in ({}, {"a": detections([((0, 0, 10, 10), 0.9, 0)])}):
        assert all(math.isnan(number) for number in plain(coco_ap(samples, found, CLASSES)).values())


def test_says_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    coco_ap([sample("a", [(0, 0, 10, 10)], [0])], {"a": detections([((0, 0, 9, 9), 0.5, 0)])}, CLASSES)
    coco_ap([sample("a", [(0, 0, 10, 10)], [0])], {}, CLASSES)
    assert capfd.readouterr() == ("", "")


def test_scores_are_shares(bccd: Dataset) -> None:
    samples = list(bccd.splits["val"])
    numbers = np.array(list(plain(coco_ap(samples, jittered(samples, 3, 9), CLASSES)).values()))
    numbers = numbers[~np.isnan(numbers)]
    assert ((numbers >= 0) & (numbers <= 1)).all()
