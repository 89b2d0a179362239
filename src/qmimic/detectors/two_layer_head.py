"""Faster R-CNN's head (Girshick, ICCV 2015): pooled regions, two layers, then scores and a box for each class."""

import torch.nn.functional as F
from torch import Tensor, nn

from qmimic.contracts import ChannelGroup, QuantizationPoint
from qmimic.detectors.regions import RegionHead
from qmimic.detectors.roi_pooling import ROI_POOLINGS
from qmimic.detectors.spec import TwoStageSpec
from qmimic.errors import InputError


class TwoLayerHead(RegionHead):
    """Two fully connected layers over pooled regions.

    Args:
        channels: channels of the map.
        width: units of the two layers.
        spec: classes, how regions are pooled, and to what size.
    """

    def __init__(self, channels: int, width: int, spec: TwoStageSpec) -> None:
        super().__init__()
        self.spec = spec
        classes = len(spec.classes)
        self.fc1 = nn.Linear(channels * spec.roi_size**2, width)
        self.fc2 = nn.Linear(width, width)
        self.scores = nn.Linear(width, classes + 1)
        self.deltas = nn.Linear(width, 4 * classes)
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.scores.bias)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, features: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 [B, P, 1 + K], background first, and deltas float32 [B, P, K, 4].

        Args:
            features: map [B, C, H, W].
            rois: [B, P, 4], xyxy in pixels of the network's input; no gradient.
        """
        spec = self.spec
        regions = ROI_POOLINGS[spec.roi_pooling](features, rois, spec.roi_size, spec.output_stride)
        # Bin by bin, channels innermost, as RoIAlign leaves them: no copy. (torchvision: channel by channel.)
        x = F.relu(self.fc1(regions.permute(0, 1, 3, 4, 2).flatten(2)), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        return self.scores(x).float(), self.deltas(x).float().unflatten(2, (len(spec.classes), 4))

    def check_export(self) -> None:
        """See `RegionHead.check_export`: no format can write `roi_pooling=pool`."""
        if self.spec.roi_pooling == "pool":
            raise InputError(
                "Faster R-CNN with detector.roi_pooling=pool cannot be exported, since no "
                "standard operator takes maxima over regions; train with detector.roi_pooling=align."
            )

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """See `Part.channel_groups`."""
        return (
            ChannelGroup((), ("fc1",), levels=(0,)),
            ChannelGroup(("fc1",), ("fc2",)),
            ChannelGroup(("fc2",), ("scores", "deltas")),
        )

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        """See `Part.quantization_points`: pooled regions are means of map values, so they need a grid of their own."""
        return QuantizationPoint("fc1", before=True), QuantizationPoint("fc1"), QuantizationPoint("fc2")
