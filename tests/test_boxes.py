"""Box arithmetic against torchvision's, image by image."""

import pytest
import torch
import torchvision.ops as ops
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from qmimic import boxes as box_ops

WEIGHTS = [(1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)]


def random_boxes(seed: int, *shape: int, side: float = 100.0) -> Tensor:
    """Boxes [*shape, 4] of at least one pixel."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=generator) * side
    size = 1 + torch.rand(*shape, 2, generator=generator) * side / 2
    return torch.cat([corner, corner + size], -1)


def clustered_boxes(seed: int, count: int, places: int) -> Tensor:
    """Boxes [count, 4] that lie around few places, so that suppression has much to do."""
    generator = torch.Generator().manual_seed(seed)
    centres = random_boxes(seed + 1, places)[torch.randint(places, (count,), generator=generator)]
    jitter = torch.rand(count, 4, generator=generator) * 4
    return centres + torch.cat([-jitter[:, :2], jitter[:, 2:]], 1)


def kept_by_torchvision(boxes: Tensor, valid: Tensor, threshold: float) -> Tensor:
    """What torchvision keeps of boxes [K, 4] in falling order of score, bool [K]."""
    places = valid.nonzero()[:, 0]
    scores = torch.linspace(1, 0.1, len(places))
    stays = torch.zeros_like(valid)
    stays[places[ops.nms(boxes[places], scores, threshold)]] = True
    return stays


def test_area_is_width_times_height() -> None:
    assert box_ops.area(torch.tensor([[1.0, 2.0, 4.0, 7.0], [3.0, 3.0, 3.0, 9.0]])).tolist() == [15.0, 0.0]


@given(st.integers(0, 10**6))
@settings(max_examples=25, deadline=None)
def test_iou_equals_torchvision(seed: int) -> None:
    a, b = random_boxes(seed, 3, 7), random_boxes(seed + 1, 3, 5)
    expected = torch.stack([ops.box_iou(x, y) for x, y in zip(a, b, strict=True)])
    torch.testing.assert_close(box_ops.iou(a, b), expected, atol=1e-6, rtol=1e-5)


def test_iou_broadcasts_one_set_of_boxes_over_a_batch() -> None:
    a, b = random_boxes(0, 1, 6), random_boxes(1, 4, 3)
    torch.testing.assert_close(box_ops.iou(a, b)[2], ops.box_iou(a[0], b[2]))


def test_iou_of_touching_nested_and_empty_boxes() -> None:
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    others = torch.tensor([[4.0, 0.0, 8.0, 4.0], [1.0, 1.0, 3.0, 3.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0]])
    assert box_ops.iou(box, others).tolist() == [[0.0, 0.25, 0.0, 1.0]]
    empty = torch.zeros(1, 4)
    assert box_ops.iou(empty, empty).tolist() == [[0.0]]


def test_intersections_are_in_square_pixels() -> None:
    a = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    b = torch.tensor([[5.0, 8.0, 20.0, 20.0], [20.0, 20.0, 30.0, 30.0]])
    assert box_ops.intersections(a, b).tolist() == [[10.0, 0.0]]


@pytest.mark.parametrize("weights", WEIGHTS)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_decode_inverts_encode(weights: tuple[float, float, float, float], seed: int) -> None:
    anchors, boxes = random_boxes(seed, 2, 9), random_boxes(seed + 1, 2, 9)
    decoded = box_ops.decode(box_ops.encode(boxes, anchors, weights), anchors, weights)
    torch.testing.assert_close(decoded, boxes, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_encode_equals_torchvision(weights: tuple[float, float, float, float]) -> None:
    anchors, boxes = random_boxes(1, 50), random_boxes(2, 50)
    expected = BoxCoder(weights).encode_single(boxes, anchors)
    torch.testing.assert_close(box_ops.encode(boxes, anchors, weights), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("weights", WEIGHTS)
def test_decode_equals_torchvision_also_where_a_regression_explodes(weights: tuple[float, float, float, float]) -> None:
    anchors = random_boxes(3, 50)
    deltas = torch.randn(50, 4, generator=torch.Generator().manual_seed(4)) * 2
    deltas[:5, 2:] = 1e4
    expected = BoxCoder(weights).decode_single(deltas, anchors)
    torch.testing.assert_close(box_ops.decode(deltas, anchors, weights), expected, atol=1e-3, rtol=1e-5)


def test_encode_of_an_empty_box_is_finite() -> None:
    empty, anchor = torch.full((1, 4), 5.0), torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    assert box_ops.encode(empty, anchor, WEIGHTS[0]).isfinite().all()
    assert box_ops.encode(anchor, empty, WEIGHTS[0]).isfinite().all()


@given(st.integers(0, 10**6), st.integers(1, 90), st.integers(1, 90))
@settings(max_examples=25, deadline=None)
def test_clip_equals_torchvision(seed: int, height: int, width: int) -> None:
    boxes = random_boxes(seed, 3, 8) - 30
    assert torch.equal(box_ops.clip(boxes, (height, width)), ops.clip_boxes_to_image(boxes, (height, width)))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@given(seed=st.integers(0, 10**6), count=st.integers(1, 60), places=st.integers(1, 8))
@settings(max_examples=20, deadline=None)
def test_suppress_equals_torchvision_on_clustered_boxes(threshold: float, seed: int, count: int, places: int) -> None:
    boxes = torch.stack([clustered_boxes(seed + image, count, places) for image in range(3)])
    valid = torch.rand(3, count, generator=torch.Generator().manual_seed(seed)) > 0.2
    stays = box_ops.suppress(boxes, valid, threshold)
    for image in range(3):
        assert torch.equal(stays[image], kept_by_torchvision(boxes[image], valid[image], threshold))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_suppress_equals_torchvision_on_many_random_boxes(threshold: float) -> None:
    boxes = random_boxes(5, 2, 256)
    valid = torch.ones(2, 256, dtype=torch.bool)
    stays = box_ops.suppress(boxes, valid, threshold)
    for image in range(2):
        assert torch.equal(stays[image], kept_by_torchvision(boxes[image], valid[image], threshold))


@given(st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_suppress_equals_torchvision_where_overlaps_lie_exactly_on_the_threshold(seed: int) -> None:
    # Small whole numbers: many pairs have an IoU of exactly 1/2, and many boxes are the same.
    generator = torch.Generator().manual_seed(seed)
    corner = torch.randint(0, 3, (1, 30, 2), generator=generator).float()
    boxes = torch.cat([corner, corner + torch.randint(1, 4, (1, 30, 2), generator=generator)], -1)
    valid = torch.ones(1, 30, dtype=torch.bool)
    stays = box_ops.suppress(boxes, valid, 0.5)
    assert torch.equal(stays[0], kept_by_torchvision(boxes[0], valid[0], 0.5))


def test_suppress_keeps_a_pair_whose_overlap_equals_the_threshold() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]]])  # IoU 1/2
    valid = torch.ones(1, 2, dtype=torch.bool)
    assert box_ops.suppress(boxes, valid, 0.5).tolist() == [[True, True]]
    assert box_ops.suppress(boxes, valid, 0.49).tolist() == [[True, False]]


@pytest.mark.parametrize("length", [2, 3, 10, 41])
def test_suppress_follows_chains_to_their_end(length: int) -> None:
    # Each box overlaps only the next by IoU 2/3: the greedy answer keeps every second one, however long the chain.
    left = torch.arange(length).float() * 2
    boxes = torch.stack([left, torch.zeros(length), left + 10, torch.full((length,), 10.0)], -1)[None]
    stays = box_ops.suppress(boxes, torch.ones(1, length, dtype=torch.bool), 0.6)
    assert stays[0].tolist() == [place % 2 == 0 for place in range(length)]


def test_a_suppressed_box_suppresses_nothing() -> None:
    first, second, third = [0.0, 0.0, 10.0, 10.0], [3.0, 0.0, 13.0, 10.0], [6.0, 0.0, 16.0, 10.0]
    stays = box_ops.suppress(torch.tensor([[first, second, third]]), torch.ones(1, 3, dtype=torch.bool), 0.5)
    assert stays.tolist() == [[True, False, True]]


def test_invalid_boxes_neither_stay_nor_suppress() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).expand(2, 3, 4)
    valid = torch.tensor([[False, True, True], [False, False, False]])
    assert box_ops.suppress(boxes, valid, 0.5).tolist() == [[False, True, False], [False, False, False]]


def test_images_of_a_batch_do_not_suppress_each_other() -> None:
    boxes = torch.tensor([0.0, 0.0, 10.0, 10.0]).expand(4, 1, 4)
    assert box_ops.suppress(boxes, torch.ones(4, 1, dtype=torch.bool), 0.5).all()


def test_boxes_without_area_stay_as_in_torchvision() -> None:
    boxes = torch.tensor([[[5.0, 5.0, 5.0, 5.0], [5.0, 5.0, 5.0, 5.0], [0.0, 0.0, 10.0, 10.0]]])
    valid = torch.ones(1, 3, dtype=torch.bool)
    stays = box_ops.suppress(boxes, valid, 0.5)
    assert torch.equal(stays[0], kept_by_torchvision(boxes[0], valid[0], 0.5))


@given(st.integers(0, 10**6))
@settings(max_examples=20, deadline=None)
def test_staying_boxes_of_suppress_never_overlap_more_than_the_threshold(seed: int) -> None:
    boxes = clustered_boxes(seed, 40, 4)
    stays = box_ops.suppress(boxes[None], torch.ones(1, 40, dtype=torch.bool), 0.5)[0]
    overlap = ops.box_iou(boxes[stays].double(), boxes[stays].double()).fill_diagonal_(0)
    assert overlap.max() <= 0.5 + 1e-6
    assert stays[0]


@pytest.mark.parametrize("tail", [(), (4,), (3, 4)])
def test_take_picks_rows_image_by_image(tail: tuple[int, ...]) -> None:
    values = torch.arange(2 * 5 * 12).float()[: 2 * 5 * (1 if not tail else torch.Size(tail).numel())].view(2, 5, *tail)
    index = torch.tensor([[4, 0, 0], [1, 3, 2]])
    expected = torch.stack([values[image][index[image]] for image in range(2)])
    assert torch.equal(box_ops.take(values, index), expected)


def test_giou_by_hand() -> None:
    # Apart: union 2, box around both 3, of which a third is neither. Side by side in one corner: IoU 1/4, nothing left.
    a = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    b = torch.tensor([[2.0, 0.0, 3.0, 1.0], [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 3.0, 3.0]])
    torch.testing.assert_close(box_ops.giou(a, b), torch.tensor([-1 / 3, 1 / 4, 1 / 7 - 2 / 9]))


@given(seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_giou_equals_torchvisions_with_its_gradient(seed: int) -> None:
    a, b = random_boxes(seed, 3, 5).requires_grad_(), random_boxes(seed + 1, 3, 5)
    ours, theirs = 1 - box_ops.giou(a, b), ops.generalized_box_iou_loss(a, b)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    (mine,), (others,) = torch.autograd.grad(ours.sum(), a), torch.autograd.grad(theirs.sum(), a)
    torch.testing.assert_close(mine, others, atol=1e-5, rtol=1e-3)
