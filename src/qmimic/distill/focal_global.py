"""Focal and global distillation (FGD; Yang et al., CVPR 2022): objects and background apart, and their relations."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from qmimic.config import MimicConfig, Section
from qmimic.data.targets import Targets
from qmimic.detectors.seeded import seeded
from qmimic.distill.distiller import Sides, StudentView, Target
from qmimic.distill.map_distiller import MapDistiller


class Weights(NamedTuple):
    """The paper's alpha, beta, gamma and lambda (section 4.1)."""

    foreground: float
    background: float
    attention: float
    relation: float


TWO_STAGES = Weights(5e-5, 2.5e-5, 5e-5, 5e-7)
ONE_STAGE = Weights(1.6e-3, 8e-4, 8e-4, 8e-6)  # without anchors, as ours is


class FocalAndGlobal(Section):
    """Settings of `FocalGlobal`. A weight of null is the paper's, of two stages or of one stage without anchors."""

    temperature: float = Field(0.5, gt=0, description="T of both attentions")
    foreground: float | None = Field(None, ge=0, description="alpha; null: 5e-5 of two stages, 1.6e-3 of one")
    background: float | None = Field(None, ge=0, description="beta; null: 2.5e-5 of two stages, 8e-4 of one")
    attention: float | None = Field(None, ge=0, description="gamma; null: 5e-5 of two stages, 8e-4 of one")
    relation: float | None = Field(None, ge=0, description="lambda; null: 5e-7 of two stages, 8e-6 of one")


def attentions(maps: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """A^S [B, H, W] of mean 1 over places and A^C [B, C] of mean 1 over channels, of maps [B, C, H, W] (eq. 5 to 8)."""
    strength = maps.abs()
    _, channels, height, width = maps.shape
    places = F.softmax(strength.mean(1).flatten(1) / temperature, 1) * (height * width)
    return places.unflatten(1, (height, width)), F.softmax(strength.mean((2, 3)) / temperature, 1) * channels


def scale_mask(truth: Targets, stride: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """S of the foreground and of the background, float32 [B, H, W] each, 0 outside of it (eq. 2 to 4).

    A place on an object has 1 over the object's height and width in places, that of the smallest object where several
    overlap; one of the background, 1 over the background's places. An object has the places that it touches; the
    released code gives it one more row and column. Ignored boxes are background.
    """

    def touched(low: Tensor, high: Tensor, length: int) -> Tensor:
        at = torch.arange(length, device=low.device)
        return ((at + 1) * stride > low[..., None]) & (at * stride < high[..., None])

    left, top, right, bottom = truth.boxes.unbind(-1)
    rows = touched(top, bottom, shape[0]) & (truth.labels >= 0)[..., None]
    columns = touched(left, right, shape[1])
    areas = (rows.sum(2) * columns.sum(2)).clamp(min=1)
    inside = rows[..., None] & columns[..., None, :]
    foreground = (inside / areas[..., None, None]).amax(1)
    background = (foreground == 0).float()
    return foreground, background / background.sum((1, 2), keepdim=True).clamp(min=1)


class GlobalContext(nn.Module):
    """R(F): a map with what it says as a whole added to each of its places (eq. 13; GcBlock: Cao et al., 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // 2)
        self.attend = nn.Conv2d(channels, 1, 1)
        nn.init.kaiming_normal_(self.attend.weight, nonlinearity="relu")
        assert self.attend.bias is not None
        nn.init.zeros_(self.attend.bias)
        self.first, self.norm = nn.Linear(channels, hidden), nn.LayerNorm(hidden)
        self.last = nn.Linear(hidden, channels)
        nn.init.zeros_(self.last.weight)  # at first it adds nothing, as released
        nn.init.zeros_(self.last.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps [B, C, H, W] to the same shape."""
        attention = F.softmax(self.attend(maps).flatten(2), 2)  # [B, 1, places]
        context = (maps.flatten(2) * attention).sum(2)
        added: Tensor = self.last(F.relu(self.norm(self.first(context))))
        return maps + added[..., None, None]


class FocalGlobal(MapDistiller):
    """L_focal + L_global (eq. 9 to 12), summed over levels, the mean over images; the paper's own at a weight of 1.

    alpha sum over objects of    S A^S A^C (f_t - r(f_s))^2
    beta  sum over background of S A^S A^C (f_t - r(f_s))^2          A^S, A^C: the teacher's attentions
    gamma (sum |A^S_t - A^S_s| + sum |A^C_t - A^C_s|)
    lambda sum (R_t(f_t) - R_s(r(f_s)))^2                            R_t, R_s: learnt, one for each side
    """

    Settings = FocalAndGlobal
    settings: FocalAndGlobal

    def __init__(self, config: MimicConfig, sides: Sides) -> None:
        super().__init__(config, sides)
        papers = TWO_STAGES if sides.second_stage else ONE_STAGE
        chosen = {name: getattr(self.settings, name) for name in Weights._fields}
        self.weights = papers._replace(**{name: own for name, own in chosen.items() if own is not None})
        with seeded(sides.seed):
            widths = [sides.teacher_channels[teacher] for _, teacher in self.pairs]
            self.teacher_contexts = nn.ModuleList(map(GlobalContext, widths))
            self.student_contexts = nn.ModuleList(map(GlobalContext, widths))

    def loss(self, student: StudentView, target: Target) -> Tensor:
        """See `Distiller.loss`; the paper adds up its levels."""
        return super().loss(student, target) * len(self.pairs)

    def map_loss(self, teacher: Tensor, student: Tensor, truth: Targets, place: int) -> Tensor:
        """See `MapDistiller.map_loss`."""
        temperature = self.settings.temperature
        places, channels = attentions(teacher, temperature)
        own_places, own_channels = attentions(student, temperature)
        stride = self.sides.student_strides[self.pairs[place][0]]
        foreground, background = scale_mask(truth, stride, (teacher.shape[2], teacher.shape[3]))
        far = ((teacher - student).square() * channels[..., None, None]).sum(1) * places
        off = (places - own_places).abs().sum() + (channels - own_channels).abs().sum()
        related = self.teacher_contexts[place](teacher) - self.student_contexts[place](student)
        terms = ((far * foreground).sum(), (far * background).sum(), off, related.float().square().sum())
        return torch.stack([weight * term for weight, term in zip(self.weights, terms, strict=True)]).sum() / len(
            teacher
        )
