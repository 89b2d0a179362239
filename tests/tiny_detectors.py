"""Detectors small enough for tests, and ground truth for them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qmimic.data.targets import PADDING, Targets
from qmimic.detectors.architectures import parse_spec
from qmimic.detectors.build import build
from qmimic.detectors.detector import Detector
from qmimic.detectors.one_stage import OneStage
from qmimic.detectors.spec import DetectorSpec

ANCHORS = ((12.0, 12.0), (30.0, 24.0), (60.0, 70.0))


def tiny_spec(**settings: object) -> DetectorSpec:
    """Three classes, 96 x 96 pixels, three anchors; settings as the recipe's."""
    defaults = {
        "backbone": "resnet18/16",
        "classes": ("cat", "dog", "ox"),
        "size": (96, 96),
        "anchors": ANCHORS,
        "head_width": 32,
        "pre_nms": 60,
        "post_nms": 20,
    }
    return parse_spec({"architecture": "faster_rcnn"} | defaults | settings)


def lively(spec: DetectorSpec, seed: int = 0) -> Detector:
    """A detector whose batch norms have statistics and whose outputs differ from place to place."""
    detector = build(spec, seed)
    generator = torch.Generator().manual_seed(seed)
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, std=0.3, generator=generator)
            module.momentum = 1.0
    with torch.no_grad():
        detector.raw_features(some_images(seed + 1, 4, spec.size))  # momentum 1: these images' statistics
        for layer, gain in ((detector.rpn.conv, 8), (detector.rpn.objectness, 30), (detector.rpn.deltas, 6)):
            layer.weight *= gain
        detector.head.scores.weight *= 60
        detector.head.deltas.weight *= 300
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.1
    return detector


def one_stage(seed: int = 0, **settings: object) -> OneStage:
    """Three classes and levels of strides 8, 16 and 32 at 96 x 96 pixels; outputs that differ from place to place."""
    defaults = {"backbone": "resnet18/16", "classes": ("cat", "dog", "ox"), "size": (96, 96), "levels": (8, 16, 32)}
    detector = build(parse_spec({"architecture": "one_stage"} | defaults | settings), seed)
    assert isinstance(detector, OneStage)
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in detector.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5, generator=generator)
        nn.init.normal_(norm.bias, std=0.3, generator=generator)
        norm.momentum = 1.0
    with torch.no_grad():
        for out in detector.head.out:
            out.weight *= 40
        detector.head(detector.features(some_images(seed + 1, 4, detector.spec.size)).maps)
    for norm in norms:
        norm.momentum = 0.1
    return detector


def some_images(seed: int, batch: int = 2, size: tuple[int, int] = (96, 96)) -> Tensor:
    """Bright and dark blocks in colour with a little noise, uint8."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.rand(batch, 3, 6, 6, generator=generator) * 220
    smooth = nn.functional.interpolate(blocks, size, mode="nearest")
    return (smooth + torch.rand(batch, 3, *size, generator=generator) * 35).to(torch.uint8)


@dataclass(frozen=True)
class Truth:
    """Ground truth of one image: boxes [M, 4] and labels [M]."""

    boxes: Tensor
    labels: Tensor


def some_truth() -> list[Truth]:
    """Two images, with two boxes and with one; every box overlaps some anchor."""
    return [
        Truth(torch.tensor([[10.0, 12.0, 44.0, 35.0], [50.0, 40.0, 95.0, 96.0]]), torch.tensor([2, 0])),
        Truth(torch.tensor([[33.0, 50.0, 47.0, 61.0]]), torch.tensor([1])),
    ]


def as_targets(truth: list[Truth], places: int = 4) -> Targets:
    """The same, padded to one shape."""
    boxes = torch.zeros(len(truth), places, 4)
    labels = torch.full((len(truth), places), PADDING)
    for row, one in enumerate(truth):
        boxes[row, : len(one.boxes)] = one.boxes
        labels[row, : len(one.labels)] = one.labels
    return Targets(boxes, labels)
