"""Batch norm that stays fast with a handful of channels in channels-last memory.

Convolutions of very few channels are two to three times faster in channels-last memory, but torch's batch norm then
runs over vectors only as long as the number of channels, and loses more time than they save. Viewed as rows of several
pixels, the same data fills the vector units.
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
        """Normalise [B, C, H, W]; in training by the statistics of the whole batch, however many processes share it."""
        several = processes.count() > 1  # torch's own batch norm over processes is for GPUs only
        few = self.num_features <= FEW and x.is_contiguous(memory_format=torch.channels_last)
        plain = x.device.type == "cpu" and x.dtype == torch.float32
        if not (self.training and self.momentum and (several or (few and plain))):
            return super().forward(x)
        assert self.running_mean is not None
        assert self.running_var is not None
        wide = x.float().contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, enabled=False):  # statistics are products, which bf16 would round
            out, mean, variance, count = _Rows.apply(wide, self.weight, self.bias, self.eps)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1).clamp(min=1)), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        normal: Tensor = out.to(x.dtype)
        return normal


class BatchNormAct2d(BatchNorm2d):
    """Batch norm followed by an activation in one module, as in timm; folding leaves the activation in place."""

    def __init__(
        self, channels: int, eps: float, momentum: float | None, affine: bool, track: bool, act: nn.Module
    ) -> None:
        super().__init__(channels, eps, momentum, affine, track)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """As `BatchNorm2d.forward`, then the activation."""
        activated: Tensor = self.act(super().forward(x))
        return activated


class ScaleShift(nn.Module):
    """A trained batch norm without a convolution before it: a factor and an offset for each channel."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight = norm.weight if norm.affine else torch.ones_like(norm.running_mean)
        bias = norm.bias if norm.affine else torch.zeros_like(norm.running_mean)
        scale = (weight / (norm.running_var + norm.eps).sqrt()).detach()
        self.scale = nn.Parameter(scale.view(1, -1, 1, 1))
        self.shift = nn.Parameter((bias - norm.running_mean * scale).detach().view(1, -1, 1, 1))
        self.act = norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        activated: Tensor = self.act(x * self.scale + self.shift)
        return activated


class _Rows(torch.autograd.Function):
    """Batch norm in training, on a channels-last [B, C, H, W] viewed as rows [R, n C] of n pixels each.

    torch's own kernels compute the statistics of each lane of the rows as if it were a channel. A channel's statistics
    are the means over its lanes, stored in each of them: with vectors this short, the number of operations decides.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        channels, rows = weight.numel(), _rows(x)
        lane_mean, lane_variance = torch.batch_norm_update_stats(rows, None, None, 0.0)
        average = _average(channels, rows.shape[1], x.device)
        mean = average.mv(lane_mean)
        between = lane_mean - mean
        variance = average.mv(torch.addcmul(lane_variance, between, between))
        count = torch.full((), rows.numel() // channels, dtype=torch.float64, device=x.device)
        if processes.count() > 1:
            own = mean[:channels].double()  # a variance computed as a difference of means needs the precision
            moments = torch.cat([own, own.square() + variance[:channels], count.new_ones(1)]) * count
            sums, squares, total = processes.sum_over(moments).split([channels, channels, 1])
            count, whole = total[0], sums / total
            mean = whole.float().repeat(len(mean) // channels)
            variance = (squares / total - whole.square()).clamp(min=0).float().repeat(len(mean) // channels)
        inverse = torch.rsqrt(variance + eps)
        scale = (inverse.view(-1, channels) * weight).flatten()
        shift = torch.addcmul(bias, mean.view(-1, channels), scale.view(-1, channels), value=-1).flatten()
        # The result must not be a view: the ReLU that follows works in place, and on a view that costs two copies.
        out = torch.empty_like(x)
        torch.addcmul(shift, rows, scale, out=_rows(out))
        ctx.save_for_backward(x, mean, inverse, scale, count)
        ctx.channels = channels
        mean, variance, count = mean[:channels], variance[:channels], count.float()
        ctx.mark_non_differentiable(mean, variance, count)
        return out, mean, variance, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, mean, inverse, scale, count = ctx.saved_tensors
        rows, to_out = _rows(x), _rows(gradients[0].contiguous(memory_format=torch.channels_last))
        ones = torch.ones_like(inverse)  # without a weight, CUDA gives no gradients by channel
        _, *to_lanes = torch.ops.aten.native_batch_norm_backward(
            to_out, rows, ones, None, None, mean, inverse, True, 0.0, [False, True, True]
        )
        repeats = rows.shape[1] // ctx.channels
        own = torch.stack(to_lanes).view(2, repeats, -1).sum(1)  # per channel, in this process
        slope, offset = processes.sum_over(own).repeat(1, repeats) * (scale / -count.float())
        slope *= inverse
        offset = torch.addcmul(offset, slope, mean, value=-1)
        to_x = torch.empty_like(x)
        torch.addcmul(offset, to_out, scale, out=_rows(to_x)).addcmul_(rows, slope)
        return to_x, own[0], own[1], None


def _rows(x: Tensor) -> Tensor:
    """A channels-last [B, C, H, W] as rows [R, n C] of n pixels each, without a copy."""
    channels, pixels = x.shape[1], x.numel() // x.shape[1]
    repeats = 1
    while 2 * repeats * channels <= LANES and pixels % (2 * repeats) == 0:
        repeats *= 2
    return x.permute(0, 2, 3, 1).view(-1, repeats * channels)


@cache
def _average(channels: int, lanes: int, device: torch.device) -> Tensor:
    """Symmetric [lanes, lanes] matrix that puts the mean over a channel's lanes into each of them."""
    repeats = lanes // channels
    return torch.eye(channels, device=device).repeat(repeats, repeats) / repeats
