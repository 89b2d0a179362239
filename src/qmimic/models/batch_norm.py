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
        out: Tensor
        out, mean, variance = _FewChannels.apply(x, self.weight, self.bias, self.eps)
        with torch.no_grad():
            count = x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        return out


class _FewChannels(torch.autograd.Function):
    """Batch norm in training of a channels-last [B, C, H, W], as rows of several pixels.

    torch's own kernels find the statistics of every lane of the rows, as if it were a channel; those of a channel
    follow from its lanes'.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        channels, rows = weight.numel(), _rows(x)
        lanes = torch.batch_norm_update_stats(rows, None, None, 0.0)
        means, variances = (values.view(-1, channels) for values in lanes)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square_().mean(0)
        inverse = torch.rsqrt(variance + eps)
        scale = weight * inverse
        # The result must not be a view: the ReLU that follows works in place, which for a view costs two copies.
        out = torch.empty_like(x)
        torch.addcmul(_per_lane(bias - mean * scale, rows), rows, _per_lane(scale, rows), out=_rows(out))
        ctx.save_for_backward(x, mean, inverse, weight)
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, mean, inverse, weight = ctx.saved_tensors
        channels, rows = weight.numel(), _rows(x)
        to_out = _rows(gradients[0].contiguous(memory_format=torch.channels_last))
        lanes = (_per_lane(mean, rows), _per_lane(inverse, rows))
        _, to_weight, to_bias = torch.ops.aten.native_batch_norm_backward(
            to_out, rows, None, None, None, *lanes, True, 0.0, [False, True, True]
        )
        to_weight, to_bias = to_weight.view(-1, channels).sum(0), to_bias.view(-1, channels).sum(0)
        scale, count = weight * inverse, rows.numel() // channels
        slope = -scale * inverse * to_weight / count
        offset = -scale * to_bias / count - slope * mean
        to_x = torch.empty_like(x)
        to_rows = torch.addcmul(_per_lane(offset, rows), to_out, _per_lane(scale, rows), out=_rows(to_x))
        to_rows.addcmul_(rows, _per_lane(slope, rows))
        return to_x, to_weight, to_bias, None


def _rows(x: Tensor) -> Tensor:
    """A channels-last [B, C, H, W] as rows [R, n C] of n pixels each, without a copy."""
    channels, pixels = x.shape[1], x.numel() // x.shape[1]
    repeats = 1
    while 2 * repeats * channels <= LANES and pixels % (2 * repeats) == 0:
        repeats *= 2
    return x.permute(0, 2, 3, 1).view(-1, repeats * channels)


def _per_lane(values: Tensor, rows: Tensor) -> Tensor:
    """Values of channels [C] for every lane of rows [R, n C], [n C]."""
    return values.repeat(rows.shape[1] // values.numel())  # torch's kernels read them as contiguous, unasked
