"""Batch norm that is also fast for a handful of channels in channels-last memory.

Convolutions of very few channels are two to three times faster in channels-last memory, but torch's batch norm then
runs over vectors as short as the channels and loses more than they gain. Seen as rows of several pixels, the same
arithmetic fills the vector units.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from qmimic import processes

FEW = 8  # with more, torch's own is faster
LANES = 64


class BatchNorm2d(nn.BatchNorm2d):
    """torch's `BatchNorm2d`: the same state, the same results to rounding."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise [B, C, H, W]."""
        few = self.num_features <= FEW and x.is_contiguous(memory_format=torch.channels_last)
        plain = x.device.type == "cpu" and x.dtype == torch.float32
        if self.training and self.momentum and processes.count() > 1:
            return self._over_processes(x)
        if not (self.training and few and plain and self.momentum):
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        out: Tensor
        out, mean, variance = _FewChannels.apply(x, self.weight, self.bias, self.eps)
        count = x.numel() // x.shape[1]
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        return out

    def _over_processes(self, x: Tensor) -> Tensor:
        """With the statistics of the whole batch, of which each process has a part. (torch's own is for GPUs only.)"""
        wide, channels, places = x.float(), x.shape[1], (0, 2, 3)
        pixels = torch.full((1,), x.numel() // channels, dtype=torch.float64, device=x.device)
        # A variance as a difference of sums needs the digits.
        sums = [wide.sum(places, dtype=torch.float64), wide.square().sum(places, dtype=torch.float64), pixels]
        total, squares, count = processes.sum_over(torch.cat(sums)).split([channels, channels, 1])
        mean = total / count
        variance = (squares / count - mean.square()).clamp(min=0).float()
        mean, count = mean.float(), count.float()
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked.add_(1)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift.view(1, -1, 1, 1), wide, scale.view(1, -1, 1, 1)).to(x.dtype)


class _FewChannels(torch.autograd.Function):
    """Batch norm in training of a channels-last [B, C, H, W], as rows [R, n C] of n pixels each.

    torch's own kernels find the statistics of every lane of the rows, as if it were a channel. A channel's are the
    means of its lanes', kept in every one of them: of vectors this short, the number of operations is what counts.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        channels, rows = weight.numel(), _rows(x)
        lane_mean, lane_variance = torch.batch_norm_update_stats(rows, None, None, 0.0)
        average = _average(channels, rows.shape[1])
        mean = average.mv(lane_mean)
        between = lane_mean - mean
        variance = average.mv(torch.addcmul(lane_variance, between, between))
        inverse = torch.rsqrt(variance + eps)
        scale = (inverse.view(-1, channels) * weight).flatten()
        shift = torch.addcmul(bias, mean.view(-1, channels), scale.view(-1, channels), value=-1).flatten()
        # The result must not be a view: the ReLU that follows works in place, which for a view costs two copies.
        out = torch.empty_like(x)
        torch.addcmul(shift, rows, scale, out=_rows(out))
        ctx.save_for_backward(x, mean, inverse, scale)
        ctx.channels = channels
        mean, variance = mean[:channels], variance[:channels]
        ctx.mark_non_differentiable(mean, variance)
        return out, mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, mean, inverse, scale = ctx.saved_tensors
        rows, to_out = _rows(x), _rows(gradients[0].contiguous(memory_format=torch.channels_last))
        _, *to_lanes = torch.ops.aten.native_batch_norm_backward(
            to_out, rows, None, None, None, mean, inverse, True, 0.0, [False, True, True]
        )
        sums = torch.stack(to_lanes) @ _average(ctx.channels, rows.shape[1])  # of a channel: by n
        slope, offset = sums * (scale / -rows.shape[0])
        slope *= inverse
        offset = torch.addcmul(offset, slope, mean, value=-1)
        to_x = torch.empty_like(x)
        torch.addcmul(offset, to_out, scale, out=_rows(to_x)).addcmul_(rows, slope)
        to_weight, to_bias = sums[:, : ctx.channels] * (rows.shape[1] // ctx.channels)
        return to_x, to_weight, to_bias, None


def _rows(x: Tensor) -> Tensor:
    """A channels-last [B, C, H, W] as rows [R, n C] of n pixels each, without a copy."""
    channels, pixels = x.shape[1], x.numel() // x.shape[1]
    repeats = 1
    while 2 * repeats * channels <= LANES and pixels % (2 * repeats) == 0:
        repeats *= 2
    return x.permute(0, 2, 3, 1).view(-1, repeats * channels)


@cache
def _average(channels: int, lanes: int) -> Tensor:
    """Symmetric [lanes, lanes] that puts the mean over a channel's lanes in each of them."""
    return torch.eye(channels).repeat(lanes // channels, lanes // channels) * (channels / lanes)
