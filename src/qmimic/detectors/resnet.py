"""ResNet-18, -34 and -50 (He et al., CVPR 2016) at any width divisor, with the output stride of a detector.

Parameters are named as in torchvision, so its weights at full width load as they stand. As in R-FCN, the last
stages are dilated instead of strided, so that the map keeps an output stride of 16 or 8.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from qmimic.contracts import Backbone, Features
from qmimic.detectors.batch_norm import BatchNorm2d
from qmimic.detectors.channel_group import ChannelGroup
from qmimic.detectors.convolution import (
    Conv2d,
    SpatialConvolution,
    at_least_one,
    dense,
    grouped,
    separable,
    whole_groups,
)


def pointwise(inputs: int, outputs: int, stride: int = 1) -> Conv2d:
    """A 1x1 convolution without bias."""
    return Conv2d(inputs, outputs, 1, stride, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    expansion = 1

    def __init__(
        self, inputs: int, width: int, stride: int, first_dilation: int, dilation: int, spatial: SpatialConvolution
    ) -> None:
        super().__init__()
        self.conv1, self.bn1 = spatial(inputs, width, stride, first_dilation, False), BatchNorm2d(width)
        self.conv2, self.bn2 = spatial(width, width, 1, dilation, False), BatchNorm2d(width)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != width:
            self.downsample = nn.Sequential(pointwise(inputs, width, stride), BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, width, H/stride, W/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(x)) + shortcut, inplace=True)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; four times as many channels come out."""

    expansion = 4

    def __init__(
        self, inputs: int, width: int, stride: int, first_dilation: int, dilation: int, spatial: SpatialConvolution
    ) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1, self.bn1 = pointwise(inputs, width), BatchNorm2d(width)
        self.conv2, self.bn2 = spatial(width, width, stride, first_dilation, False), BatchNorm2d(width)
        self.conv3, self.bn3 = pointwise(width, outputs), BatchNorm2d(outputs)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(pointwise(inputs, outputs, stride), BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, 4 width, H/stride, W/stride]."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        return F.relu(self.bn3(self.conv3(x)) + shortcut, inplace=True)


class ResNet(Backbone):
    """The four stages of a ResNet without its classifier.

    Attributes:
        channels, strides: of the one level.
        width_divisor: n of `resnet18/n`.
    """

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
        for stage, (width, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            step, first_dilation = 1, dilation
            if stage > 1:
                if stride < output_stride:
                    step, stride = 2, stride * 2
                else:
                    dilation *= 2  # from its second block on, as torchvision's replace_stride_with_dilation
            blocks = [block(inputs, width, step, first_dilation, dilation, spatial)]
            inputs = width * block.expansion
            blocks += [block(inputs, width, 1, dilation, dilation, spatial) for _ in range(1, depth)]
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.channels, self.strides, self.width_divisor = (inputs,), (stride,), width_divisor
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Features:
        """Normalised images [B, 3, H, W] to one level, after ReLU."""
        # ReLU and max pooling commute; this way ReLU has a quarter of the work.
        x = F.relu(self.maxpool(self.bn1(self.conv1(x))), inplace=True)
        for stage in (1, 2, 3, 4):
            x = self.get_submodule(f"layer{stage}")(x)
        return Features.of([x], self.strides)

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """Channels that come and go together, the map's last. A stage's blocks share those that their shortcuts add."""
        found: list[ChannelGroup] = []
        makers, users = ["conv1", "bn1"], list[str]()
        for stage in (1, 2, 3, 4):
            for number, block in enumerate(self.get_submodule(f"layer{stage}").children()):
                path = f"layer{stage}.{number}"
                users.append(f"{path}.conv1")
                if getattr(block, "downsample", None) is not None:
                    found.append(ChannelGroup(tuple(makers), (*users, f"{path}.downsample.0")))
                    makers, users = [f"{path}.downsample.0", f"{path}.downsample.1"], []
                last = 3 if isinstance(block, Bottleneck) else 2
                for conv in range(1, last):
                    found.append(ChannelGroup((f"{path}.conv{conv}", f"{path}.bn{conv}"), (f"{path}.conv{conv + 1}",)))
                makers += [f"{path}.conv{last}", f"{path}.bn{last}"]
        return (*found, ChannelGroup(tuple(makers), tuple(users)))


def resnet18(width_divisor: float, output_stride: int) -> ResNet:
    """ResNet-18 at 1/width_divisor of its channels."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width_divisor, output_stride)


def resnet18_separable(width_divisor: float, output_stride: int) -> ResNet:
    """ResNet-18 of depthwise-separable convolutions, a baseline of the paper."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width_divisor, output_stride, separable)


def resnet18_grouped(width_divisor: float, output_stride: int) -> ResNet:
    """ResNet-18 of group convolutions, a baseline of the paper; channels are rounded to whole groups."""
    return ResNet(BasicBlock, (2, 2, 2, 2), width_divisor, output_stride, grouped, whole_groups)


def resnet34(width_divisor: float, output_stride: int) -> ResNet:
    """ResNet-34 at 1/width_divisor of its channels."""
    return ResNet(BasicBlock, (3, 4, 6, 3), width_divisor, output_stride)


def resnet50(width_divisor: float, output_stride: int) -> ResNet:
    """ResNet-50 at 1/width_divisor of its channels."""
    return ResNet(Bottleneck, (3, 4, 6, 3), width_divisor, output_stride)
