"""Two-stage detectors on one map, of fixed shape: no loop over images, levels or anchors.

Faster R-CNN (Ren et al., NIPS 2015) and R-FCN (Dai et al., NIPS 2016) differ in the head alone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qmimic.boxes import take
from qmimic.data.targets import Targets
from qmimic.detectors.anchors import anchor_grid
from qmimic.detectors.backbones import build_backbone
from qmimic.detectors.matching import Matches, everything, match, matched_boxes, sample
from qmimic.detectors.position_sensitive_head import PositionSensitiveHead
from qmimic.detectors.quantize import Quantizer
from qmimic.detectors.regions import (
    BatchDetections,
    detect_regions,
    hardest,
    pad_with_truth,
    region_boxes,
    region_losses,
    region_scores,
)
from qmimic.detectors.rpn import RPN, Proposals
from qmimic.detectors.spec import DetectorSpec
from qmimic.detectors.two_layer_head import TwoLayerHead
from qmimic.processes import Source, mean_over

HEAD_IOU = 0.5
HEAD_POSITIVE_SHARE = 0.25
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # ImageNet's, of RGB in 0..255


HEADS: dict[str, Callable[[int, int, DetectorSpec], nn.Module]] = {
    "faster_rcnn": TwoLayerHead,
    "rfcn": PositionSensitiveHead,
}


@dataclass(frozen=True)
class TrainingOutput:
    """What a training step of the detector gives.

    Attributes:
        losses: `rpn_cls`, `rpn_reg`, `det_cls`, `det_reg`, scalars.
        proposals: the regions of this step, for the mimic loss.
    """

    losses: dict[str, Tensor]
    proposals: Proposals


class Detector(nn.Module):
    """Backbone, RPN and a head over regions.

    Attributes:
        spec: what it was built from.
        quantizer: if set, RPN and head see the quantized map.
        anchors: [N, 4] in pixels, order anchor, row, column.
    """

    anchors: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, spec: DetectorSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = build_backbone(spec.backbone, spec.output_stride)
        width = spec.head_width or max(1, math.ceil(1024 / self.backbone.width_divisor))
        self.rpn = RPN(self.backbone.channels, len(spec.anchors), spec)
        self.head = HEADS[spec.architecture](self.backbone.channels, width, spec)
        self.to(memory_format=torch.channels_last)
        self.quantizer: Quantizer | None = None
        self.register_buffer("anchors", anchor_grid(spec.anchors, spec.size, spec.output_stride), persistent=False)
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)

    def raw_features(self, images: Tensor) -> Tensor:
        """The backbone's map [B, C, H/stride, W/stride] before any quantizer.

        Args:
            images: RGB [B, 3, H, W], uint8 or float in 0..255.
        """
        out: Tensor = self.backbone(self._normalize(images))
        return out

    def _normalize(self, images: Tensor) -> Tensor:
        """Images minus `mean`, by `std`, in channels-last memory."""
        batch, channels, height, width = images.shape
        # A careless pass over the images costs as much as a narrow layer. So the layout changes while they are uint8,
        # a row of pixels is one long vector, and there is one large buffer.
        rows = images.permute(0, 2, 3, 1).contiguous().view(batch * height, width * channels)
        rows = rows.float() if rows.dtype == torch.uint8 else rows.clone()
        rows.sub_(self.mean.flatten().repeat(width)).div_(self.std.flatten().repeat(width))
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)

    def features(self, images: Tensor) -> Tensor:
        """The map that RPN and head see: quantized if the detector has a quantizer. Args as `raw_features`."""
        features = self.raw_features(images)
        return features if self.quantizer is None else self.quantizer(features)

    def losses(self, features: Tensor, targets: Targets, source: Source) -> TrainingOutput:
        """The four detection losses.

        Args:
            features: map that RPN and head see, [B, C, H/stride, W/stride].
            targets: ground truth.
            source: of the samples.
        """
        logits, deltas = self.rpn(features)
        rpn_cls, rpn_reg = self.rpn.losses(logits, deltas, self.anchors, targets, source)
        proposals = self.rpn.propose(logits, deltas, self.anchors, self.spec.size)
        with torch.no_grad():
            rois, valid = pad_with_truth(proposals.boxes, proposals.valid, targets)
            matches = match(rois, targets, HEAD_IOU, HEAD_IOU, keep_best=False)
            usable = Matches(matches.index, matches.positive & valid, matches.negative & valid)
            if self.spec.ohem:
                sampled = everything(usable)
            else:
                sampled = sample(usable, self.spec.roi_samples, HEAD_POSITIVE_SHARE, source)
            boxes, labels = matched_boxes(targets, matches, sampled)
            rois = take(rois, sampled.index)
        logits, deltas = self.head(features, rois)
        entropy, distance = region_losses(logits, deltas, rois, boxes, labels, sampled.positive)
        counts = sampled.valid
        if self.spec.ohem:
            counts = hardest(entropy + distance, counts, self.spec.roi_samples)
        count = mean_over(counts.sum()).clamp(min=1)
        det_cls, det_reg = (entropy * counts).sum() / count, (distance * counts).sum() / count
        losses = {"rpn_cls": rpn_cls, "rpn_reg": rpn_reg, "det_cls": det_cls, "det_reg": det_reg}
        return TrainingOutput(losses, proposals)

    def propose(self, features: Tensor) -> Proposals:
        """Regions for a map [B, C, H/stride, W/stride]."""
        logits, deltas = self.rpn(features)
        return self.rpn.propose(logits, deltas, self.anchors, self.spec.size)

    @torch.no_grad()
    def candidates(self, features: Tensor) -> Tensor:
        """Regions before suppression, [B, K, 4] in falling order of objectness, for whoever suppresses elsewhere."""
        logits, deltas = self.rpn(features)
        return self.rpn.candidates(logits, deltas, self.anchors, self.spec.size)

    @torch.no_grad()
    def judge(self, features: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, P, K] and boxes [B, P, K or 1, 4] of regions [B, P, 4], before threshold and suppression."""
        logits, deltas = self.head(features, regions)
        return region_scores(logits), region_boxes(deltas, regions)

    @torch.no_grad()
    def detect(self, images: Tensor) -> BatchDetections:
        """Detections in images [B, 3, H, W], RGB, uint8 or float in 0..255, of the spec's size."""
        return self.detect_on(self.features(images))

    @torch.no_grad()
    def detect_on(self, features: Tensor) -> BatchDetections:
        """Detections from the map [B, C, H/stride, W/stride] that RPN and head see."""
        proposals = self.propose(features)
        logits, deltas = self.head(features, proposals.boxes)
        return detect_regions(logits, deltas, proposals.boxes, proposals.valid, self.spec.size, self.spec)
