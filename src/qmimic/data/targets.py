"""Ground truth as the network takes it: a batch of boxes, padded to one shape."""

from dataclasses import dataclass

import torch
from torch import Tensor

PADDING, IGNORED = -1, -2


@dataclass(frozen=True)
class Targets:
    """Ground truth of a batch, padded to the same number of boxes an image.

    Attributes:
        boxes: float32 [B, M, 4], xyxy in pixels of the network's input.
        labels: int64 [B, M], class index; PADDING where there is no box; IGNORED for difficult and crowd boxes,
            which count neither as objects nor as background.
    """

    boxes: Tensor
    labels: Tensor

    def to(self, device: torch.device) -> "Targets":
        """The same on another device."""
        return Targets(self.boxes.to(device), self.labels.to(device))
