"""The whole detector: Faster R-CNN against torchvision's with the same weights, and what holds for every head."""

import pytest
import torch
from torch import Tensor

from qmimic.config import QuantizerConfig
from qmimic.data.targets import IGNORED, PADDING, Targets
from qmimic.detectors.detector import Detector
from qmimic.detectors.quantize import Quantizer
from tiny_detectors import Truth, as_targets, lively, some_images, some_truth, tiny_spec
from torchvision_twin import channel_by_channel, twin

TWINS = {
    "rpn_cls": "loss_objectness",
    "rpn_reg": "loss_rpn_box_reg",
    "det_cls": "loss_classifier",
    "det_reg": "loss_box_reg",
}
KINDS = [{}, {"ohem": True}, {"architecture": "rfcn"}, {"architecture": "rfcn", "ohem": True}]
EVERYTHING = 100_000  # samples: more than there are candidates, so that chance has no part


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def torchvisions_images(images: Tensor) -> list[Tensor]:
    return list(images.float() / 255)


def torchvisions_targets(truth: list[Truth]) -> list[dict[str, Tensor]]:
    """torchvision's labels begin at 1."""
    return [{"boxes": one.boxes, "labels": one.labels + 1} for one in truth]


def our_losses(detector: Detector, images: Tensor, targets: Targets, seed: int = 0) -> dict[str, Tensor]:
    return detector.losses(detector.features(images), targets, chance(seed)).losses


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet18/16", "resnet50/32", "vgg16/32"])
@pytest.mark.parametrize("output_stride", [16, 8])
def test_the_map_equals_the_twins(backbone: str, output_stride: int) -> None:
    detector = lively(tiny_spec(backbone=backbone, output_stride=output_stride)).eval()
    images = some_images(3)
    other = twin(detector).eval()
    inputs, _ = other.transform(torchvisions_images(images))
    torch.testing.assert_close(detector.raw_features(images).map, other.backbone(inputs.tensors), atol=1e-3, rtol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"output_stride": 8}, {"score_threshold": 0.3}, {"max_detections": 15}])
@pytest.mark.parametrize("seed", range(3))
def test_detections_equal_the_twins(seed: int, settings: dict[str, object]) -> None:
    detector = lively(tiny_spec(**settings), seed).eval()
    images = some_images(seed + 10)
    ours, theirs = detector.detect(images), twin(detector).eval()(torchvisions_images(images))
    for image, expected in enumerate(theirs):
        valid = ours.valid[image]
        assert 3 <= len(expected["scores"]) == int(valid.sum())
        torch.testing.assert_close(ours.scores[image][valid], expected["scores"], atol=1e-3, rtol=0)
        torch.testing.assert_close(ours.boxes[image][valid], expected["boxes"], atol=1e-2, rtol=1e-3)
        assert torch.equal(ours.labels[image][valid] + 1, expected["labels"])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("output_stride", [16, 8])
def test_losses_and_gradients_equal_the_twins_where_everything_is_sampled(seed: int, output_stride: int) -> None:
    spec = tiny_spec(output_stride=output_stride, rpn_samples=EVERYTHING, roi_samples=EVERYTHING)
    detector = lively(spec, seed).train()
    other = twin(detector).train()
    images, truth = some_images(seed + 10), some_truth()
    ours = our_losses(detector, images, as_targets(truth))
    theirs = other(torchvisions_images(images), torchvisions_targets(truth))
    for name, torchvisions in TWINS.items():
        assert ours[name].item() == pytest.approx(theirs[torchvisions].item(), rel=1e-3, abs=1e-4), name
        assert ours[name] > 0
    sum(ours.values()).backward()
    sum(theirs.values()).backward()
    predictor = other.roi_heads.box_predictor
    pairs = [
        (detector.head.scores.weight, predictor.cls_score.weight),
        (detector.head.deltas.bias, predictor.bbox_pred.bias),
        (detector.rpn.conv.weight, other.rpn.head.conv[0][0].weight),
        (detector.rpn.deltas.weight, other.rpn.head.bbox_pred.weight),
        (detector.backbone.conv1.weight, other.backbone.backbone.conv1.weight),
    ]
    gradients = [(mine.grad, torchvisions.grad) for mine, torchvisions in pairs]
    gradients.append(
        (channel_by_channel(detector.head.fc1.weight.grad, spec.roi_size), other.roi_heads.box_head.fc6.weight.grad)
    )
    for mine, torchvisions in gradients:
        wanted = torchvisions[-len(mine) :]  # torchvision has a box for the background, before the others
        scale = wanted.abs().max()
        torch.testing.assert_close(mine / scale, wanted / scale, atol=1e-2, rtol=0)


@pytest.mark.parametrize("settings", KINDS)
def test_losses_do_not_depend_on_padding_or_on_the_order_of_boxes(settings: dict[str, object]) -> None:
    detector = lively(tiny_spec(rpn_samples=EVERYTHING, roi_samples=EVERYTHING, **settings)).train()
    images, truth = some_images(5), some_truth()
    turned = [Truth(one.boxes.flip(0), one.labels.flip(0)) for one in truth]
    tight = our_losses(detector, images, as_targets(truth, places=2))
    wide = our_losses(detector, images, as_targets(turned, places=9))
    for name in TWINS:
        assert tight[name].item() == pytest.approx(wide[name].item(), rel=1e-4)


@pytest.mark.parametrize("architecture", ["faster_rcnn", "rfcn"])
def test_hard_examples_that_are_all_there_are_give_the_losses_of_all(architecture: str) -> None:
    images, targets = some_images(5), as_targets(some_truth())
    losses = []
    for ohem in (False, True):
        spec = tiny_spec(architecture=architecture, ohem=ohem, roi_samples=EVERYTHING)
        losses.append(our_losses(lively(spec).train(), images, targets))
    for name in ("det_cls", "det_reg"):
        # The random sample keeps a quarter for positives at most; of everything, that is more than there are.
        assert losses[0][name].item() == pytest.approx(losses[1][name].item(), rel=1e-5)


@pytest.mark.parametrize("architecture", ["faster_rcnn", "rfcn"])
def test_few_hard_examples_have_a_larger_loss_than_all(architecture: str) -> None:
    images, targets = some_images(5), as_targets(some_truth())
    few, every = (
        our_losses(lively(tiny_spec(architecture=architecture, ohem=True, roi_samples=count)).train(), images, targets)
        for count in (4, EVERYTHING)
    )
    assert few["det_cls"] + few["det_reg"] > every["det_cls"] + every["det_reg"]


def test_losses_depend_on_the_generator_alone() -> None:
    detector = lively(tiny_spec(rpn_samples=16, roi_samples=8)).train()
    images, targets = some_images(5), as_targets(some_truth())
    first, again, other = (our_losses(detector, images, targets, seed) for seed in (1, 1, 2))
    for name in TWINS:
        assert torch.equal(first[name], again[name])
    assert not torch.equal(first["rpn_cls"], other["rpn_cls"])


@pytest.mark.parametrize("label", [PADDING, IGNORED])
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("settings", KINDS)
def test_images_without_objects_give_finite_losses_and_gradients(
    settings: dict[str, object], batch: int, label: int
) -> None:
    detector = lively(tiny_spec(**settings)).train()
    boxes = torch.tensor([20.0, 20.0, 60.0, 60.0]).expand(batch, 2, 4) * (label == IGNORED)
    losses = our_losses(detector, some_images(5, batch), Targets(boxes, torch.full((batch, 2), label)))
    assert losses["rpn_reg"] == losses["det_reg"] == 0
    assert losses["rpn_cls"] > 0
    sum(losses.values()).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in detector.parameters())
    assert detector.backbone.conv1.weight.grad.any()


def test_without_anything_to_sample_the_losses_are_zero() -> None:
    # One ignored box over the whole image: nothing is known about any candidate.
    detector = lively(tiny_spec(anchors=((96.0, 96.0),), size=(32, 32))).train()
    targets = Targets(torch.tensor([[[-200.0, -200.0, 300.0, 300.0]]]), torch.tensor([[IGNORED]]))
    losses = our_losses(detector, some_images(0, 1, (32, 32)), targets)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("settings", KINDS)
def test_a_degenerate_box_gives_finite_losses_and_gradients(settings: dict[str, object]) -> None:
    detector = lively(tiny_spec(**settings)).train()
    targets = Targets(torch.tensor([[[30.0, 30.0, 30.0, 30.0]], [[5.0, 5.0, 5.5, 90.0]]]), torch.tensor([[0], [2]]))
    losses = our_losses(detector, some_images(5), targets)
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(parameter.grad.isfinite().all() for parameter in detector.parameters())


@pytest.mark.parametrize(
    "settings", [{}, {"roi_pooling": "pool"}, {"size": (64, 128)}, {"max_detections": 7}, {"classes": ("one",)}]
)
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("architecture", ["faster_rcnn", "rfcn"])
def test_detections_have_one_shape_and_lie_in_the_image(
    architecture: str, batch: int, settings: dict[str, object]
) -> None:
    spec = tiny_spec(architecture=architecture, **settings)
    detections = lively(spec).eval().detect(some_images(2, batch, spec.size))
    places = min(spec.max_detections, spec.post_nms * len(spec.classes))
    assert detections.boxes.shape == (batch, places, 4)
    assert detections.scores.shape == detections.labels.shape == detections.valid.shape == (batch, places)
    height, width = spec.size
    boxes = detections.boxes[detections.valid]
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([width, height, width, height])).all()
    assert (detections.labels[detections.valid] < len(spec.classes)).all()
    assert (detections.scores[detections.valid] > spec.score_threshold).all()
    assert (detections.scores.diff(dim=1) <= 0).all()


def test_nothing_is_found_above_a_threshold_that_nothing_reaches() -> None:
    detections = lively(tiny_spec(score_threshold=0.9999)).eval().detect(some_images(2))
    assert not detections.valid.any()
    assert detections.boxes.shape[:2] == detections.scores.shape


def test_an_image_is_detected_alike_alone_and_in_a_batch() -> None:
    detector, images = lively(tiny_spec()).eval(), some_images(2, 3)
    together, alone = detector.detect(images), detector.detect(images[1:2])
    torch.testing.assert_close(together.scores[1:2], alone.scores, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(together.boxes[1:2], alone.boxes, atol=1e-2, rtol=1e-3)


def test_bytes_and_floats_are_the_same_image_and_neither_is_changed() -> None:
    detector, images = lively(tiny_spec()).eval(), some_images(2)
    floats = images.float()
    torch.testing.assert_close(
        detector.raw_features(images).map, detector.raw_features(floats).map, atol=1e-5, rtol=1e-5
    )
    assert torch.equal(floats, some_images(2).float())
    assert torch.equal(images, some_images(2))


def test_heads_see_the_quantized_map_and_its_gradient_passes() -> None:
    detector = lively(tiny_spec()).train()
    detector.quantizer = Quantizer(QuantizerConfig(), torch.tensor([0.5]))
    images = some_images(2)
    features = detector.eval().features(images).map
    raw = detector.raw_features(images).map
    assert torch.equal(features, torch.ceil(raw / 0.5 - 0.5).clamp(min=0) * 0.5)
    sum(our_losses(detector.train(), images, as_targets(some_truth())).values()).backward()
    assert detector.backbone.conv1.weight.grad.any()


def test_proposals_of_a_training_step_carry_no_gradient() -> None:
    detector = lively(tiny_spec()).train()
    output = detector.losses(detector.features(some_images(2)), as_targets(some_truth()), chance())
    assert not output.proposals.boxes.requires_grad
    assert output.proposals.boxes.shape == (2, detector.spec.post_nms, 4)
