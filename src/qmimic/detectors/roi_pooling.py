"""Pooling of regions from a feature map, as matrix products wherever it separates into rows and columns."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qmimic import tables
from qmimic.tables import Table

SAMPLES = 2  # sampling points of a bin on each side, as torchvision's sampling_ratio


def align_weights(rois: Tensor, size: int, stride: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Bilinear weights of a map's rows and columns for the bins of regions (RoIAlign; He et al., ICCV 2017).

    Args:
        rois: [B, P, 4], xyxy in pixels of the image; no gradient.
        size: bins on each side.
        stride: output stride of the map.
        shape: height and width of the map.

    Returns:
        float32 [B, P, size, H] and [B, P, size, W].
    """
    scaled = rois.detach().float() / stride - 0.5
    down = _bilinear_weights(scaled[..., 1], scaled[..., 3], size, shape[0])
    return down, _bilinear_weights(scaled[..., 0], scaled[..., 2], size, shape[1])


def mean_weights(rois: Tensor, size: int, stride: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Weights for the mean over whole entries of the map in each bin, as R-FCN pools (Dai et al., NIPS 2016).

    Args, returns: as `align_weights`. An empty bin has weights 0.
    """
    edges = (rois.detach().float() / stride + 0.5).floor()
    down = _mean_weights(edges[..., 1], edges[..., 3], size, shape[0])
    return down, _mean_weights(edges[..., 0], edges[..., 2], size, shape[1])


def roi_align(features: Tensor, rois: Tensor, size: int, stride: int) -> Tensor:
    """RoIAlign (He et al., ICCV 2017), equal to torchvision's with `aligned=True, sampling_ratio=2`.

    Bilinear sampling is separable, so pooling multiplies an image's map by weights of rows and weights of columns: two
    batched matrix products, and two more for the gradient to the map.

    Args:
        features: map [B, C, H, W].
        rois: [B, P, 4], xyxy in pixels of the image; no gradient.
        size: bins on each side.
        stride: output stride of the map.

    Returns:
        [B, P, C, size, size], dtype of the map.
    """
    batch, channels, height, width = features.shape
    count = rois.shape[1]
    down, across = (weights.to(features.dtype) for weights in align_weights(rois, size, stride, (height, width)))
    pixels = features.permute(0, 2, 3, 1)  # channels last: no copy, and no transposition between the two products
    rows = down.flatten(1, 2) @ pixels.reshape(batch, height, width * channels)
    rows = rows.view(batch * count * size, width, channels)
    across = across[:, :, None].expand(-1, -1, size, -1, -1).reshape(batch * count * size, size, width)
    pooled = torch.bmm(across, rows)
    return pooled.view(batch, count, size, size, channels).permute(0, 1, 4, 2, 3)


def cells_inside(rois: Tensor, stride: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Which whole rows and columns of a map lie in each region: what RoIPool's bins cover together.

    Args:
        rois: [B, P, 4], xyxy in pixels of the image.
        stride: output stride of the map.
        shape: height and width of the map.

    Returns:
        float32 [B, P, H] and [B, P, W], 1 inside and 0 outside; at least one row and one column are inside.
    """
    edges = (rois.detach().float() / stride + 0.5).floor()

    def inside(low: Tensor, high: Tensor, length: int) -> Tensor:
        at = torch.arange(length, device=rois.device)
        low = low.clamp(min=0, max=length - 1)
        return ((at >= low[..., None]) & (at <= torch.maximum(low, high)[..., None])).float()

    return inside(edges[..., 1], edges[..., 3], shape[0]), inside(edges[..., 0], edges[..., 2], shape[1])


def _bilinear_weights(low: Tensor, high: Tensor, size: int, length: int) -> Tensor:
    """Weights [B, P, size, length] of a map's rows (or columns) in bins from low to high [B, P], in map units."""
    steps = (torch.arange(size * SAMPLES, device=low.device) + 0.5) / (size * SAMPLES)
    at = low[..., None] + (high - low)[..., None] * steps
    inside = (at >= -1) & (at <= length)
    at = at.clamp(min=0, max=length - 1)
    hat = (1 - (at[..., None] - torch.arange(length, device=low.device)).abs_()).clamp_(min=0)
    hat *= inside[..., None]
    samples = hat.unflatten(2, (size, SAMPLES)).unbind(3)
    bins: Tensor = sum(samples[1:], samples[0]) / SAMPLES  # equals `mean`, but costs less in a deployed file
    return bins


def _mean_weights(low: Tensor, high: Tensor, size: int, length: int) -> Tensor:
    """Weights [B, P, size, length] of whole rows (or columns): 1/n for each of n in a bin; bins low to high [B, P]."""
    bins = torch.arange(size + 1, device=low.device) * ((high - low).clamp(min=1) / size)[..., None]
    first = (bins[..., :-1].floor() + low[..., None]).clamp(min=0, max=length)
    last = (bins[..., 1:].ceil() + low[..., None]).clamp(min=0, max=length)
    at = torch.arange(length, device=low.device)
    inside = (at >= first[..., None]) & (at < last[..., None])
    return inside / (last - first).clamp(min=1)[..., None]


def roi_pool(features: Tensor, rois: Tensor, size: int, stride: int) -> Tensor:
    """RoIPool, max over bins (Girshick, ICCV 2015); it commutes with any quantizer.

    Args, returns: as `roi_align`.
    """
    from torchvision.ops import roi_pool as torchvision_roi_pool  # here: importing it takes a second

    batch, count = rois.shape[:2]
    index = torch.arange(batch, device=rois.device, dtype=torch.float32).repeat_interleave(count)
    flat = torch.cat([index[:, None], rois.detach().float().reshape(-1, 4)], 1)
    given = features.float(), flat, size, 1.0 / stride
    # On a GPU, torchvision's gradient is summed in the order in which threads end.
    pooled: Tensor = RepeatableRoiPool.apply(*given)[0] if features.is_cuda else torchvision_roi_pool(*given)
    return pooled.view(batch, count, -1, size, size).to(features.dtype)


class RepeatableRoiPool(torch.autograd.Function):
    """torchvision's RoIPool with a gradient that is summed in one order, where torch is told to be deterministic."""

    @staticmethod
    def forward(features: Tensor, rois: Tensor, size: int, scale: float) -> tuple[Tensor, Tensor]:
        """Maxima [K, C, size, size] of regions [K, 5], and where in [H * W] each lies, -1 in an empty bin."""
        pooled, places = torch.ops.torchvision.roi_pool(features, rois, scale, size, size)
        return pooled, places

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int, float], output: tuple[Tensor, Tensor]) -> None:
        """What the gradient needs."""
        features, rois, *_ = inputs
        ctx.save_for_backward(rois, output[1])
        ctx.shape = features.shape
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient to the map, from that to the maxima."""
        rois, places = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        planes = rois[:, :1].long() * channels + torch.arange(channels, device=rois.device)
        at = planes[..., None, None] * (height * width) + places.clamp(min=0)
        summed = gradient.new_zeros(batch * channels * height * width)
        summed.scatter_add_(0, at.flatten(), gradient.masked_fill(places < 0, 0).flatten())
        return summed.view(ctx.shape), None, None, None


@dataclass(frozen=True)
class RoiPooling:
    """A way to pool regions.

    Attributes:
        regions: pools them from a map, as `roi_align`.
        bins: the weights of a map's rows and columns in each bin, as `align_weights`; for position-sensitive maps.
    """

    regions: Callable[[Tensor, Tensor, int, int], Tensor]
    bins: Callable[[Tensor, int, int, tuple[int, int]], tuple[Tensor, Tensor]]

    def __call__(self, features: Tensor, rois: Tensor, size: int, stride: int) -> Tensor:
        """Regions of a map. Args, returns: as `roi_align`."""
        return self.regions(features, rois, size, stride)


ALIGN, POOL = RoiPooling(roi_align, align_weights), RoiPooling(roi_pool, mean_weights)
ROI_POOLINGS: Table[RoiPooling] = tables.ROI_POOLINGS
