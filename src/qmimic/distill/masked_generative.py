"""Masked generative distillation (MGD; Yang et al., ECCV 2022): of a part of its map a student makes the teacher's."""

import torch
from pydantic import Field
from torch import Tensor, nn

from qmimic.config import MimicConfig, Section
from qmimic.detectors.seeded import seeded
from qmimic.distill.distiller import Sides, StudentView, Target
from qmimic.distill.map_distiller import MapDistiller
from qmimic.processes import rand

ONE_STAGE, TWO_STAGES = 0.65, 0.45  # of the places are masked (section 4.2)


class Masking(Section):
    """Settings of `MaskedGenerative`."""

    masked: float | None = Field(
        None, ge=0, le=1, description="share of masked places; null: the paper's, 0.65 of one stage, 0.45 of two"
    )


class MaskedGenerative(MapDistiller):
    """Sum over levels and entries of (f_t - G(r(f_s) M))^2, the mean over images (eq. 2 to 5).

    M is 0 at places drawn at random, whatever the channel, and 1 elsewhere; G is a 3x3 convolution, ReLU and another
    one, to the teacher's channels, for each level. The paper's weight (alpha) is 2e-5 for one stage, 5e-7 for two.
    """

    Settings = Masking
    settings: Masking

    def __init__(self, config: MimicConfig, sides: Sides) -> None:
        super().__init__(config, sides)
        own = self.settings.masked
        self.masked = (TWO_STAGES if sides.second_stage else ONE_STAGE) if own is None else own
        with seeded(sides.seed):
            widths = [sides.teacher_channels[teacher] for _, teacher in self.pairs]
            self.generators = nn.ModuleList(
                nn.Sequential(nn.Conv2d(w, w, 3, padding=1), nn.ReLU(), nn.Conv2d(w, w, 3, padding=1)) for w in widths
            )

    def loss(self, student: StudentView, target: Target) -> Tensor:
        """See `Distiller.loss`."""
        losses = []
        for generate, (teacher, own) in zip(self.generators, self.compared(student, target), strict=True):
            batch, _, height, width = own.shape
            stays = rand(student.source, batch, 1, height, width) >= self.masked
            losses.append((generate(own * stays).float() - teacher).square().sum() / batch)
        return torch.stack(losses).sum()
