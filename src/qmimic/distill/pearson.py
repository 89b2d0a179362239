"""Pearson correlation distillation (PKD; Cao et al., NeurIPS 2022): maps that vary alike, whatever their scale."""

from torch import Tensor

from qmimic.data.targets import Targets
from qmimic.distill.map_distiller import MapDistiller

EPSILON = 1e-6  # deviation of a channel that does not vary, relative to its values: their mean is rounded


def standardized(maps: Tensor) -> Tensor:
    """Maps [B, C, H, W] with each channel's mean over images and places 0 and its variance 1."""
    centred = maps - maps.mean((0, 2, 3), keepdim=True)
    variance = centred.square().mean((0, 2, 3), keepdim=True)
    # Within the root: outside of it, the gradient of a channel that does not vary would be 0 times infinity. Such a
    # channel is not divided: behind Q its gradient goes on to a map that varies, and would be a million times as large.
    least = (EPSILON * (1 + maps.detach().abs().amax((0, 2, 3), keepdim=True))).square()
    return centred / (variance + EPSILON**2).where(variance > least, 1.0).sqrt()


class Pearson(MapDistiller):
    """Half the mean squared difference of standardized maps: 1 minus their Pearson correlation (eq. 2, 3)."""

    def map_loss(self, teacher: Tensor, student: Tensor, truth: Targets, place: int) -> Tensor:
        """See `MapDistiller.map_loss`."""
        return (standardized(teacher) - standardized(student)).square().mean() / 2
