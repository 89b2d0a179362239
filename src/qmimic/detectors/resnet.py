"""ResNet-18, -34 and -50 (He et al., CVPR 2016) at any width divisor, with the output stride of a detector.

Parameters are named as in torchvision, so its full-width weights load unchanged. As in R-FCN, the last
stages are dilated instead of strided, so that the map keeps an output stride of 16 or 8.
"""

from collections.abc import Callable
from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor, nn

from qmimic.contracts import ChannelGroup, Features, FusedPair, QuantizationPoint
from qmimic.detectors.batch_norm import BatchNorm2d
from qmimic.detectors.convolution import (
    Conv2d,
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


def pointwise(inputs: int, outputs: int, stride: int = 1) -> Conv2d:
    """A 1x1 convolution without bias."""
    return Conv2d(inputs, outputs, 1, stride, bias=False)


class Block(nn.Module):
    """Convolutions `conv1`, `conv2`, ..., batch norms `bn1`, `bn2`, ..., and a shortcut added to the last of them."""

    depth: int
    expansion: int
    downsample: nn.Sequential | None

    def fused_pairs(self) -> tuple[FusedPair, ...]:
        """Every batch norm of the block, the shortcut's too."""
        numbers = range(1, self.depth + 1)
        own = [fused_pairs(f"conv{n}", self.get_submodule(f"conv{n}"), f"bn{n}") for n in numbers]
        shortcut = () if self.downsample is None else (FusedPair("downsample.0", "downsample.1"),)
        return (*sum(own, ()), *shortcut)

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        """Behind each convolution but the last: the two summands stay float, since no convolution reads them."""
        numbers = range(1, self.depth + 1)
        inner = [inner_points(f"conv{n}", self.get_submodule(f"conv{n}")) for n in numbers]
        summands = [f"bn{self.depth}"] + (["downsample.1"] if self.downsample is not None else [])
        return (
            *sum(inner, ()),
            *(QuantizationPoint(f"bn{n}") for n in range(1, self.depth)),
            *(QuantizationPoint(name, signed=True, summand=True) for name in summands),
        )

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """Channels within the block; its inputs and outputs are the stage's."""
        return tuple(self.given(n).joined(self.read(n + 1)) for n in range(1, self.depth))

    def read(self, number: int) -> ChannelGroup:
        """The channels that a convolution reads."""
        return channels_read(f"conv{number}", self.get_submodule(f"conv{number}"))

    def given(self, number: int) -> ChannelGroup:
        """The channels that a convolution makes."""
        return channels_given(f"conv{number}", self.get_submodule(f"conv{number}"), f"bn{number}")


class BasicBlock(Block):
    """Two 3x3 convolutions and a shortcut."""

    depth, expansion = 2, 1

    def __init__(
        self, inputs: int, width: int, stride: int, first_dilation: int, dilation: int, spatial: SpatialConvolution
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = spatial(inputs, width, stride, first_dilation, False), BatchNorm2d(width)
        self.conv2, self.bn2 = spatial(width, width, 1, dilation, False), BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(pointwise(inputs, width, stride), BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, width, H/stride, W/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class Bottleneck(Block):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the output has four times the block's width."""

    depth, expansion = 3, 4

    def __init__(
        self, inputs: int, width: int, stride: int, first_dilation: int, dilation: int, spatial: SpatialConvolution
    ) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = pointwise(inputs, width), BatchNorm2d(width)
        self.conv2, self.bn2 = spatial(width, width, stride, first_dilation, False), BatchNorm2d(width)
        self.conv3, self.bn3 = pointwise(width, outputs), BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(pointwise(inputs, outputs, stride), BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, 4 width, H/stride, W/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


class ResNet(LevelledBackbone):
    """The four stages of a ResNet without its classifier; a level is the output of the last stage of its stride.

    Attributes:
        channels, strides: of the levels.
        width_divisor: n of `resnet18/n`.
    """

    called = "ResNet"
    pixel_layers = ("conv1",)

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        width_divisor: float,
        output_stride: int,
        spatial: SpatialConvolution = dense,
        rounding: Callable[[float], int] = at_least_one,
    ) -> None:
        super().__init__()
        widths = [rounding(channels / width_divisor) for channels in (64, 128, 256, 512)]
        self.conv1, self.bn1 = Conv2d(3, widths[0], 7, 2, 3, bias=False), BatchNorm2d(widths[0])
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inputs, stride, dilation = widths[0], 4, 1
        self._maps = {}  # by stride: the last stage of that stride, and its channels
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            step, first_dilation = 1, dilation
            if stage > 1:
                if stride < output_stride:
                    step, stride = 2, stride * 2
                else:
                    dilation *= 2  # from its second block on, like torchvision's replace_stride_with_dilation
            blocks = [block(inputs, width, step, first_dilation, dilation, spatial)]
            inputs = width * block.expansion
            blocks += [block(inputs, width, 1, dilation, dilation, spatial) for _ in range(1, depth)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            self._maps[stride] = stage, inputs
        self.width_divisor = width_divisor
        self.keep_levels((stride,))
        self.start()

    def forward(self, x: Tensor) -> Features:
        """Normalised images [B, 3, H, W] to levels, after ReLU."""
        # ReLU and max pooling commute; in this order ReLU has a quarter of the work.
        x = F.relu(self.maxpool(self.bn1(self.conv1(x))), inplace=True)
        maps = []
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
            if stage in self._places:
                maps.append(x)
        return Features.of(maps, self.strides)

    def stages(self) -> tuple[tuple[str, ...], ...]:
        """See `Backbone.stages`."""
        return (("conv1", "bn1"), *((f"layer{stage}",) for stage in (1, 2, 3, 4)))

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """See `Part.channel_groups`. A stage's blocks share the channels that their shortcuts add."""
        found: list[ChannelGroup] = []
        shared = ChannelGroup(("conv1", "bn1"), ())
        for path, block in self._blocks():
            entry = block.read(1).within(path)
            if block.downsample is not None:
                found.append(shared.joined(entry).joined(ChannelGroup((), (f"{path}.downsample.0",))))
                shared = ChannelGroup((f"{path}.downsample.0", f"{path}.downsample.1"), ())
            else:
                shared = shared.joined(entry)
            found += [group.within(path) for group in block.channel_groups()]
            level = self._level(path)
            own = replace(block.given(block.depth), levels=() if level is None else (level,))
            shared = shared.joined(own.within(path))
        return (*found, shared)

    def fused_pairs(self) -> tuple[FusedPair, ...]:
        """See `Part.fused_pairs`."""
        inner = [pair.within(path) for path, block in self._blocks() for pair in block.fused_pairs()]
        return (FusedPair("conv1", "bn1"), *inner)

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        """See `Part.quantization_points`: behind the pooling (faster on floats), in the blocks, behind sums."""
        blocks = self._blocks()
        inner = [point.within(path) for path, block in blocks for point in block.quantization_points()]
        sums = [QuantizationPoint(path, level=self._level(path)) for path, _ in blocks]
        return (QuantizationPoint("maxpool"), *inner, *sums)

    def _level(self, path: str) -> int | None:
        """The level whose map this block gives, if it is the last block of a level's stage."""
        ends = [[name for name, _ in self._blocks() if name.startswith(f"layer{n}.")][-1] for n in self._places]
        return ends.index(path) if path in ends else None

    def _blocks(self) -> list[tuple[str, Block]]:
        """The blocks by name, in order."""
        return [(name, module) for name, module in self.named_modules() if isinstance(module, Block)]


def resnet18(width_divisor: float, output_stride: int) -> ResNet:
    """ResNet-18 at 1/width_divisor of its channels."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width_divisor, output_stride)


def resnet18_separable(width_divisor: float, output_stride: int) -> ResNet:
    """ResNet-18 with depthwise-separable convolutions, a baseline of the paper."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width_divisor, output_stride, Separable)


def resnet18_grouped(width_divisor: float, output_stride: int) -> ResNet:
    """ResNet-18 with group convolutions, a baseline of the paper; channels are rounded to whole groups."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width_divisor, output_stride, grouped, whole_groups)


def resnet34(width_divisor: float, output_stride: int) -> ResNet:
    """ResNet-34 at 1/width_divisor of its channels."""
    return ResNet(BasicBlock, (3, 4, 6, 3), width_divisor, output_stride)


def resnet50(width_divisor: float, output_stride: int) -> ResNet:
    """ResNet-50 at 1/width_divisor of its channels."""
    return ResNet(Bottleneck, (3, 4, 6, 3), width_divisor, output_stride)
