"""Convolution that is also fast, and safe, for a handful of channels on the CPU.

In evaluation mode and on other devices it is torch's own; in training on the CPU it takes detours that give the same
sums sooner.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LANES = 8  # channels that one vector holds: with fewer outputs the rest of it is idle


class Conv2d(nn.Conv2d):
    """torch's `Conv2d`: the same state, the same results to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, H, W] to [B, outputs, H/stride, W/stride]."""
        if self.kernel_size == (1, 1) and self.stride != (1, 1):
            # oneDNN's own, of fewer than 8 channels in channels-last memory, writes past its buffers (torch 2.14,
            # backward pass: heap corruption). Taking the pixels first is the same convolution.
            pixels = x[:, :, :: self.stride[0], :: self.stride[1]].contiguous(memory_format=torch.channels_last)
            return F.conv2d(pixels, self.weight, self.bias)
        if self.training and x.device.type == "cpu":
            height, width = x.shape[2:]
            step, several = self.dilation[0], max(1, LANES // self.out_channels)
            if step > 1 and height % step == 0 and width % step == 0:
                return self._dilated(x, step)
            if several > 1 and step == 1 and not x.requires_grad and width % (several * self.stride[1]) == 0:
                return self._packed(x, several)
        return super().forward(x)

    def _dilated(self, x: Tensor, step: int) -> Tensor:
        """A dilated convolution as plain ones over the interleaved images that it consists of."""
        return _woven(F.conv2d(_interleaved(x, step), self.weight, self.bias, padding=self.kernel_size[0] // 2), step)

    def _packed(self, x: Tensor, several: int) -> Tensor:
        """`several` neighbouring outputs as channels of one: in channels-last memory that is the same tensor.

        The kernel is repeated, shifted by the stride, in a wider one that moves as many strides at a time. The gradient
        to x would be slower; images need none.
        """
        down, across = self.stride
        shifted = [F.pad(self.weight, (across * i, across * (several - 1 - i))) for i in range(several)]
        kernel = torch.cat(shifted).contiguous(memory_format=torch.channels_last)
        bias = self.bias.repeat(several) if self.bias is not None else None
        packed = F.conv2d(x, kernel, bias, stride=(down, across * several), padding=self.padding)
        batch, _, height, width = packed.shape
        pixels = packed.permute(0, 2, 3, 1).reshape(batch, height, width * several, self.out_channels)
        return pixels.permute(0, 3, 1, 2)


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
