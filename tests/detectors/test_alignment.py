"""Task-aligned assignment against plain loops over images, objects and places, and its promise to small objects."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qmimic.data.targets import IGNORED, PADDING, Targets
from qmimic.detectors.alignment import IOU_POWER, NEARNESS, POSITIVES, REACH, SCORE_POWER, Alignment, align
from qmimic.detectors.one_stage import place_grid

SIZE = (64, 96)
LEVELS = (8, 16, 32)
CLASSES = 3


def scene(seed: int, labels: list[list[int]], largest: float = 60.0) -> tuple[Tensor, Tensor, Tensor, Targets]:
    """Scores, boxes around their places, places, and objects of 4 pixels and more."""
    generator = torch.Generator().manual_seed(seed)
    places = place_grid(SIZE, LEVELS)
    batch, count = len(labels), len(places)
    scores = torch.rand(batch, count, CLASSES, generator=generator)
    sides = (0.3 + 2 * torch.rand(batch, count, 4, generator=generator)) * places[:, 2:]
    boxes = torch.cat([places[:, :2] - sides[..., :2], places[:, :2] + sides[..., 2:]], -1)
    corner = torch.rand(batch, len(labels[0]), 2, generator=generator) * torch.tensor([80.0, 50.0])
    extent = 4 + torch.rand(batch, len(labels[0]), 2, generator=generator) * largest
    return scores, boxes, places, Targets(torch.cat([corner, corner + extent], -1), torch.tensor(labels))


def overlap(a: list[float], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def by_loops(scores: Tensor, boxes: Tensor, places: Tensor, truth: Tensor, labels: Tensor) -> tuple[dict, list[bool]]:
    """Of one image: what each positive place learns (object, quality), and which places count."""
    fits: dict[tuple[int, int], float] = {}
    ranks: dict[tuple[int, int], float] = {}
    chosen: list[tuple[int, int]] = []
    for m, (box, label) in enumerate(zip(truth.tolist(), labels.tolist(), strict=True)):
        if label < 0:
            continue
        for n, (x, y, stride) in enumerate(places.tolist()):
            dx, dy = abs(x - (box[0] + box[2]) / 2), abs(y - (box[1] + box[3]) / 2)
            reach = max((box[2] - box[0]) / 2, REACH * stride), max((box[3] - box[1]) / 2, REACH * stride)
            if dx < reach[0] and dy < reach[1]:
                near = NEARNESS / (1 + (dx / stride) ** 2 + (dy / stride) ** 2)
                fits[m, n] = overlap(box, boxes[n].tolist()) + near
                ranks[m, n] = max(1e-4, float(scores[n, label])) ** SCORE_POWER * fits[m, n] ** IOU_POWER
        own = sorted((key for key in ranks if key[0] == m), key=lambda key: -ranks[key])
        chosen += own[:POSITIVES]
    learns = {n: max((key for key in chosen if key[1] == n), key=lambda key: fits[key])[0] for _, n in chosen}
    qualities = {}
    for n, m in learns.items():
        mine = [(m, other) for other in learns if learns[other] == m]
        best = max(ranks[key] for key in mine)
        qualities[n] = (m, min(1.0, ranks[m, n] / best * max(fits[key] for key in mine)))
    counted = []
    for n, (x, y, _) in enumerate(places.tolist()):
        on = any(
            box[0] < x < box[2] and box[1] < y < box[3]
            for box, label in zip(truth.tolist(), labels.tolist(), strict=True)
            if label == IGNORED
        )
        counted.append(n in learns or not on)
    return qualities, counted


@given(
    seed=st.integers(0, 10**6), labels=st.lists(st.sampled_from([0, 1, 2, PADDING, IGNORED]), min_size=4, max_size=4)
)
@settings(max_examples=15, deadline=None)
def test_it_equals_plain_loops(seed: int, labels: list[int]) -> None:
    both = [labels, labels[::-1]]
    scores, boxes, places, targets = scene(seed, both)
    found = align(scores, boxes, places, targets)
    for image in range(2):
        wanted, counted = by_loops(scores[image], boxes[image], places, targets.boxes[image], targets.labels[image])
        assert found.positive[image].nonzero()[:, 0].tolist() == sorted(wanted)
        assert found.counted[image].tolist() == counted
        for place, (index, quality) in wanted.items():
            assert found.index[image, place] == index
            assert found.quality[image, place].item() == pytest.approx(quality, rel=1e-3, abs=1e-5)
        assert not found.quality[image][~found.positive[image]].any()


def learnt(found: Alignment, image: int = 0) -> set[int]:
    return set(found.index[image][found.positive[image]].tolist())


@given(
    x=st.floats(0, 92), y=st.floats(0, 60), side=st.floats(1, 4), level=st.sampled_from([(8,), (16,), (32,), LEVELS])
)
@settings(max_examples=60, deadline=None)
def test_the_smallest_object_anywhere_has_a_place(x: float, y: float, side: float, level: tuple[int, ...]) -> None:
    places = place_grid(SIZE, level)
    boxes = torch.cat([places[:, :2] - places[:, 2:], places[:, :2] + places[:, 2:]], -1)[None]
    targets = Targets(torch.tensor([[[x, y, x + side, y + side]]]), torch.tensor([[1]]))
    found = align(torch.full((1, len(places), CLASSES), 0.01), boxes, places, targets)
    assert found.positive.any()
    assert found.quality.max() > 0


def test_the_level_that_fits_learns() -> None:
    places = place_grid(SIZE, LEVELS)
    boxes = torch.cat([places[:, :2] - places[:, 2:], places[:, :2] + places[:, 2:]], -1)[None]
    for stride in LEVELS:
        middle = torch.tensor([48.0, 32.0])
        box = torch.cat([middle - stride, middle + stride])[None, None]
        found = align(torch.full((1, len(places), 1), 0.1), boxes, places, Targets(box, torch.zeros(1, 1).long()))
        best = found.quality[0].argmax()
        assert places[best, 2] == stride


def test_a_crowd_of_three_hundred_is_learnt() -> None:
    places = place_grid((320, 320), (8, 16, 32))
    step = 320 / 18
    corners = torch.cartesian_prod(torch.arange(18), torch.arange(18))[:300] * step
    objects = torch.cat([corners + 1, corners + step - 1], 1)[None]
    boxes = torch.cat([places[:, :2] - places[:, 2:], places[:, :2] + places[:, 2:]], -1)[None]
    found = align(torch.full((1, len(places), 2), 0.01), boxes, places, Targets(objects, torch.ones(1, 300).long()))
    assert learnt(found) == set(range(300))


def test_an_image_without_objects_teaches_that_there_are_none() -> None:
    scores, boxes, places, targets = scene(0, [[PADDING] * 2])
    found = align(scores, boxes, places, targets)
    assert not found.positive.any()
    assert found.counted.all()
    assert math.isclose(float(found.quality.sum()), 0)
