"""Two-stage detectors on one map, of fixed shape: no loop over images, levels or anchors.

Faster R-CNN (Ren et al., NIPS 2015) and R-FCN (Dai et al., NIPS 2016) differ only in the head.
"""

import math
from abc import abstractmethod

import torch
from torch import Tensor

from qmimic.boxes import take
from qmimic.contracts import BatchDetections, ExportParts, Features, Proposals, TrainingOutput
from qmimic.data.targets import Targets
from qmimic.detectors.anchors import anchor_grid
from qmimic.detectors.assignment import Assignment, assign, assigned_boxes, everything, sample
from qmimic.detectors.backbones import build_backbone
from qmimic.detectors.detector import Detector
from qmimic.detectors.position_sensitive_head import PositionSensitiveHead
from qmimic.detectors.regions import (
    RegionHead,
    detect_regions,
    hardest,
    pad_with_truth,
    region_boxes,
    region_losses,
    region_scores,
)
from qmimic.detectors.rpn import RPN
from qmimic.detectors.spec import TwoStageSpec
from qmimic.detectors.two_layer_head import TwoLayerHead
from qmimic.processes import Source, mean_over

HEAD_IOU = 0.5
HEAD_POSITIVE_SHARE = 0.25


class TwoStage(Detector):
    """A backbone of one level, an RPN and a head over regions; subclasses differ in the head.

    Attributes:
        anchors: float32 [N, 4], xyxy in pixels, ordered by anchor, row, column.
    """

    anchors: Tensor
    spec: TwoStageSpec

    def __init__(self, spec: TwoStageSpec) -> None:
        super().__init__(spec, build_backbone(spec.backbone, spec.output_stride))
        (channels,) = self.channels
        width = spec.head_width or max(1, math.ceil(1024 / self.backbone.width_divisor))
        self.rpn = RPN(channels, len(spec.anchors), spec)
        self.head = self.make_head(channels, width, spec)
        self.to(memory_format=torch.channels_last)
        self.register_buffer("anchors", anchor_grid(spec.anchors, spec.size, spec.output_stride), persistent=False)

    @abstractmethod
    def make_head(self, channels: int, width: int, spec: TwoStageSpec) -> RegionHead:
        """The head with fresh weights.

        Args:
            channels: of the map.
            width: of the head's hidden layers.
            spec: classes, how regions are pooled, and to what size.
        """
        raise NotImplementedError

    def losses(self, features: Features, targets: Targets, source: Source) -> TrainingOutput:
        """The four detection losses.

        Args:
            features: what the RPN and the head see.
            targets: ground truth.
            source: of the samples.
        """
        logits, deltas = self.rpn(features.map)
        rpn_cls, rpn_reg = self.rpn.losses(logits, deltas, self.anchors, targets, source)
        proposals = self.rpn.propose(logits, deltas, self.anchors, self.spec.size)
        with torch.no_grad():
            rois, valid = pad_with_truth(proposals.boxes, proposals.valid, targets)
            assigned = assign(rois, targets, HEAD_IOU, HEAD_IOU, keep_best=False)
            usable = Assignment(assigned.index, assigned.positive & valid, assigned.negative & valid)
            if self.spec.ohem:
                sampled = everything(usable)
            else:
                sampled = sample(usable, self.spec.roi_samples, HEAD_POSITIVE_SHARE, source)
            boxes, labels = assigned_boxes(targets, assigned, sampled)
            rois = take(rois, sampled.index)
        logits, deltas = self.head(features.map, rois)
        entropy, distance = region_losses(logits, deltas, rois, boxes, labels, sampled.positive)
        counts = sampled.valid
        if self.spec.ohem:
            counts = hardest(entropy + distance, counts, self.spec.roi_samples)
        count = mean_over(counts.sum()).clamp(min=1)
        det_cls, det_reg = (entropy * counts).sum() / count, (distance * counts).sum() / count
        losses = {"rpn_cls": rpn_cls, "rpn_reg": rpn_reg, "det_cls": det_cls, "det_reg": det_reg}
        return TrainingOutput(losses, proposals)

    @property
    def anchor_sizes(self) -> tuple[tuple[float, float], ...]:
        """See `Detector.anchor_sizes`."""
        return self.spec.anchors

    @property
    def second_stage(self) -> str:
        """See `Detector.second_stage`."""
        return self.spec.architecture

    def region_outputs(self, features: Features, regions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Detector.region_outputs`."""
        logits, deltas = self.head(features.map, regions)
        return logits, deltas

    def export_parts(self) -> ExportParts:
        """See `Detector.export_parts`."""
        self.head.check_export()
        return ExportParts(self.candidates, self.classify_regions, self.region_count)

    def placed(self) -> tuple[Tensor, ...]:
        """See `Detector.placed`: the anchors."""
        height, width = (side // self.spec.output_stride for side in self.spec.size)
        return (self.anchors.view(-1, height, width, 4),)

    @property
    def region_count(self) -> int:
        """See `Detector.region_count`."""
        return self.spec.post_nms

    @torch.no_grad()
    def propose(self, features: Features) -> Proposals:
        """The RPN's regions after suppression."""
        logits, deltas = self.rpn(features.map)
        return self.rpn.propose(logits, deltas, self.anchors, self.spec.size)

    @torch.no_grad()
    def candidates(self, features: Features) -> Tensor:
        """Regions before suppression, [B, K, 4], in falling order of objectness, for callers that suppress."""
        logits, deltas = self.rpn(features.map)
        return self.rpn.candidates(logits, deltas, self.anchors, self.spec.size)

    @torch.no_grad()
    def classify_regions(self, features: Features, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, P, K] and boxes [B, P, K or 1, 4] of regions [B, P, 4], before threshold and suppression."""
        logits, deltas = self.head(features.map, regions)
        return region_scores(logits), region_boxes(deltas, regions)

    @torch.no_grad()
    def score_boxes(self, features: Features) -> tuple[Tensor, Tensor]:
        """See `Detector.score_boxes`; N is P, the number of regions."""
        proposals = self.propose(features)
        scores, boxes = self.classify_regions(features, proposals.boxes)
        return boxes, torch.where(proposals.valid[..., None], scores, -1.0)

    @torch.no_grad()
    def run_heads(self, features: Features, regions: Tensor) -> None:
        """See `Detector.run_heads`."""
        self.rpn(features.map)
        self.head(features.map, regions)

    @torch.no_grad()
    def detect_on(self, features: Features) -> BatchDetections:
        """See `Detector.detect_on`."""
        proposals = self.propose(features)
        logits, deltas = self.head(features.map, proposals.boxes)
        return detect_regions(logits, deltas, proposals.boxes, proposals.valid, self.spec.size, self.spec)


class FasterRCNN(TwoStage):
    """Faster R-CNN: each region is pooled from the map and goes through two layers."""

    def make_head(self, channels: int, width: int, spec: TwoStageSpec) -> RegionHead:
        """See `TwoStage.make_head`."""
        return TwoLayerHead(channels, width, spec)


class RFCN(TwoStage):
    """R-FCN: position-sensitive maps, over which every region takes a vote."""

    def make_head(self, channels: int, width: int, spec: TwoStageSpec) -> RegionHead:
        """See `TwoStage.make_head`."""
        return PositionSensitiveHead(channels, width, spec)
