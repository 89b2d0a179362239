"""What detectors, backbones and everything that works on them agree on: plain data, and what a structure declares.

The contract of a detector is the base class `qmimic.detectors.detector.Detector`; this file holds what crosses its
border, so that lower and higher floors can speak of it without knowing a network.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from qmimic.errors import InputError


@dataclass(frozen=True)
class Level:
    """One map of a backbone.

    Attributes:
        map: float [B, C, H/stride, W/stride].
        stride: pixels of the network's input from one entry of the map to the next.
    """

    map: Tensor
    stride: int

    @property
    def channels(self) -> int:
        """C."""
        return self.map.shape[1]


@dataclass(frozen=True)
class Features:
    """What a backbone sees in a batch of images: one map or several, in growing order of stride.

    Backbones make it; quantizers, distillers and detectors take it. Two-stage detectors have exactly one level.
    """

    levels: tuple[Level, ...]

    @classmethod
    def of(cls, maps: Sequence[Tensor], strides: Sequence[int]) -> "Features":
        """Levels of maps [B, C, H/stride, W/stride] and their strides."""
        return cls(tuple(Level(one, stride) for one, stride in zip(maps, strides, strict=True)))

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The levels' maps."""
        return tuple(level.map for level in self.levels)

    @property
    def map(self) -> Tensor:
        """The map [B, C, H/stride, W/stride] of the only level, for what works on one map.

        Raises:
            InputError: there are several levels.
        """
        if len(self.levels) != 1:
            strides = ", ".join(str(level.stride) for level in self.levels)
            raise InputError(f"This works on one feature map, but the detector has levels of strides {strides}.")
        return self.levels[0].map

    def apply(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """The same levels with `change` applied to each map; it must keep height and width."""
        return Features(tuple(replace(level, map=change(level.map)) for level in self.levels))

    def to(self, device: torch.device) -> "Features":
        """The same on another device."""
        return self.apply(lambda one: one.to(device))


@dataclass(frozen=True)
class Proposals:
    """Regions of a batch in which objects may be, the most likely first.

    Attributes:
        boxes: float32 [B, P, 4], xyxy in pixels of the network's input; no gradient.
        valid: bool [B, P]; False where an image had fewer.
    """

    boxes: Tensor
    valid: Tensor


@dataclass(frozen=True)
class BatchDetections:
    """Detections of a batch, in falling order of score.

    Attributes:
        boxes: float32 [B, D, 4], xyxy in pixels of the network's input.
        scores: float32 [B, D].
        labels: int64 [B, D], class index.
        valid: bool [B, D]; False where an image had fewer.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor


@dataclass(frozen=True)
class TrainingOutput:
    """What a training step of a detector gives.

    Attributes:
        losses: terms by name, scalars; their sum is minimised.
        proposals: the regions of this step, for distillers that compare regions; None if the detector has none.
    """

    losses: dict[str, Tensor]
    proposals: Proposals | None


class Backbone(nn.Module):
    """Images to levels. `BACKBONES` in `detectors/backbones.py` lists them by name.

    Attributes:
        channels: of each level's map; pruning writes them anew.
        strides: of each level, in growing order.
        width_divisor: n of `family/n`; heads without a width of their own are narrowed by it.
        mean, std: of the RGB values 0..255 that it was made for; the detector subtracts and divides by them.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    width_divisor: float
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet's
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Normalised images [B, 3, H, W] to levels, after ReLU."""
        raise NotImplementedError

    def __call__(self, images: Tensor) -> Features:
        """As `forward`."""
        features: Features = super().__call__(images)
        return features
