"""Which levels a detector uses, chosen by the sizes of the training boxes; and backbones that offer several.

Everything follows from the finest map that at least a share `LEAST` of the boxes needs.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from qmimic.contracts import Backbone
from qmimic.errors import InputError

STRIDES = (8, 16, 32)
REACH = 6.0  # a level is for boxes of up to this many strides; the coarsest is also for all larger ones
LEAST = 0.1  # smallest share of the boxes for which a finest level is worth having
COARSE: Literal[16] = 16  # output stride of a two-stage detector whose boxes fill a cell of it
FINE: Literal[8] = 8  # output stride where they do not


def choose_levels(box_sizes: NDArray[np.float32], size: tuple[int, int]) -> tuple[int, ...]:
    """Strides of the levels: the finest that enough boxes need, and all coarser ones.

    The coarser ones are included because they are cheap: without them, stages of the backbone that now halve the map
    would be dilated instead. (`resnet18/16` at 320 x 320 pixels: levels 8, 16 and 32 take 34 million
    multiply-accumulates, level 8 alone takes 92.)

    Args:
        box_sizes: widths and heights of the training boxes in pixels at the training size, [N, 2].
        size: height and width of the network's input, pixels; a level whose stride does not divide both is left out.
    """
    possible = [stride for stride in STRIDES if not any(side % stride for side in size)]
    sides = np.sqrt(box_sizes.prod(1))
    level = np.searchsorted([REACH * stride for stride in possible[:-1]], sides)
    finer = np.cumsum(np.bincount(level, minlength=len(possible))) >= LEAST * max(1, len(sides))
    return tuple(possible[int(finer.argmax()) :])


def choose_output_stride(box_sizes: NDArray[np.float32]) -> Literal[16, 8]:
    """The output stride of a detector with one map: 8 if enough boxes are smaller than a cell of stride 16, else 16.

    Args:
        box_sizes: as `choose_levels`.
    """
    sides = np.sqrt(box_sizes.prod(1))
    return FINE if (sides < COARSE).sum() >= LEAST * max(1, len(sides)) else COARSE


class LevelledBackbone(Backbone):
    """A backbone that has maps of several strides and gives those that are asked for.

    Attributes:
        called: its name in messages.
    """

    called = "The backbone"
    _maps: dict[int, tuple[int, int]]  # by stride: index of the last layer or stage, and its channels
    _places: tuple[int, ...]  # those indices, of the levels

    def keep_levels(self, strides: tuple[int, ...]) -> None:
        """See `Backbone.keep_levels`."""
        for stride in strides:
            if stride not in self._maps:
                raise InputError(
                    f"{self.called} has no map of stride {stride} here; choose detector.levels from 8, 16 and 32."
                )
        self.strides = strides
        self._places = tuple(self._maps[stride][0] for stride in strides)
        self.channels = tuple(self._maps[stride][1] for stride in strides)

    def start(self) -> None:
        """Give the convolutions fresh weights."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
