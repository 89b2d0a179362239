"""Matching against torchvision's Matcher; sampling against what it promises."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import Matcher
from torchvision.ops import box_iou

from qmimic.data.targets import IGNORED, PADDING, Targets
from qmimic.detectors.assignment import Assignment, assign, assigned_boxes, sample

RULES = [(0.7, 0.3, True), (0.5, 0.5, False), (0.6, 0.4, False), (0.5, 0.5, True)]
CANDIDATES = 80


def scattered_boxes(generator: torch.Generator, *shape: int) -> Tensor:
    corner = torch.rand(*shape, 2, generator=generator) * 40
    return torch.cat([corner, corner + 5 + torch.rand(*shape, 2, generator=generator) * 30], -1)


def scene(seed: int, labels: list[list[int]]) -> tuple[Tensor, Targets]:
    """Candidates [B, N, 4], and boxes that are candidates shifted a little, so that all overlaps occur."""
    generator = torch.Generator().manual_seed(seed)
    candidates = scattered_boxes(generator, len(labels), CANDIDATES)
    shifts = torch.rand(len(labels), len(labels[0]), 4, generator=generator) * 4 - 2
    boxes = candidates[:, : len(labels[0])] + shifts
    return candidates, Targets(boxes, torch.tensor(labels))


@pytest.mark.parametrize(("high", "low", "keep_best"), RULES)
@given(seed=st.integers(0, 10**6), counts=st.lists(st.integers(1, 5), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None)
def test_match_equals_torchvision(high: float, low: float, keep_best: bool, seed: int, counts: list[int]) -> None:
    candidates, targets = scene(seed, [[7] * count + [PADDING] * (5 - count) for count in counts])
    assigned = assign(candidates, targets, high, low, keep_best)
    matcher = Matcher(high, low, allow_low_quality_matches=keep_best)
    for image, count in enumerate(counts):
        expected = matcher(box_iou(targets.boxes[image, :count], candidates[image]))
        positive = expected >= 0
        assert torch.equal(assigned.positive[image], positive)
        assert torch.equal(assigned.negative[image], expected == Matcher.BELOW_LOW_THRESHOLD)
        assert torch.equal(assigned.index[image][positive], expected[positive])


def test_one_set_of_anchors_serves_the_whole_batch() -> None:
    candidates, targets = scene(0, [[1, 1], [1, PADDING]])
    together = assign(candidates[:1], targets, 0.7, 0.3, True)
    apart = assign(candidates[:1].expand(2, -1, -1), targets, 0.7, 0.3, True)
    for field in ("index", "positive", "negative"):
        assert torch.equal(getattr(together, field), getattr(apart, field))


def test_match_by_hand() -> None:
    # IoU with the box of 10 x 10: 1, 0.6, 0.4, 0.2 and 0.
    candidates = torch.tensor([[[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 4], [0, 0, 10, 2], [20, 20, 30, 30]]]).float()
    targets = Targets(torch.tensor([[[0.0, 0.0, 10.0, 10.0]]]), torch.tensor([[3]]))
    assigned = assign(candidates, targets, 0.5, 0.3, keep_best=False)
    assert assigned.positive.tolist() == [[True, True, False, False, False]]
    assert assigned.negative.tolist() == [[False, False, False, True, True]]


def test_a_box_that_no_anchor_fits_still_gets_its_best_anchors() -> None:
    candidates = torch.tensor([[[0.0, 0.0, 10.0, 1.0], [0.0, 9.0, 10.0, 10.0], [0.0, 0.0, 2.0, 2.0]]])
    targets = Targets(torch.tensor([[[0.0, 0.0, 10.0, 10.0]]]), torch.tensor([[0]]))
    assert assign(candidates, targets, 0.7, 0.3, keep_best=True).positive.tolist() == [[True, True, False]]
    assert not assign(candidates, targets, 0.7, 0.3, keep_best=False).positive.any()


def test_a_box_that_touches_no_anchor_makes_none_positive() -> None:
    # torchvision's Matcher would make all of them positive: each attains the best overlap, which is 0.
    candidates = torch.tensor([[[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 9.0, 9.0]]])
    targets = Targets(torch.tensor([[[50.0, 50.0, 60.0, 60.0]]]), torch.tensor([[0]]))
    assigned = assign(candidates, targets, 0.7, 0.3, keep_best=True)
    assert not assigned.positive.any()
    assert assigned.negative.all()


@pytest.mark.parametrize(("high", "low", "keep_best"), RULES)
def test_without_boxes_everything_is_negative(high: float, low: float, keep_best: bool) -> None:
    candidates, targets = scene(0, [[PADDING, PADDING]])
    assigned = assign(candidates, targets, high, low, keep_best)
    assert assigned.negative.all()
    assert not assigned.positive.any()


labels = st.lists(st.sampled_from([0, 1, PADDING, IGNORED]), min_size=3, max_size=3)


@pytest.mark.parametrize(("high", "low", "keep_best"), RULES)
@given(seed=st.integers(0, 10**6), first=labels, second=labels)
@settings(max_examples=20, deadline=None)
def test_ignored_boxes_are_neither_learnt_nor_learnt_against(
    high: float, low: float, keep_best: bool, seed: int, first: list[int], second: list[int]
) -> None:
    candidates, targets = scene(seed, [first, second])
    assigned = assign(candidates, targets, high, low, keep_best)
    assert not (assigned.positive & assigned.negative).any()
    matched = targets.labels.gather(1, assigned.index)
    assert (matched[assigned.positive] >= 0).all()
    for image in range(2):
        real = targets.labels[image] >= 0
        on_ignored = (box_iou(targets.boxes[image], candidates[image])[targets.labels[image] == IGNORED] >= low).any(0)
        assert not (assigned.negative[image] & on_ignored).any()
        # What lies on no ignored box is matched as if there were none.
        alone = Targets(targets.boxes[image, real][None], targets.labels[image, real][None])
        if real.any():
            without = assign(candidates[image : image + 1], alone, high, low, keep_best)
            assert torch.equal(assigned.positive[image], without.positive[0])
            assert torch.equal(assigned.negative[image], without.negative[0] & ~on_ignored)


def assignment_of(positive: int, negative: int, neither: int, seed: int = 0) -> Assignment:
    """Matches of one image with so many candidates of each kind, in random order."""
    kinds = torch.tensor([1] * positive + [0] * negative + [2] * neither)
    kinds = kinds[torch.randperm(len(kinds), generator=torch.Generator().manual_seed(seed))][None]
    return Assignment(torch.zeros_like(kinds), kinds == 1, kinds == 0)


@given(
    positive=st.integers(0, 40),
    negative=st.integers(0, 40),
    neither=st.integers(0, 40),
    count=st.integers(2, 64),
    share=st.sampled_from([0.25, 0.5, 1.0]),
    seed=st.integers(0, 10**6),
)
@settings(max_examples=80, deadline=None)
def test_sample_takes_as_many_of_each_kind_as_it_may(
    positive: int, negative: int, neither: int, count: int, share: float, seed: int
) -> None:
    candidates = positive + negative + neither
    if candidates == 0:
        return
    assigned = assignment_of(positive, negative, neither, seed)
    sampled = sample(assigned, count, share, torch.Generator().manual_seed(seed))
    valid = sampled.valid[0]
    taken = sampled.index[0][valid]
    assert sampled.index.shape == (1, min(count, candidates))
    assert len(taken.unique()) == len(taken)
    assert torch.equal(assigned.positive[0][taken], sampled.positive[0][valid])
    assert (assigned.positive | assigned.negative)[0][taken].all()
    assert not (sampled.positive & ~sampled.valid).any()
    positives = min(positive, max(1, int(min(count, candidates) * share)))
    assert int(sampled.positive.sum()) == positives
    # torchvision's BalancedPositiveNegativeSampler: negatives fill what is left.
    assert int(valid.sum()) == positives + min(negative, min(count, candidates) - positives)


def test_every_candidate_has_the_same_chance() -> None:
    assigned = assignment_of(10, 30, 5)
    generator = torch.Generator().manual_seed(0)
    times = torch.zeros(45)
    for _ in range(600):
        sampled = sample(assigned, 16, 0.25, generator)
        times[sampled.index[sampled.valid]] += 1
    # 4 of 10 positives and 12 of 30 negatives: 240 draws each, standard deviation 12.
    kinds = assigned.positive | assigned.negative
    assert (times[kinds[0]] - 240).abs().max() < 60
    assert not times[~kinds[0]].any()


def test_every_negative_has_the_same_chance_where_positives_are_few() -> None:
    assigned = assignment_of(1, 40, 0)
    generator = torch.Generator().manual_seed(0)
    times = torch.zeros(41)
    for _ in range(600):
        sampled = sample(assigned, 21, 0.5, generator)
        times[sampled.index[sampled.valid]] += 1
    # 20 of 40 negatives: 300 draws each, standard deviation 12.
    assert (times[assigned.negative[0]] - 300).abs().max() < 60
    assert times[assigned.positive[0]].tolist() == [600]


def test_images_of_a_batch_are_sampled_apart() -> None:
    one, other = assignment_of(3, 20, 0), assignment_of(0, 23, 0)
    both = Assignment(*(torch.cat([getattr(one, f), getattr(other, f)]) for f in ("index", "positive", "negative")))
    sampled = sample(both, 8, 0.5, torch.Generator().manual_seed(0))
    assert sampled.positive.sum(1).tolist() == [3, 0]
    assert sampled.valid.sum(1).tolist() == [8, 8]


def test_assigned_boxes_are_those_of_the_sampled_candidates() -> None:
    candidates, targets = scene(0, [[4, 5, 6], [7, 8, PADDING]])
    assigned = assign(candidates, targets, 0.5, 0.5, keep_best=False)
    sampled = sample(assigned, 12, 0.5, torch.Generator().manual_seed(1))
    boxes, found = assigned_boxes(targets, assigned, sampled)
    for image in range(2):
        for place, candidate in enumerate(sampled.index[image].tolist()):
            box = assigned.index[image, candidate]
            assert torch.equal(boxes[image, place], targets.boxes[image, box])
            assert found[image, place] == targets.labels[image, box]
