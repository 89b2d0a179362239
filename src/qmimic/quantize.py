"""Quantizers of feature maps, and nothing else (Wei et al., ECCV 2018, section 3.2).

A quantizer sends every entry of a map to the nearest value of a dictionary D, ties to the smaller one:

    Q(f) = b   if (a + b)/2 < f <= (b + c)/2,   a < b < c neighbours in D

`uniform` has D = {0, s, 2s, 3s, ...}, `power_of_two` has D = {0, s, 2s, 4s, ...}. Entries below the dictionary
go to 0. The gradient passes straight through, also where an upper level cuts.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qmimic.config import QuantizerConfig


def uniform(f: Tensor, stride: Tensor, upper: int | None = None) -> Tensor:
    """Nearest value of {0, s, 2s, ...}, ties down.

    Args:
        f: map of any shape, float.
        stride: s, broadcast against f.
        upper: index of the highest level, so that no value exceeds `upper` * s.

    Returns:
        Quantized map of f's shape and dtype; no gradient.
    """
    f = f.detach()
    level = torch.ceil(f / stride - 0.5).clamp_(min=0, max=upper)
    # f / s is rounded, so near a tie `level` may be one off; settle it on the dictionary's own midpoints.
    here, above = level * stride, (level + 1) * stride
    level += (f > (here + above) / 2).to(f.dtype)
    level -= ((level > 0) & (f <= ((level - 1) * stride + level * stride) / 2)).to(f.dtype)
    return level.clamp_(max=upper) * stride if upper is not None else level * stride


def power_of_two(f: Tensor, stride: Tensor, upper: int | None = None) -> Tensor:
    """Nearest value of {0, s, 2s, 4s, ...}, ties down.

    Args:
        f: map of any shape, float.
        stride: s, the smallest value above zero, broadcast against f.
        upper: index of the highest level, so that no value exceeds 2^(upper - 1) * s.

    Returns:
        Quantized map of f's shape and dtype; no gradient.
    """
    ratio = f.detach() / stride
    mantissa, exponent = torch.frexp(ratio.clamp(min=0.5))  # ratio = mantissa 2^exponent, mantissa in [1/2, 1)
    # Between 2^(e-1) and 2^e the midpoint is 3/4 2^e: at or below it the lower neighbour is nearer.
    power = exponent - (mantissa <= 0.75).to(exponent.dtype)
    power = power.clamp(min=0, max=None if upper is None else upper - 1)
    value = torch.ldexp(torch.ones_like(ratio), power) * stride
    return torch.where(ratio > 0.5, value, torch.zeros_like(value))


DICTIONARIES: dict[str, Callable[[Tensor, Tensor, int | None], Tensor]] = {
    "uniform": uniform,
    "power_of_two": power_of_two,
}


class _StraightThrough(torch.autograd.Function):
    """Q(f) forward, to the last bit; the gradient of Q(f) is handed to f unchanged."""

    @staticmethod
    def forward(f: Tensor, quantized: Tensor) -> Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


class Quantizer(nn.Module):
    """A quantizer with its measured stride; straight-through in the backward pass.

    Attributes:
        config: the recipe's settings.
        stride: absolute s, float32 [1] or (per channel) [C]; kept in checkpoints.
    """

    stride: Tensor

    def __init__(self, config: QuantizerConfig, stride: Tensor) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("stride", stride.reshape(-1).float().clone())

    def forward(self, f: Tensor) -> Tensor:
        """Q(f) for f [B, C, H, W], or any shape with channels at dim 1; dtype and gradient of f."""
        stride = self.stride.to(f.dtype).view(1, -1, *[1] * (f.dim() - 2))
        quantized: Tensor = _StraightThrough.apply(f, DICTIONARIES[self.config.kind](f, stride, self.config.upper))
        return quantized


def absolute_stride(config: QuantizerConfig, rms: Tensor) -> Tensor:
    """The stride s in the map's own units, [1] or [C].

    Args:
        config: the recipe's settings.
        rms: root mean square of every channel of the map on training images, [C].

    Returns:
        s as float32 [C] if per channel, else [1]. Dead channels get the whole map's rms: s is never 0.
    """
    whole = rms.square().mean().sqrt().clamp(min=1e-6)
    scale = torch.where(rms > 1e-3 * whole, rms, whole) if config.per_channel else whole.reshape(1)
    if not config.relative:
        scale = torch.ones_like(scale)
    return (config.stride * scale).float()
