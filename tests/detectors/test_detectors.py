"""What every detector can tell of itself, against sums by hand; folding of batch norm."""

import copy

import pytest
import torch
from torch import nn

from qmimic.config import QuantizerConfig
from qmimic.detectors.build import (
    _NothingDrawn,
    build,
    build_unset,
    equal_cost,
    fold_batch_norm,
    mac_count,
    parameter_count,
)
from qmimic.detectors.quantize import Quantizer
from qmimic.errors import InputError
from tiny_detectors import lively, some_images, tiny_spec

# resnet18/64 on 64 x 64 pixels: inputs, outputs, kernel and side of the output of every convolution.
RESNET18_64 = [
    (3, 1, 7, 32),
    *[(1, 1, 3, 16)] * 4,
    *[(1, 2, 3, 8), (2, 2, 3, 8), (1, 2, 1, 8), (2, 2, 3, 8), (2, 2, 3, 8)],
    *[(2, 4, 3, 4), (4, 4, 3, 4), (2, 4, 1, 4), (4, 4, 3, 4), (4, 4, 3, 4)],
    *[(4, 8, 3, 4), (8, 8, 3, 4), (4, 8, 1, 4), (8, 8, 3, 4), (8, 8, 3, 4)],
]
VGG16_64 = [
    *[(3, 1, 3, 64), (1, 1, 3, 64)],
    *[(1, 2, 3, 32), (2, 2, 3, 32)],
    *[(2, 4, 3, 16), (4, 4, 3, 16), (4, 4, 3, 16)],
    *[(4, 8, 3, 8), (8, 8, 3, 8), (8, 8, 3, 8)],
    *[(8, 8, 3, 4), (8, 8, 3, 4), (8, 8, 3, 4)],
]
FOLDED = [
    "resnet18/16",
    "resnet50/16",
    "vgg16/16",
    "resnet18_separable/12",
    "vgg16_separable/12",
    "resnet18_grouped/12",
]
RPN = [(8, 8, 3, 4), (8, 2, 1, 4), (8, 8, 1, 4)]  # two anchors
HEAD = [(8 * 3 * 3, 6), (6, 6), (6, 1 + 3), (6, 4 * 3)]  # three classes, regions of 3 x 3, width 6
SMALL = {
    "size": (64, 64),
    "anchors": ((12.0, 12.0), (30.0, 24.0)),
    "roi_size": 3,
    "head_width": 6,
    "post_nms": 10,
}


@pytest.mark.parametrize(("backbone", "convolutions"), [("resnet18/64", RESNET18_64), ("vgg16/64", VGG16_64)])
def test_parameters_are_those_of_a_folded_network(backbone: str, convolutions: list[tuple[int, ...]]) -> None:
    detector = build(tiny_spec(backbone=backbone, **SMALL))
    by_hand = sum(i * o * k * k + o for i, o, k, _ in convolutions + RPN) + sum(i * o + o for i, o in HEAD)
    assert parameter_count(detector) == by_hand


@pytest.mark.parametrize("roi_pooling", ["align", "pool"])
@pytest.mark.parametrize(("backbone", "convolutions"), [("resnet18/64", RESNET18_64), ("vgg16/64", VGG16_64)])
def test_multiplications_are_those_of_convolutions_and_linear_layers(
    backbone: str, convolutions: list[tuple[int, ...]], roi_pooling: str
) -> None:
    detector = build(tiny_spec(backbone=backbone, roi_pooling=roi_pooling, **SMALL))
    map_and_proposals = sum(i * o * k * k * side * side for i, o, k, side in convolutions + RPN)
    head = 10 * sum(i * o for i, o in HEAD)
    assert mac_count(detector) == map_and_proposals + head


def test_counting_leaves_the_detector_as_it_was() -> None:
    detector = build(tiny_spec(backbone="resnet18/64", **SMALL)).train()
    before = copy.deepcopy(detector.state_dict())
    mac_count(detector)
    parameter_count(detector)
    assert detector.training
    for name, value in detector.state_dict().items():
        assert torch.equal(value, before[name])


@torch.no_grad()
@pytest.mark.parametrize("backbone", FOLDED)
def test_folding_batch_norm_changes_no_map(backbone: str) -> None:
    # In float64, where rounding hides nothing.
    detector = lively(tiny_spec(backbone=backbone)).eval().double()
    folded = fold_batch_norm(detector)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in detector.modules())
    images = some_images(7).double()
    raw = detector.raw_features(images).map
    assert raw.std() > 0.1
    torch.testing.assert_close(folded.raw_features(images).map, raw, atol=1e-9, rtol=1e-9)
    detector.quantizer = Quantizer(QuantizerConfig(), torch.tensor([0.5]))
    assert torch.equal(fold_batch_norm(detector).features(images).map, detector.features(images).map)


@torch.no_grad()
@pytest.mark.parametrize("backbone", FOLDED)
def test_folding_batch_norm_changes_no_detection(backbone: str) -> None:
    detector, images = lively(tiny_spec(backbone=backbone)).eval(), some_images(7)
    ours, folded = detector.detect(images), fold_batch_norm(detector).detect(images)
    assert ours.valid.sum() > 10
    torch.testing.assert_close(folded.scores, ours.scores, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(folded.boxes, ours.boxes, atol=2e-2, rtol=1e-3)


def test_fresh_weights_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a script's GPU is seeded anew"))
    first = build(tiny_spec(), 3).state_dict()
    after = torch.rand(1)
    torch.default_generator.manual_seed(5)
    assert torch.equal(torch.rand(1), after)  # building drew nothing from the chance of others
    second, other = build(tiny_spec(), 3).state_dict(), build(tiny_spec(), 4).state_dict()
    for name, value in first.items():
        assert torch.equal(value, second[name])
    assert not torch.equal(first["backbone.conv1.weight"], other["backbone.conv1.weight"])
    assert not torch.equal(first["head.fc1.weight"], other["head.fc1.weight"])


@pytest.mark.parametrize(("backbone", "width"), [("resnet18/16", 64), ("resnet18/3", 342), ("vgg16/4096", 1)])
def test_without_a_width_the_head_is_divided_as_the_backbone(backbone: str, width: int) -> None:
    with torch.device("meta"):
        detector = build(tiny_spec(backbone=backbone, head_width=None))
    assert detector.head.fc1.out_features == detector.head.fc2.out_features == width


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(InputError, match="resnet81"):
        build(tiny_spec(backbone="resnet81/16"))


@pytest.mark.parametrize("backbone", ["resnet18/16", "vgg16/32"])
@pytest.mark.parametrize("kind", ["separable", "grouped"])
def test_equal_cost_is_within_a_twentieth(backbone: str, kind: str) -> None:
    spec = tiny_spec(backbone=backbone, size=(128, 128), head_width=None)
    other = equal_cost(spec, f"{backbone.split('/')[0]}_{kind}")
    cost = mac_count(build(spec.model_copy(update={"backbone": other})))
    assert cost == pytest.approx(mac_count(build(spec)), rel=0.05)


def test_a_family_at_equal_cost_to_itself_is_itself() -> None:
    spec = tiny_spec(backbone="resnet18/16", head_width=None)
    cost = mac_count(build(spec.model_copy(update={"backbone": equal_cost(spec, "resnet18")})))
    assert cost == mac_count(build(spec))
    with pytest.raises(InputError, match="Unknown backbone"):
        equal_cost(spec, "resnet19")


def test_pixels_are_centred() -> None:
    detector = build(tiny_spec())
    pixels = some_images(3).permute(0, 2, 3, 1)
    by_hand = pixels[1, 5, 7].double() - detector.mean.flatten().double()
    if detector.divides:
        by_hand /= detector.std.flatten().double()
    torch.testing.assert_close(detector.centred(pixels)[1, :, 5, 7].double(), by_hand, rtol=1e-6, atol=1e-4)


def test_what_is_built_unset_draws_no_weights_and_all_else() -> None:
    detector, whole = build_unset(tiny_spec()), build(tiny_spec())
    assert detector.state_dict().keys() == whole.state_dict().keys()
    for (name, own), (_, other) in zip(detector.named_buffers(), whole.named_buffers(), strict=True):
        assert torch.equal(own, other), name
    before = torch.get_rng_state()
    with _NothingDrawn():
        nn.Conv2d(3, 3, 3), nn.Linear(3, 3)
        assert torch.equal(torch.get_rng_state(), before)
        assert torch.zeros(9).normal_().all()  # a table of random numbers, say, that no file holds
