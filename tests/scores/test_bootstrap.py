"""The bootstrap of weights against one that copies images, and what its intervals say."""

import numpy as np
import pytest
from hypothesis import given, settings
from score_cases import CLASSES, Case, cases, detections, sample

from qmimic.data.sample import Sample
from qmimic.detections import Detections
from qmimic.scores.bootstrap import draws, interval, mean_ap
from qmimic.scores.matches import match
from qmimic.scores.voc import voc_ap


def distinct(case: Case, seed: int) -> Case:
    """The same case with scores that are all different: among ties copies of an image would alternate."""
    samples, found = case
    random = np.random.default_rng(seed)
    changed = {}
    for name, own in found.items():
        order = np.argsort(-own.scores, kind="stable")
        scores = np.sort(random.random(len(order)))[::-1].astype(np.float32)
        changed[name] = Detections(own.boxes[order], scores, own.labels[order])
    return samples, changed


def copied(case: Case, times: np.ndarray) -> Case:
    """The split in which image i stands so many times, each copy under a name of its own."""
    samples, found = [], {}
    for one, count in zip(case[0], times.astype(int).tolist(), strict=True):
        for copy in range(count):
            name = f"{one.image_id}-{copy}"
            samples.append(Sample(name, None, one.boxes, one.labels, one.difficult, one.crowd))
            if one.image_id in case[1]:
                found[name] = case[1][one.image_id]
    return samples, found


@settings(max_examples=60, deadline=None)
@given(cases())
def test_weights_count_as_copies_of_images_do(case: Case) -> None:
    case = distinct(case, 1)
    if not case[0]:
        return
    weights = draws(len(case[0]), seed=3, resamples=7)
    assert (weights.sum(1) == len(case[0])).all()
    own = mean_ap(match(*case, len(CLASSES)), weights)
    wanted = [voc_ap(*copied(case, row), CLASSES).map_area for row in weights]
    assert own == pytest.approx(wanted, abs=1e-9, nan_ok=True)


@settings(max_examples=30, deadline=None)
@given(cases())
def test_each_image_once_is_the_score_itself(case: Case) -> None:
    weights = np.ones((1, len(case[0])), np.uint8)
    own = mean_ap(match(*case, len(CLASSES)), weights)
    assert own == pytest.approx([voc_ap(*case, CLASSES).map_area], abs=1e-9, nan_ok=True)


def one_hit_in(images: int, good: int) -> Case:
    samples = [sample(f"i{k}", [(0, 0, 10, 10)], [0]) for k in range(images)]
    found = {f"i{k}": detections([((0, 0, 10, 10), 0.9 - k / 1000, 0)]) for k in range(good)}
    return samples, found


def test_an_interval_is_that_of_the_binomial() -> None:
    # Every detection is a hit, so mAP is the share of images with one: its resamples are binomial.
    case = one_hit_in(400, 300)
    values = mean_ap(match(*case, 1), draws(400))
    found = interval(0.75, values)
    spread = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert (found.low, found.high) == pytest.approx((0.75 - spread, 0.75 + spread), abs=0.006)


def test_a_detector_does_not_differ_from_itself_and_pairs_cancel_what_they_share() -> None:
    weights = draws(100, seed=5)
    one, other = (mean_ap(match(*one_hit_in(100, good), 1), weights) for good in (60, 62))
    same = interval(0.0, one - one)
    assert (same.low, same.high) == (0, 0)
    gain = interval(0.02, other - one)
    alone = interval(0.62, other)
    assert 0 <= gain.low <= 0.02 <= gain.high
    assert gain.high - gain.low < 0.5 * (alone.high - alone.low)


def test_the_draws_are_those_of_the_seed() -> None:
    assert (draws(9, 1) == draws(9, 1)).all()
    assert (draws(9, 1) != draws(9, 2)).any()
