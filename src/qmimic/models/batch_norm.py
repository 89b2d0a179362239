"""Batch norm that is also fast for a handful of channels in channels-last memory.

Convolutions of very few channels are two to three times faster in channels-last memory, but torch's batch norm then
runs over vectors as short as the channels and loses more than they gain. Seen as rows of several pixels, the same
arithmetic fills the vector units.
"""

from typing import Any

import torch
from torch import Tensor, nn

FEW = 8  # with more, torch's own is faster
LANES = 64


class BatchNorm2d(nn.BatchNorm2d):
    """torch's `BatchNorm2d`: the same state, the same results to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W]."""
        few = self.num_features <= FEW and x.is_contiguous(memory_format=torch.channels_last)
        if not (self.training and few and self.momentum and x.dtype == torch.float32):
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        rows, mean, variance = _FewChannels.apply(_rows(x), self.weight, self.bias, self.eps)
        out = _image(rows, x)
        with torch.no_grad():
            count = x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return out


class _FewChannels(torch.autograd.Function):
    """Batch norm in training of rows [R, n C] that hold n pixels each; saves its input and the statistics."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        channels = weight.numel()
        count = rows.numel() // channels
        # The variance about a first guess of the mean, the first pixel: squares of large means would cancel.
        guess = rows[0, :channels]
        centred = rows - _per_lane(guess, rows)
        mean, square = _per_channel(channels, centred.sum(0), centred.square().sum(0)) / count
        variance = (square - mean.square()).clamp_(min=0)
        inverse = torch.rsqrt(variance + eps)
        scale = weight * inverse
        out = torch.addcmul(_per_lane(bias - mean * scale, rows), centred, _per_lane(scale, rows))
        ctx.save_for_backward(centred, mean, inverse, weight)
        whole_mean = mean + guess
        ctx.mark_non_differentiable(whole_mean, variance)
        return out, whole_mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        centred, mean, inverse, weight = ctx.saved_tensors
        rows, channels = gradients[0], weight.numel()
        count = rows.numel() // channels
        to_bias, product = _per_channel(channels, rows.sum(0), (rows * centred).sum(0))
        to_weight = (product - mean * to_bias) * inverse
        scale = weight * inverse
        slope = -scale * inverse * to_weight / count
        offset = -scale * to_bias / count - slope * mean
        to_rows = torch.addcmul(_per_lane(offset, rows), rows, _per_lane(scale, rows))
        return to_rows.addcmul_(centred, _per_lane(slope, rows)), to_weight, to_bias, None


def _rows(x: Tensor) -> Tensor:
    """A channels-last [B, C, H, W] as rows [R, n C] of n pixels each, without a copy."""
    channels, pixels = x.shape[1], x.numel() // x.shape[1]
    repeats = 1
    while 2 * repeats * channels <= LANES and pixels % (2 * repeats) == 0:
        repeats *= 2
    return x.permute(0, 2, 3, 1).reshape(-1, repeats * channels)


def _per_channel(channels: int, *sums: Tensor) -> Tensor:
    """Sums over the lanes [n C] of rows as sums over channels, [len(sums), C]."""
    return torch.stack(sums).view(len(sums), -1, channels).sum(1)


def _per_lane(values: Tensor, rows: Tensor) -> Tensor:
    """Values of channels [C] for every lane of rows [R, n C], [n C]."""
    return values.expand(rows.shape[1] // values.numel(), -1).reshape(-1)


def _image(rows: Tensor, like: Tensor) -> Tensor:
    batch, channels, height, width = like.shape
    return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)
