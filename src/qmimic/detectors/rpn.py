"""Region proposal network (Ren et al., NIPS 2015): objectness and boxes from the map, losses and proposals."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmimic import boxes as box_ops
from qmimic.config import DetectorConfig
from qmimic.contracts import ChannelGroup, Part, Proposals, QuantizationPoint
from qmimic.data.targets import Targets
from qmimic.detectors.assignment import assign, assigned_boxes, sample
from qmimic.processes import Source, mean_over

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)
HIGH_IOU, LOW_IOU = 0.7, 0.3
NMS_IOU = 0.7
POSITIVE_SHARE = 0.5
SMOOTH_L1_BETA = 1 / 9


class RPN(Part):
    """A 3x3 convolution and two 1x1 convolutions over the map.

    Args:
        channels: channels of the map.
        anchors: number of anchors at each place.
        config: sampling and suppression.
    """

    def __init__(self, channels: int, anchors: int, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.deltas = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 [B, N] and deltas float32 [B, N, 4] of all anchors, from a map [B, C, H, W]."""
        hidden = F.relu(self.conv(features), inplace=True)
        logits = self.objectness(hidden).flatten(1)
        deltas = self.deltas(hidden)
        batch, _, height, width = deltas.shape
        deltas = deltas.view(batch, -1, 4, height, width).permute(0, 1, 3, 4, 2).reshape(batch, -1, 4)
        return logits.float(), deltas.float()

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """See `Part.channel_groups`."""
        return ChannelGroup((), ("conv",), levels=(0,)), ChannelGroup(("conv",), ("objectness", "deltas"))

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        """See `Part.quantization_points`; the last layers' outputs stay float."""
        return (QuantizationPoint("conv"),)

    @torch.no_grad()
    def propose(self, logits: Tensor, deltas: Tensor, anchors: Tensor, size: tuple[int, int]) -> Proposals:
        """The best regions after suppression.

        Args:
            logits: [B, N]; deltas: [B, N, 4]; anchors: [N, 4].
            size: height and width of the network's input, pixels.
        """
        candidates = self.candidates(logits, deltas, anchors, size)
        sides = candidates[..., 2:] - candidates[..., :2]
        valid = (sides > 1e-3).all(-1)
        stays = box_ops.suppress(candidates, valid, NMS_IOU, self.config.post_nms)
        return first(candidates, stays, self.config.post_nms)

    @torch.no_grad()
    def candidates(self, logits: Tensor, deltas: Tensor, anchors: Tensor, size: tuple[int, int]) -> Tensor:
        """The best boxes before suppression, [B, K, 4] in falling order of objectness. Args as `propose`."""
        index = logits.topk(min(self.config.pre_nms, logits.shape[1]), sorted=True).indices
        boxes = box_ops.decode(box_ops.take(deltas, index), anchors[index], DELTA_WEIGHTS)
        return box_ops.clip(boxes, size)

    def losses(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, targets: Targets, source: Source
    ) -> tuple[Tensor, Tensor]:
        """L_cls^rpn and L_reg^rpn on a sample of anchors, scalars.

        Args:
            logits: [B, N]; deltas: [B, N, 4]; anchors: [N, 4].
            targets: ground truth.
            source: of the sample.
        """
        with torch.no_grad():
            assigned = assign(anchors[None], targets, HIGH_IOU, LOW_IOU, keep_best=True)
            sampled = sample(assigned, self.config.rpn_samples, POSITIVE_SHARE, source)
            boxes, _ = assigned_boxes(targets, assigned, sampled)
            wanted = box_ops.encode(boxes, anchors[sampled.index], DELTA_WEIGHTS)
            count = mean_over(sampled.valid.sum()).clamp(min=1)
        classification = F.binary_cross_entropy_with_logits(
            logits.gather(1, sampled.index), sampled.positive.float(), sampled.valid.float(), reduction="sum"
        )
        distance = F.smooth_l1_loss(box_ops.take(deltas, sampled.index), wanted, reduction="none", beta=SMOOTH_L1_BETA)
        return classification / count, (distance.sum(-1) * sampled.positive).sum() / count


def first(boxes: Tensor, stays: Tensor, count: int) -> Proposals:
    """The first `count` of boxes [B, K, 4] that stay, in their order: [B, count, 4], padded with invalid zeros."""
    candidates = boxes.shape[1]
    place = stays.cumsum(1) - 1
    # Boxes that go, or come after `count`, are written one past the end, which is cut off.
    place = torch.where(stays & (place < count), place, count)
    packed = boxes.new_zeros(boxes.shape[0], count + 1, 4)
    packed.scatter_(1, place[..., None].expand(-1, candidates, 4), boxes)
    valid = torch.arange(count, device=boxes.device) < stays.sum(1, keepdim=True)
    return Proposals(packed[:, :count] * valid[..., None], valid)
