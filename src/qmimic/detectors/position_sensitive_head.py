"""R-FCN's head (Dai et al., NIPS 2016): position-sensitive maps, over which every region takes a vote.

All weights are in convolutions over the whole map; all that is left to do for a region is a mean.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmimic.contracts import ChannelGroup, QuantizationPoint
from qmimic.detectors.regions import RegionHead
from qmimic.detectors.roi_pooling import ROI_POOLINGS
from qmimic.detectors.spec import TwoStageSpec


def vote(maps: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Position-sensitive RoI pooling and its average vote, as two batched matrix products.

    Bin (i, j) of a region is pooled from maps of its own; the vote is the mean over the k^2 bins. Pooling over a bin is
    separable, so the sum can run over rows and bins (h, i) first, then over columns and bins (w, j); no bin is stored.

    Args:
        maps: [B, n k k, H, W], channel (c k + i) k + j for output c and bin row i, column j (torchvision's order).
        down, across: weights [B, P, k, H] and [B, P, k, W] of the map's rows and columns in the bins; no gradient.

    Returns:
        [B, P, n], dtype of the maps: the mean over bins of `ps_roi_pool` or `ps_roi_align`, depending on the weights.
    """
    batch, channels, height, width = maps.shape
    count, bins = down.shape[1:3]
    outputs = channels // bins**2
    ordered = maps.unflatten(1, (outputs, bins, bins)).permute(0, 2, 4, 3, 5, 1)  # B, i, H, j, W, n
    strips = down.flatten(2).to(maps.dtype) @ ordered.reshape(batch, bins * height, bins * width * outputs)
    strips = strips.view(batch * count, bins * width, outputs)
    voted = torch.bmm(across.reshape(batch * count, 1, bins * width).to(maps.dtype), strips)
    return voted.view(batch, count, outputs) / bins**2


class PositionSensitiveHead(RegionHead):
    """A 1x1 convolution, then k^2 score maps for each class and k^2 maps for each side of a class-agnostic box.

    Args:
        channels: channels of the map.
        width: channels of the 1x1 convolution.
        spec: classes, k, and how bins are pooled.
    """

    def __init__(self, channels: int, width: int, spec: TwoStageSpec) -> None:
        super().__init__()
        self.spec = spec
        self.conv = nn.Conv2d(channels, width, 1)
        self.scores = nn.Conv2d(width, (len(spec.classes) + 1) * spec.roi_size**2, 1)
        self.deltas = nn.Conv2d(width, 4 * spec.roi_size**2, 1)
        nn.init.kaiming_normal_(self.conv.weight, nonlinearity="relu")
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        for layer in (self.conv, self.scores, self.deltas):
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 [B, P, 1 + K], background first, and deltas float32 [B, P, 1, 4].

        Args:
            features: map [B, C, H, W].
            rois: [B, P, 4], xyxy in pixels of the network's input; no gradient.
        """
        spec = self.spec
        hidden = F.relu(self.conv(features), inplace=True)
        maps = torch.cat([self.scores(hidden), self.deltas(hidden)], 1)
        shape = (maps.shape[2], maps.shape[3])
        voted = vote(maps, *ROI_POOLINGS[spec.roi_pooling].bins(rois, spec.roi_size, spec.output_stride, shape))
        return voted[..., :-4].float(), voted[..., None, -4:].float()

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """See `Part.channel_groups`."""
        return ChannelGroup((), ("conv",), levels=(0,)), ChannelGroup(("conv",), ("scores", "deltas"))

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        """See `Part.quantization_points`; the last layers' outputs stay float."""
        return (QuantizationPoint("conv"),)
