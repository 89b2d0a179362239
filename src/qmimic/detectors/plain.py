"""Two backbones designed for CPUs: one convolution after another, no shortcuts, no pooling.

Arithmetic is not all that costs time on a CPU: 7x7 kernels on few channels, pooling and sums of maps are slower than
their multiply-accumulates suggest. Here a stage begins with its stride, and at `/16` its channels fill whole vectors.
"""

from dataclasses import replace
from itertools import pairwise

from torch import Tensor, nn

from qmimic.contracts import ChannelGroup, Features, FusedPair, QuantizationPoint
from qmimic.detectors.batch_norm import BatchNorm2d
from qmimic.detectors.convolution import (
    PointwiseFirst,
    Reparameterised,
    SpatialConvolution,
    at_least_one,
    channels_given,
    channels_read,
    dense,
    fused_pairs,
    inner_points,
)
from qmimic.detectors.levels import LevelledBackbone

Stages = tuple[tuple[int, int], ...]  # channels at full width, and depth, of the stages of strides 2, 4, 8, ...
REPVGG: Stages = ((128, 1), (256, 2), (384, 3), (512, 4), (512, 2))
YUNET: Stages = ((256, 1), (512, 2), (1024, 3), (1024, 3), (1024, 2))


class Plain(LevelledBackbone):
    """Convolutions, each with batch norm and ReLU; the first of a stage halves the map.

    Stages beyond the output stride are left out: dilated, they would cost as much as all stages before them.

    Attributes:
        channels, strides: of the levels.
        width_divisor: n of `repvgg/n`.
    """

    pixel_layers = ("convs.0",)

    def __init__(self, stages: Stages, width_divisor: float, output_stride: int, spatial: SpatialConvolution) -> None:
        super().__init__()
        self.convs, self.norms, self.acts = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        self._maps = {}  # by stride: the last convolution of that stride, and its channels
        inputs, stride = 3, 1
        for channels, depth in stages:
            if stride == output_stride:
                break
            stride *= 2
            for step in [2, *[1] * (depth - 1)]:
                outputs = at_least_one(channels / width_divisor)
                convolution = dense if inputs == 3 else spatial
                self.convs.append(convolution(inputs, outputs, step, 1, False))
                self.norms.append(BatchNorm2d(outputs))
                self.acts.append(nn.ReLU(inplace=True))
                inputs = outputs
            self._maps[stride] = len(self.convs) - 1, inputs
        self.width_divisor = width_divisor
        self.keep_levels((stride,))
        self.start()
        for module in self.modules():
            if isinstance(module, Reparameterised):
                module.start()

    def forward(self, x: Tensor) -> Features:
        """Normalised images [B, 3, H, W] to levels, after ReLU."""
        maps = []
        for place, (conv, norm, act) in enumerate(zip(self.convs, self.norms, self.acts, strict=True)):
            x = act(norm(conv(x)))
            if place in self._places:
                maps.append(x)
        return Features.of(maps, self.strides)

    def stages(self) -> tuple[tuple[str, ...], ...]:
        """See `Backbone.stages`: a stage begins where the map is halved."""
        limits = [0, *(last + 1 for last, _ in self._maps.values())]
        return tuple(
            tuple(f"{kind}.{place}" for place in range(*limit) for kind in ("convs", "norms"))
            for limit in pairwise(limits)
        )

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """See `Part.channel_groups`."""
        found: list[ChannelGroup] = []
        for place, conv in enumerate(self.convs):
            if found:
                found[-1] = found[-1].joined(channels_read(f"convs.{place}", conv))
            levels = tuple(n for n, own in enumerate(self._places) if own == place)
            found.append(replace(channels_given(f"convs.{place}", conv, f"norms.{place}"), levels=levels))
        return tuple(found)

    def fused_pairs(self) -> tuple[FusedPair, ...]:
        """See `Part.fused_pairs`."""
        pairs = [fused_pairs(f"convs.{n}", conv, f"norms.{n}") for n, conv in enumerate(self.convs)]
        return sum(pairs, ())

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        """See `Part.quantization_points`: behind every convolution."""
        found: list[QuantizationPoint] = []
        for place, conv in enumerate(self.convs):
            level = self._places.index(place) if place in self._places else None
            found += [*inner_points(f"convs.{place}", conv), QuantizationPoint(f"acts.{place}", level=level)]
        return tuple(found)


def repvgg(width_divisor: float, output_stride: int) -> Plain:
    """3x3 convolutions, each trained as the sum of a 3x3 and a 1x1 convolution (RepVGG: Ding et al., CVPR 2021)."""
    return Plain(REPVGG, width_divisor, output_stride, Reparameterised)


def yunet(width_divisor: float, output_stride: int) -> Plain:
    """1x1 convolutions, each followed by a 3x3 convolution within each channel (YuNet: Wu et al., MIR 2023)."""
    return Plain(YUNET, width_divisor, output_stride, PointwiseFirst)
