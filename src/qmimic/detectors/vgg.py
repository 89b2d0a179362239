"""VGG16 with batch norm (Simonyan & Zisserman, ICLR 2015) at any width divisor.

Layers are numbered as in torchvision's `vgg16_bn().features`, so its weights at full width load as they stand.
"""

from collections.abc import Callable
from itertools import pairwise

from torch import Tensor, nn

from qmimic.contracts import Backbone, ChannelGroup, Features, FusedPair, QuantizationPoint
from qmimic.detectors.batch_norm import BatchNorm2d
from qmimic.detectors.convolution import (
    Separable,
    SpatialConvolution,
    at_least_one,
    dense,
    fused_pairs,
    grouped,
    inner_points,
    whole_groups,
)

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG(Backbone):
    """The thirteen convolutions of VGG16; the fifth pooling is left out, at output stride 8 the fourth as well.

    Attributes:
        channels, strides: of the one level.
        width_divisor: n of `vgg16/n`.
    """

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
        for stage, (channels, depth) in enumerate(STAGES, start=1):
            outputs = rounding(channels / width_divisor)
            for _ in range(depth):
                # With three input channels there is nothing to save.
                convolution = dense if inputs == 3 else spatial
                layers += [convolution(inputs, outputs, 1, dilation, True), BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                inputs = outputs
            if stage == len(STAGES):
                break
            if stride < output_stride:
                layers.append(nn.MaxPool2d(2))
                stride *= 2
            else:
                layers.append(nn.Identity())  # keeps torchvision's numbers of the layers that follow
                dilation *= 2
        self.features = nn.Sequential(*layers)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        self.channels, self.strides, self.width_divisor = (inputs,), (stride,), width_divisor

    def forward(self, x: Tensor) -> Features:
        """Normalised images [B, 3, H, W] to one level, after ReLU."""
        return Features.of([self.features(x)], self.strides)

    def stages(self) -> tuple[tuple[str, ...], ...]:
        """See `Backbone.stages`."""
        ends = [place for place, layer in enumerate(self.features) if isinstance(layer, nn.MaxPool2d | nn.Identity)]
        limits = [0, *(place + 1 for place in ends), len(self.features)]
        return tuple(tuple(f"features.{place}" for place in range(*limit)) for limit in pairwise(limits))

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """See `Part.channel_groups`."""
        places = self._convolutions()
        inner = [
            ChannelGroup((f"features.{place}", f"features.{place + 1}"), (f"features.{following}",))
            for place, following in pairwise(places)
        ]
        return (*inner, ChannelGroup((f"features.{places[-1]}", f"features.{places[-1] + 1}"), (), levels=(0,)))

    def fused_pairs(self) -> tuple[FusedPair, ...]:
        """See `Part.fused_pairs`."""
        found = [
            fused_pairs(f"features.{place}", self.features[place], f"features.{place + 1}")
            for place in self._convolutions()
        ]
        return sum(found, ())

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        """See `Part.quantization_points`: behind each convolution, or behind the pooling, which is faster on floats."""
        found: list[QuantizationPoint] = []
        places = self._convolutions()
        for place in places:
            found += inner_points(f"features.{place}", self.features[place])
            pooled = place + 3 < len(self.features) and isinstance(self.features[place + 3], nn.MaxPool2d)
            level = 0 if place == places[-1] else None
            found.append(QuantizationPoint(f"features.{place + 3 if pooled else place + 1}", level=level))
        return tuple(found)

    def _convolutions(self) -> list[int]:
        """Their places; a batch norm and a ReLU follow each, and a pooling at the end of a stage."""
        return [place for place, layer in enumerate(self.features) if isinstance(layer, nn.Conv2d | Separable)]


def vgg16(width_divisor: float, output_stride: int) -> VGG:
    """VGG16 at 1/width_divisor of its channels."""
    return VGG(width_divisor, output_stride)


def vgg16_separable(width_divisor: float, output_stride: int) -> VGG:
    """VGG16 of depthwise-separable convolutions, a baseline of the paper."""
    return VGG(width_divisor, output_stride, Separable)


def vgg16_grouped(width_divisor: float, output_stride: int) -> VGG:
    """VGG16 of group convolutions, a baseline of the paper; channels are rounded to whole groups."""
    return VGG(width_divisor, output_stride, grouped, whole_groups)
