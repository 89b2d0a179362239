"""Backbones that have maps of several strides."""

from torch import nn

from qmimic.contracts import Backbone
from qmimic.errors import InputError


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
