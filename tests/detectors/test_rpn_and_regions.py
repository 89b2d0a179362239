"""Parts of the detector by hand: proposals, packing, losses, thresholds and suppression by class."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qmimic.data.targets import IGNORED, PADDING, Targets
from qmimic.detectors.regions import detect_regions, hardest, pad_with_truth, region_losses
from qmimic.detectors.rpn import RPN, first
from tiny_detectors import tiny_spec

SIZE = (96, 96)
APART = torch.tensor(
    [[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 30.0, 10.0], [40.0, 0.0, 50.0, 10.0], [60.0, 0.0, 70.0, 10.0]]
)


@given(stays=st.lists(st.lists(st.booleans(), min_size=6, max_size=6), min_size=1, max_size=3), count=st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_first_packs_the_staying_boxes_in_their_order(stays: list[list[bool]], count: int) -> None:
    boxes = torch.arange(len(stays) * 6 * 4).float().view(-1, 6, 4) + 1
    packed = first(boxes, torch.tensor(stays), count)
    assert packed.boxes.shape == (len(stays), count, 4)
    for image, keep in enumerate(stays):
        expected = boxes[image][torch.tensor(keep)][:count]
        assert torch.equal(packed.boxes[image, : len(expected)], expected)
        assert not packed.boxes[image, len(expected) :].any()
        assert packed.valid[image].tolist() == [place < len(expected) for place in range(count)]


def propose(logits: list[float], anchors: Tensor, deltas: Tensor | None = None, **config: object) -> list[list[float]]:
    rpn = RPN(2, 1, tiny_spec(**config))
    deltas = torch.zeros(1, len(anchors), 4) if deltas is None else deltas
    proposals = rpn.propose(torch.tensor([logits]), deltas, anchors, SIZE)
    return proposals.boxes[0][proposals.valid[0]].tolist()


def test_proposals_come_in_falling_order_of_objectness() -> None:
    expected = APART[[2, 0, 3, 1]].tolist()
    assert propose([2.0, -1.0, 3.0, 0.0], APART) == expected
    assert propose([2.0, -1.0, 3.0, 0.0], APART, post_nms=2) == expected[:2]
    assert propose([2.0, -1.0, 3.0, 0.0], APART, pre_nms=3) == expected[:3]


def test_proposals_are_moved_anchors_cut_to_the_image() -> None:
    deltas = torch.tensor(
        [[[0.5, 0.0, 0.0, 0.0], [0.0, 0.0, math.log(2.0), 0.0], [20.0, 0.0, 0.0, 0.0], [0.0, -0.8, 0.0, 0.0]]]
    )
    boxes = propose([4.0, 3.0, 2.0, 1.0], APART, deltas)
    # The third lies outside the image: nothing is left of it.
    assert boxes == [pytest.approx([5, 0, 15, 10]), pytest.approx([15, 0, 35, 10]), pytest.approx([60, 0, 70, 2])]


def test_of_two_proposals_that_overlap_by_more_than_seven_tenths_the_better_stays() -> None:
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0], [0.0, 0.0, 10.0, 6.5]])
    assert propose([1.0, 2.0, 0.0], anchors) == [anchors[1].tolist()]
    assert propose([2.0, 1.0, 0.0], anchors) == [anchors[0].tolist(), anchors[2].tolist()]


def test_outputs_of_the_rpn_are_ordered_as_the_anchors() -> None:
    rpn = RPN(4, 3, tiny_spec())
    features = torch.randn(2, 4, 5, 6)
    logits, deltas = rpn(features)
    hidden = torch.relu(rpn.conv(features))
    scores, moves = rpn.objectness(hidden), rpn.deltas(hidden)
    assert logits.shape == (2, 90)
    assert deltas.shape == (2, 90, 4)
    for anchor, row, column in ((0, 0, 0), (1, 2, 3), (2, 4, 5)):
        place = (anchor * 5 + row) * 6 + column
        assert torch.equal(logits[:, place], scores[:, anchor, row, column])
        assert torch.equal(deltas[:, place], moves[:, 4 * anchor : 4 * anchor + 4, row, column])


def test_losses_of_the_rpn_by_hand() -> None:
    rpn = RPN(2, 1, tiny_spec(rpn_samples=4))
    targets = Targets(APART[None, :1] + 1, torch.tensor([[0]]))  # overlaps the first anchor alone, by 81/119
    logits = torch.tensor([[2.0, -1.0, 0.5, 0.0]])
    deltas = torch.tensor([[[0.3, 0.1, 0.0, -0.05], *[[9.0] * 4] * 3]])
    classification, regression = rpn.losses(logits, deltas, APART, targets, torch.Generator().manual_seed(0))
    entropy = sum(math.log1p(math.exp(x)) for x in (-2.0, -1.0, 0.5, 0.0)) / 4
    # Wanted: (0.1, 0.1, 0, 0). Beyond 1/9 the loss is |d| - 1/18, within it 4.5 d^2.
    distance = (0.2 - 1 / 18) + 4.5 * 0.05**2
    assert classification.item() == pytest.approx(entropy, rel=1e-5)
    assert regression.item() == pytest.approx(distance / 4, rel=1e-4)


def test_losses_of_the_head_by_hand() -> None:
    logits = torch.tensor([[[0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [5.0, 5.0, 5.0]]], requires_grad=True)
    deltas = torch.full((1, 3, 2, 4), 7.0)
    deltas[0, 0, 1] = torch.tensor([1.3, 1.0, 0.0, 0.0])
    rois = APART[None, :3]
    boxes = torch.tensor([[[1.0, 1.0, 11.0, 11.0], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])
    positive = torch.tensor([[True, False, False]])
    labels = torch.tensor([[1, PADDING, PADDING]])
    entropy, distance = region_losses(logits, deltas, rois, boxes, labels, positive)
    first_region = math.log(1 + math.e + math.e**2) - 2
    second_region = math.log(math.e + 2) - 1
    assert entropy[0].tolist() == pytest.approx([first_region, second_region, math.log(3)], rel=1e-5)
    # The encoding's weights make a shift of a tenth 1: wanted (1, 1, 0, 0), |d| = 0.3 in one coordinate.
    assert distance[0].tolist() == pytest.approx([0.3 - 1 / 18, 0, 0], rel=1e-4)


def test_one_box_for_all_classes_is_every_class_s_own() -> None:
    rois, labels, positive = APART[None, :2], torch.tensor([[2, 0]]), torch.tensor([[True, True]])
    boxes = rois + torch.tensor([1.0, 0.0, 1.0, 0.0])
    deltas = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]], [[1.2, 0.0, 0.0, 0.0]]]])
    _, distance = region_losses(torch.zeros(1, 2, 4), deltas, rois, boxes, labels, positive)
    assert distance[0].tolist() == pytest.approx([0, 0.2 - 1 / 18], abs=1e-6)


def test_the_hardest_are_the_valid_regions_of_largest_loss() -> None:
    losses = torch.tensor([[0.1, 3.0, 2.0, 9.0], [0.0, 0.0, 0.0, 5.0]])
    valid = torch.tensor([[True, True, True, False], [False, False, False, True]])
    assert hardest(losses, valid, 2).tolist() == [[False, True, True, False], [False, False, False, True]]
    assert torch.equal(hardest(losses, valid, 9), valid)


def detect(probabilities: list[list[float]], rois: Tensor, **config: object) -> list[tuple[list[float], float, int]]:
    """Detections from scores (background first) of regions that are not moved."""
    logits = torch.tensor([probabilities]).log()
    deltas = torch.zeros(1, len(rois), len(probabilities[0]) - 1, 4)
    valid = torch.ones(1, len(rois), dtype=torch.bool)
    found = detect_regions(logits, deltas, rois[None], valid, SIZE, tiny_spec(**config))
    kept = found.valid[0]
    return [
        (box, pytest.approx(score, abs=1e-5), label)
        for box, score, label in zip(
            found.boxes[0][kept].tolist(), found.scores[0][kept].tolist(), found.labels[0][kept].tolist(), strict=True
        )
    ]


def test_detections_by_hand() -> None:
    one, two = APART[:2].tolist()
    found = detect([[0.1, 0.6, 0.3], [0.15, 0.05, 0.8]], APART[:2], score_threshold=0.1)
    assert found == [(two, 0.8, 1), (one, 0.6, 0), (one, 0.3, 1)]


def test_only_detections_of_one_class_suppress_each_other() -> None:
    rois = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    found = detect([[0.1, 0.7, 0.2], [0.1, 0.6, 0.3]], rois, score_threshold=0.1)
    assert found == [(rois[0].tolist(), 0.7, 0), (rois[1].tolist(), 0.3, 1)]


def test_no_more_detections_than_asked_for_and_the_best_of_them() -> None:
    found = detect([[0.5, 0.5], [0.2, 0.8], [0.4, 0.6], [0.1, 0.9]], APART, max_detections=2)
    assert [label for _, _, label in found] == [0, 0]
    assert [box for box, _, _ in found] == [APART[3].tolist(), APART[1].tolist()]


def test_a_score_on_the_threshold_is_not_above_it() -> None:
    assert detect([[0.5, 0.5]], APART[:1], score_threshold=0.5) == []


def test_invalid_and_empty_regions_are_not_detected() -> None:
    rois = torch.stack([APART[0], APART[1], torch.tensor([50.0, 50.0, 50.0, 60.0])])[None]
    valid = torch.tensor([[True, False, True]])
    found = detect_regions(torch.zeros(1, 3, 2), torch.zeros(1, 3, 1, 4), rois, valid, SIZE, tiny_spec())
    assert found.boxes[0][found.valid[0]].tolist() == [APART[0].tolist()]


def test_every_class_has_its_own_box() -> None:
    deltas = torch.tensor([[[[5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 5 * math.log(2.0)]]]])
    valid = torch.ones(1, 1, dtype=torch.bool)
    found = detect_regions(torch.zeros(1, 1, 3), deltas, APART[None, 1:2] + 20, valid, SIZE, tiny_spec())
    by_label = dict(zip(found.labels[0].tolist(), found.boxes[0].tolist(), strict=True))
    assert by_label == {0: pytest.approx([45, 20, 55, 30]), 1: pytest.approx([40, 15, 50, 35])}


def test_ground_truth_joins_the_regions_without_padding_and_ignored_boxes() -> None:
    targets = Targets(APART[None, :3], torch.tensor([[4, IGNORED, PADDING]]))
    rois, valid = pad_with_truth(APART[None, 3:], torch.tensor([[True]]), targets)
    assert torch.equal(rois[0], APART[[3, 0, 1, 2]])
    assert valid.tolist() == [[True, True, False, False]]
