"""Convolution that stays fast, and safe, with a handful of channels on the CPU.

In evaluation mode and on other devices it is torch's own; in training on the CPU it takes detours that give the same
sums faster.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmimic.contracts import ChannelGroup, FusedPair, QuantizationPoint
from qmimic.detectors.batch_norm import BatchNorm2d

GROUPS = 2  # of a grouped convolution
LANES = 8  # channels that one vector holds; with fewer outputs the rest of the vector is idle


class Conv2d(nn.Conv2d):
    """torch's `Conv2d`: the same state, the same results to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H/stride, W/stride]."""
        if torch.compiler.is_exporting():
            return super().forward(x)
        if self.kernel_size == (1, 1) and self.stride != (1, 1):
            # With fewer than 8 channels in channels-last memory, oneDNN's kernel writes past its buffers (torch 2.14,
            # backward pass: heap corruption). Selecting the pixels first gives the same convolution.
            pixels = x[:, :, :: self.stride[0], :: self.stride[1]].contiguous(memory_format=torch.channels_last)
            return F.conv2d(pixels, self.weight, self.bias)
        if self.training and x.device.type == "cpu":
            height, width = x.shape[2:]
            step, several = self.dilation[0], max(1, LANES // self.out_channels)
            if step > 1 and height % step == 0 and width % step == 0:
                return self._dilated(x, step)
            if (
                several > 1
                and step == self.groups == 1
                and not x.requires_grad
                and width % (several * self.stride[1]) == 0
            ):
                return self._packed(x, several)
        return super().forward(x)

    def _dilated(self, x: Tensor, step: int) -> Tensor:
        """A dilated convolution as plain convolutions over the interleaved images that it reads."""
        parts, padding = _interleaved(x, step), self.kernel_size[0] // 2
        return _woven(F.conv2d(parts, self.weight, self.bias, padding=padding, groups=self.groups), step)

    def _packed(self, x: Tensor, several: int) -> Tensor:
        """`several` neighbouring outputs as the channels of one: in channels-last memory that is the same tensor.

        The kernel is repeated, each time shifted by the stride, within a wider kernel that moves `several` strides at
        a time. The gradient with respect to x would be slower, but images need none.
        """
        down, across = self.stride
        shifted = [F.pad(self.weight, (across * i, across * (several - 1 - i))) for i in range(several)]
        kernel = torch.cat(shifted).contiguous(memory_format=torch.channels_last)
        bias = self.bias.repeat(several) if self.bias is not None else None
        packed = F.conv2d(x, kernel, bias, stride=(down, across * several), padding=self.padding)
        batch, _, height, width = packed.shape
        pixels = packed.permute(0, 2, 3, 1).reshape(batch, height, width * several, self.out_channels)
        return pixels.permute(0, 3, 1, 2)


def dense(inputs: int, outputs: int, stride: int, dilation: int, bias: bool) -> Conv2d:
    """A 3x3 convolution with padding, so that only its stride changes the size."""
    return Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=bias)


class Separable(nn.Sequential):
    """A 3x3 convolution within each channel, then a 1x1 convolution across them (Howard et al., MobileNets, 2017)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, bias: bool) -> None:
        depthwise = Conv2d(inputs, inputs, 3, stride, dilation, dilation, groups=inputs, bias=False)
        pointwise = Conv2d(inputs, outputs, 1, bias=bias)
        super().__init__(depthwise, BatchNorm2d(inputs), nn.ReLU(inplace=True), pointwise)


class PointwiseFirst(nn.Sequential):
    """A 1x1 convolution, then a 3x3 convolution within each channel, with nothing in between (YuNet's unit)."""

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, bias: bool) -> None:
        pointwise = Conv2d(inputs, outputs, 1, bias=False)
        super().__init__(pointwise, Conv2d(outputs, outputs, 3, stride, dilation, dilation, groups=outputs, bias=bias))


class Reparameterised(Conv2d):
    """A 3x3 convolution that is trained as the sum of a 3x3 and a 1x1 convolution and deployed as one 3x3.

    The idea is RepVGG's (Ding et al., CVPR 2021). The kernels are added up, not the maps, so a training
    step costs no more than with a plain convolution. The 1x1 convolution starts as the identity where its shape allows,
    in the role of a residual network's shortcut.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dilation: int, bias: bool) -> None:
        super().__init__(inputs, outputs, 3, stride, dilation, dilation, bias=bias)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def start(self) -> None:
        """Fresh weights of the 1x1 convolution."""
        if self.stride == (1, 1):
            nn.init.dirac_(self.pointwise.weight)
        else:
            nn.init.kaiming_normal_(self.pointwise.weight, mode="fan_out", nonlinearity="relu")

    def plain(self) -> nn.Conv2d:
        """The plain convolution that computes the same."""
        shape = (self.in_channels, self.out_channels, self.stride[0], self.dilation[0])
        one = dense(*shape, bias=self.bias is not None).to(self.weight.device)
        one.weight = nn.Parameter(self._kernel().detach())
        one.bias = self.bias
        return one.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H/stride, W/stride]."""
        return F.conv2d(x, self._kernel(), self.bias, self.stride, self.padding, self.dilation)

    def _kernel(self) -> Tensor:
        kernel = self.weight + F.pad(self.pointwise.weight, (1, 1, 1, 1))
        return kernel.contiguous(memory_format=torch.channels_last)


# inputs, outputs, stride, dilation, bias
SpatialConvolution = Callable[[int, int, int, int, bool], Conv2d | Separable | PointwiseFirst]


def grouped(inputs: int, outputs: int, stride: int, dilation: int, bias: bool) -> Conv2d:
    """A 3x3 convolution in `GROUPS` groups of channels, or as many as divide both numbers of channels."""
    groups = math.gcd(GROUPS, math.gcd(inputs, outputs))
    return Conv2d(inputs, outputs, 3, stride, dilation, dilation, groups=groups, bias=bias)


def fused_pairs(conv: str, module: nn.Module, norm: str) -> tuple[FusedPair, ...]:
    """The pairs to fold in a spatial convolution and the batch norm behind it.

    Args:
        conv: the convolution's name.
        module: the convolution.
        norm: the batch norm's name.
    """
    if isinstance(module, Separable):
        return FusedPair(f"{conv}.0", f"{conv}.1"), FusedPair(f"{conv}.3", norm)
    if isinstance(module, PointwiseFirst):
        return (FusedPair(f"{conv}.1", norm),)
    return (FusedPair(conv, norm),)


def is_depthwise(conv: nn.Conv2d) -> bool:
    """Whether each output channel reads only the input channel of its own index."""
    return conv.groups == conv.in_channels == conv.out_channels


def channels_read(conv: str, module: nn.Module) -> ChannelGroup:
    """What a spatial convolution does with the channels that it reads; `conv` is its name."""
    if isinstance(module, Separable):
        return ChannelGroup((f"{conv}.0", f"{conv}.1"), (f"{conv}.3",))
    return ChannelGroup((), _crossing(conv, module))


def channels_given(conv: str, module: nn.Module, norm: str) -> ChannelGroup:
    """The channels that a spatial convolution makes; `conv` is its name and `norm` that of the batch norm behind it."""
    if isinstance(module, Separable):
        return ChannelGroup((f"{conv}.3", norm), ())
    inner = (f"{conv}.1",) if isinstance(module, PointwiseFirst) else ()
    return ChannelGroup((*_crossing(conv, module), *inner, norm), ())


def _crossing(conv: str, module: nn.Module) -> tuple[str, ...]:
    """Names of the convolutions across channels at the start of a spatial convolution."""
    if isinstance(module, PointwiseFirst):
        return (f"{conv}.0",)
    return (conv, f"{conv}.pointwise") if isinstance(module, Reparameterised) else (conv,)


def inner_points(conv: str, module: nn.Module) -> tuple[QuantizationPoint, ...]:
    """Quantization points within a spatial convolution; `conv` is its name."""
    if isinstance(module, PointwiseFirst):
        return (QuantizationPoint(f"{conv}.0", signed=True),)
    return (QuantizationPoint(f"{conv}.1"),) if isinstance(module, Separable) else ()


def at_least_one(channels: float) -> int:
    """A fractional number of channels, rounded up."""
    return math.ceil(channels)


def whole_groups(channels: float) -> int:
    """A fractional number of channels, rounded to whole groups, so that costs rise in small steps."""
    return GROUPS * max(1, round(channels / GROUPS))


def _interleaved(x: Tensor, step: int) -> Tensor:
    """Every `step`-th pixel in both directions as an image of its own: [B, C, H, W] to [B s s, C, H/s, W/s]."""
    batch, channels, height, width = x.shape
    pixels = x.permute(0, 2, 3, 1).reshape(batch, height // step, step, width // step, step, channels)
    parts = pixels.permute(0, 2, 4, 1, 3, 5).reshape(-1, height // step, width // step, channels)
    return parts.permute(0, 3, 1, 2)


def _woven(parts: Tensor, step: int) -> Tensor:
    """The inverse of `_interleaved`."""
    _, channels, height, width = parts.shape
    pixels = parts.permute(0, 2, 3, 1).reshape(-1, step, step, height, width, channels)
    return pixels.permute(0, 3, 1, 4, 2, 5).reshape(-1, height * step, width * step, channels).permute(0, 3, 1, 2)
