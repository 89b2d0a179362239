"""VGG16 with batch norm (Simonyan & Zisserman, ICLR 2015) at any width divisor.

Layers are numbered as in torchvision's `vgg16_bn().features`, so its full-width weights load unchanged.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from torch import Tensor, nn

from qmimic.contracts import ChannelGroup, Features, FusedPair, QuantizationPoint
from qmimic.detectors.batch_norm import BatchNorm2d
from qmimic.detectors.convolution import (
    Separable,
    SpatialConvolution,
    at_least_one,
    channels_given,
    channels_read,
    dense,
    fused_pairs,
    grouped,
    inner_points,
    whole_groups,
)
from qmimic.detectors.levels import LevelledBackbone

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG(LevelledBackbone):
    """The thirteen convolutions of VGG16, with the fourth pooling at output strides 16 and 32 and the fifth only at 32.

    A level is the output of the last convolution of its stride; that of stride 32 is the fifth pooling's.

    Attributes:
        channels, strides: of the levels.
        width_divisor: n of `vgg16/n`.
    """

    called = "VGG16"
    pixel_layers = ("features.0",)

    def __init__(
        self,
        width_divisor: float,
        output_stride: int,
        spatial: SpatialConvolution = dense,
        rounding: Callable[[float], int] = at_least_one,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, stride, dilation = 3, 1, 1
        self._maps = {}  # by stride: the last layer of that stride, and its channels
        for stage, (channels, depth) in enumerate(STAGES, start=1):
            outputs = rounding(channels / width_divisor)
            for _ in range(depth):
                # With three input channels, a cheaper convolution saves nothing.
                convolution = dense if inputs == 3 else spatial
                layers += [convolution(inputs, outputs, 1, dilation, True), BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            self._maps[stride] = len(layers) - 1, inputs
            if stride < output_stride:
                layers.append(nn.MaxPool2d(2))
                stride *= 2
                self._maps[stride] = len(layers) - 1, inputs
            elif stage < len(STAGES):
                layers.append(nn.Identity())  # keeps torchvision's numbering of the layers that follow
                dilation *= 2
        self.features = nn.Sequential(*layers)
        self.start()
        self.width_divisor = width_divisor
        self.keep_levels((stride,))

    def forward(self, x: Tensor) -> Features:
        """Normalised images [B, 3, H, W] to levels, after ReLU."""
        maps = []
        for place, layer in enumerate(self.features):
            x = layer(x)
            if place in self._places:
                maps.append(x)
        return Features.of(maps, self.strides)

    def stages(self) -> tuple[tuple[str, ...], ...]:
        """See `Backbone.stages`."""
        ends = [place for place, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d | nn.Identity)]
        limits = [0, *(place + 1 for place in ends[: len(STAGES) - 1]), len(self.features)]
        return tuple(tuple(f"features.{place}" for place in range(*limit)) for limit in pairwise(limits))

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """See `Part.channel_groups`."""
        found: list[ChannelGroup] = []
        for place in self._convolutions():
            name, conv = f"features.{place}", self.features[place]
            if found:
                found[-1] = found[-1].joined(channels_read(name, conv))
            found.append(replace(channels_given(name, conv, f"features.{place + 1}"), levels=self._levels(place)))
        return tuple(found)

    def fused_pairs(self) -> tuple[FusedPair, ...]:
        """See `Part.fused_pairs`."""
        found = [
            fused_pairs(f"features.{place}", self.features[place], f"features.{place + 1}")
            for place in self._convolutions()
        ]
        return sum(found, ())

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        """See `Part.quantization_points`: behind each convolution, or behind its pooling, which is faster on floats."""
        found: list[QuantizationPoint] = []
        for place in self._convolutions():
            found += inner_points(f"features.{place}", self.features[place])
            pooled = place + 3 < len(self.features) and isinstance(self.features[place + 3], nn.MaxPool2d)
            if not pooled or place + 2 in self._places:
                found.append(QuantizationPoint(f"features.{place + 1}", level=self._level(place + 2)))
            if pooled:
                found.append(QuantizationPoint(f"features.{place + 3}", level=self._level(place + 3)))
        return tuple(found)

    def _level(self, place: int) -> int | None:
        """The level that a layer gives."""
        return self._places.index(place) if place in self._places else None

    def _levels(self, convolution: int) -> tuple[int, ...]:
        """The levels with a convolution's channels: its ReLU's output, and that of a pooling behind it."""
        found = (self._level(convolution + 2), self._level(convolution + 3))
        return tuple(level for level in found if level is not None)

    def _convolutions(self) -> list[int]:
        """Indices of the convolutions; a batch norm and a ReLU follow each, and a pooling the last of a stage."""
        return [place for place, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d | Separable)]


def vgg16(width_divisor: float, output_stride: int) -> VGG:
    """VGG16 at 1/width_divisor of its channels."""
    return VGG(width_divisor, output_stride)


def vgg16_separable(width_divisor: float, output_stride: int) -> VGG:
    """VGG16 with depthwise-separable convolutions, a baseline of the paper."""
    return VGG(width_divisor, output_stride, Separable)


def vgg16_grouped(width_divisor: float, output_stride: int) -> VGG:
    """VGG16 with group convolutions, a baseline of the paper; channels are rounded to whole groups."""
    return VGG(width_divisor, output_stride, grouped, whole_groups)
