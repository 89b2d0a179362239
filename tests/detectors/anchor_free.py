"""A toy unlike the detectors there are: three levels, no anchors, no regions, one head that the levels share."""

from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from qmimic.contracts import (
    Backbone,
    BatchDetections,
    ChannelGroup,
    Features,
    FusedPair,
    Part,
    QuantizationPoint,
    TrainingOutput,
)
from qmimic.data.targets import Targets
from qmimic.detectors.batch_norm import BatchNorm2d
from qmimic.detectors.detector import Detector
from qmimic.detectors.regions import best_detections
from qmimic.detectors.spec import DetectorSpec
from qmimic.processes import Source, mean_over


class Pyramid(Backbone):
    """Strided convolutions; the last three give levels of strides 8, 16 and 32 with equal channels."""

    pixel_layers = ("steps.0.0",)

    def __init__(self, width: int) -> None:
        super().__init__()
        widths = [3, 4, 6, width, width, width]
        self.steps = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, 2, 1, bias=False), BatchNorm2d(b), nn.ReLU(inplace=True))
            for a, b in pairwise(widths)
        )
        self.channels, self.strides, self.width_divisor = (width,) * 3, (8, 16, 32), 1.0

    def forward(self, images: Tensor) -> Features:
        maps = []
        x = images
        for step in self.steps:
            x = step(x)
            maps.append(x)
        return Features.of(maps[2:], self.strides)

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        last = len(self.steps) - 1
        return tuple(
            ChannelGroup(
                (f"steps.{n}.0", f"steps.{n}.1"),
                (f"steps.{n + 1}.0",) if n < last else (),
                levels=(n - 2,) if n >= 2 else (),
            )
            for n in range(last + 1)
        )

    def fused_pairs(self) -> tuple[FusedPair, ...]:
        return tuple(FusedPair(f"steps.{n}.0", f"steps.{n}.1") for n in range(len(self.steps)))

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        return tuple(QuantizationPoint(f"steps.{n}.2", level=n - 2 if n >= 2 else None) for n in range(len(self.steps)))


class SharedHead(Part):
    """A convolution, then a score for each class and the distances to four sides, at every place of every level."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.out = nn.Conv2d(channels, classes + 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.relu(self.conv(x)))

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        return ChannelGroup((), ("conv",), levels=(0, 1, 2)), ChannelGroup(("conv",), ("out",))

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        return (QuantizationPoint("conv"),)


class AnchorFreeSpec(DetectorSpec):
    """Its description: nothing of anchors, proposals or regions."""

    width: int = Field(8, ge=1)


class AnchorFree(Detector):
    """Every place of every level says what is there and how far its sides are."""

    spec: AnchorFreeSpec

    def __init__(self, spec: AnchorFreeSpec) -> None:
        super().__init__(spec, Pyramid(spec.width))
        self.head = SharedHead(spec.width, len(spec.classes))
        places = []
        for stride in self.strides:
            rows, columns = (torch.arange(side // stride) * stride + stride / 2 for side in spec.size)
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            places.append(torch.stack([x, y, torch.full_like(x, stride)], -1).reshape(-1, 3))
        self.register_buffer("places", torch.cat(places), persistent=False)

    def _all(self, features: Features) -> tuple[Tensor, Tensor]:
        """Logits [B, N, K] and boxes [B, N, 4]."""
        out = torch.cat([self.head(one).flatten(2) for one in features.maps], 2).transpose(1, 2)
        classes = len(self.spec.classes)
        sides = F.softplus(out[..., classes:]) * self.places[:, 2:]
        x, y = self.places[:, 0], self.places[:, 1]
        corners = [x - sides[..., 0], y - sides[..., 1], x + sides[..., 2], y + sides[..., 3]]
        return out[..., :classes], torch.stack(corners, -1)

    def losses(self, features: Features, targets: Targets, source: Source) -> TrainingOutput:
        logits, boxes = self._all(features)
        with torch.no_grad():
            x, y = self.places[:, 0, None], self.places[:, 1, None]
            low, high = targets.boxes[:, None, :, :2], targets.boxes[:, None, :, 2:]
            at = torch.stack([x, y], -1)
            inside = ((at > low) & (at < high)).all(-1) & (targets.labels >= 0)[:, None]  # [B, N, M]
            positive, match = inside.any(2), inside.int().argmax(2)
            label = targets.labels.gather(1, match).clamp(min=0)
            wanted = F.one_hot(label, logits.shape[2]) * positive[..., None]
            box = targets.boxes.gather(1, match[..., None].expand(-1, -1, 4))
            count = mean_over(positive.sum()).clamp(min=1)
        entropy = F.binary_cross_entropy_with_logits(logits, wanted.float(), reduction="sum")
        distance = ((boxes - box).abs().sum(-1) / self.places[:, 2] * positive).sum()
        return TrainingOutput({"cls": entropy / count, "reg": distance / count}, None)

    @torch.no_grad()
    def detect_on(self, features: Features) -> BatchDetections:
        boxes, scores = self.score_boxes(features)
        valid = torch.ones_like(scores[..., 0], dtype=torch.bool)
        return best_detections(scores, boxes, valid, self.spec.size, self.spec)

    @torch.no_grad()
    def score_boxes(self, features: Features) -> tuple[Tensor, Tensor]:
        logits, boxes = self._all(features)
        return boxes[:, :, None], logits.sigmoid()
