"""Quantizers of feature maps, and nothing else (Wei et al., ECCV 2018, section 3.2).

A quantizer rounds every entry of a map to the nearest value of a dictionary D, and ties to the smaller one:

    Q(f) = b   if (a + b)/2 < f <= (b + c)/2,   a < b < c neighbours in D

`uniform` has D = {0, s, 2s, 3s, ...}, `power_of_two` has D = {0, s, 2s, 4s, ...}. Entries below the dictionary
go to 0. The gradient passes straight through, even where an upper level clips.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qmimic import tables
from qmimic.config import QuantizerConfig
from qmimic.tables import Table


def uniform_levels(f: Tensor, stride: Tensor, upper: int | None = None) -> Tensor:
    """Index of the nearest value of {0, s, 2s, ...}, ties down.

    Args:
        f: map of any shape, float.
        stride: s, broadcast against f.
        upper: index of the highest level.

    Returns:
        Whole numbers in f's shape and dtype; no gradient.
    """
    f = f.detach()
    # f / s has a rounding error, so ties are settled by the dictionary's own midpoints: `level` is right or 1 too high.
    level = (f / stride).sub_(0.75).ceil_().clamp_(min=0)
    midpoint = (level + 1).mul_(stride).add_(level * stride).mul_(0.5)
    level += midpoint.sub_(f).lt_(0)  # in place and without a second dtype: maps are large
    return level.clamp_(max=upper) if upper is not None else level


def uniform_values(level: Tensor, stride: Tensor) -> Tensor:
    """Level times s."""
    return level * stride


def power_of_two_levels(f: Tensor, stride: Tensor, upper: int | None = None) -> Tensor:
    """Index of the nearest value of {0, s, 2s, 4s, ...}, ties down. Args, returns: as `uniform_levels`."""
    ratio = f.detach() / stride
    mantissa, exponent = torch.frexp(ratio.clamp(min=0.5))  # ratio = mantissa 2^exponent, mantissa in [1/2, 1)
    # Between 2^(e-1) and 2^e the midpoint is 3/4 2^e: up to and including it the lower neighbour is taken.
    level = exponent - (mantissa <= 0.75).to(exponent.dtype) + 1
    level = level.clamp(min=1, max=upper).to(f.dtype)
    return torch.where(ratio > 0.5, level, torch.zeros_like(level))


def power_of_two_values(level: Tensor, stride: Tensor) -> Tensor:
    """0 for level 0, then 2^(level - 1) s."""
    power = torch.ldexp(torch.ones_like(level), level.to(torch.int32) - 1) * stride
    return torch.where(level > 0, power, torch.zeros_like(power))


@dataclass(frozen=True)
class Dictionary:
    """A dictionary: its values, numbered from 0.

    Attributes:
        levels: from a map, the stride s and the index of the highest level: the indices of the nearest values, from 0.
        values: the inverse; from such indices and s, the values.
    """

    levels: Callable[[Tensor, Tensor, int | None], Tensor]
    values: Callable[[Tensor, Tensor], Tensor]


UNIFORM = Dictionary(uniform_levels, uniform_values)
POWER_OF_TWO = Dictionary(power_of_two_levels, power_of_two_values)
DICTIONARIES: Table[Dictionary] = tables.DICTIONARIES


class _StraightThrough(torch.autograd.Function):
    """Q(f) forward, to the last bit; the gradient of Q(f) is passed to f unchanged."""

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
        # In bf16, s and the levels would be rounded, and the map would lie on another dictionary than it is scored on.
        quantized = self.values(self.levels(f.float())).to(f.dtype)
        return _StraightThrough.apply(f, quantized) if torch.is_grad_enabled() else quantized

    def levels(self, f: Tensor) -> Tensor:
        """Index in the dictionary of every entry's value: whole numbers in f's shape and dtype; no gradient."""
        return DICTIONARIES[self.config.kind].levels(f, self._stride_beside(f), self.config.upper)

    def values(self, levels: Tensor) -> Tensor:
        """The values with these indices: `values(levels(f))` is Q(f), to the last bit."""
        return DICTIONARIES[self.config.kind].values(levels, self._stride_beside(levels))

    def levels_inside(self, f: Tensor) -> Tensor:
        """As `levels`, of maps or regions [B, ..., C, h, w] with the channels third from the end."""
        return self.levels(f.movedim(-3, 1)).movedim(1, -3)

    def values_inside(self, levels: Tensor) -> Tensor:
        """The inverse of `levels_inside`."""
        return self.values(levels.movedim(-3, 1)).movedim(1, -3)

    def _stride_beside(self, f: Tensor) -> Tensor:
        return self.stride.to(f.dtype).view(1, -1, *[1] * (f.dim() - 2))


def absolute_stride(config: QuantizerConfig, rms: Tensor) -> Tensor:
    """The stride s in the map's own units, [1] or [C].

    Args:
        config: the recipe's settings.
        rms: root mean square of every channel of the map on training images, [C].

    Returns:
        s as float32 [C] if per channel, else [1], for all levels. Dead channels use the whole map's rms: s is never 0.
    """
    whole = rms.square().mean().sqrt().clamp(min=1e-6)
    scale = torch.where(rms > 1e-3 * whole, rms, whole) if config.per_channel else whole.reshape(1)
    if not config.relative:
        scale = torch.ones_like(scale)
    return (config.stride * scale).float()
