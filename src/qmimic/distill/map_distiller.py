"""Distillers that compare maps level by level: the adaptor r of each level, and what those of whole maps share."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from qmimic.config import MimicConfig
from qmimic.data.targets import Targets
from qmimic.detectors.quantize import Quantizer
from qmimic.distill.distiller import Distiller, Sides, StudentView, Target, TeacherView
from qmimic.tables import MODES


class AdaptedDistiller(Distiller):
    """A distiller with an adaptor r, a 1x1 convolution from the student's channels to the teacher's, for each level.

    Levels are compared where both networks have the same output stride.

    Args: as `Distiller`.

    Attributes:
        pairs: places (student's, teacher's) of the levels that are compared.
        adaptors: r of each pair.

    Raises:
        InputError: the networks have no output stride in common.
    """

    reads = frozenset({"adaptor_relu"})

    def __init__(self, config: MimicConfig, sides: Sides) -> None:
        super().__init__(config, sides)
        self.quantizer = sides.quantizer
        self.pairs = sides.pairs()
        generator = torch.Generator().manual_seed(sides.seed)
        self.adaptors = nn.ModuleList()
        for student, teacher in self.pairs:
            channels = sides.student_channels[student], sides.teacher_channels[teacher]
            adaptor = skip_init(nn.Conv2d, *channels, 1)  # its own weights would be drawn from everybody's chance
            nn.init.kaiming_normal_(adaptor.weight, nonlinearity="relu", generator=generator)
            assert adaptor.bias is not None
            nn.init.zeros_(adaptor.bias)
            self.adaptors.append(adaptor)

    def adapt(self, features: Tensor, place: int = 0) -> Tensor:
        """r(f_s), with the ReLU if the recipe wants it: [..., C_s, H, W] to [..., C_t, H, W].

        Args:
            features: of the student.
            place: of the level among `pairs`.
        """
        adaptor = self.adaptors[place]
        assert isinstance(adaptor, nn.Conv2d)
        # A 1x1 convolution as the product that it is: the same for a map and for regions of one.
        adapted = F.linear(features.movedim(-3, -1), adaptor.weight.flatten(1), adaptor.bias)
        return (F.relu(adapted) if self.config.adaptor_relu else adapted).movedim(-1, -3)


class MapDistiller(AdaptedDistiller):
    """A distiller that compares whole maps. Args and errors: as `AdaptedDistiller`.

    A kind defines `map_loss`, or `loss` where levels are looked at together or something is drawn at random.

    `mimic.mode` says which of the two maps are quantized; of several levels the losses are averaged.
    """

    def map_loss(self, teacher: Tensor, student: Tensor, truth: Targets, place: int) -> Tensor:
        """The loss of one level, scalar.

        Args:
            teacher: f_t or Q(f_t), float32 [B, C, H, W].
            student: r(f_s) or Q(r(f_s)), the same shape.
            truth: ground truth, boxes in pixels of the networks' input.
            place: of the level among `pairs`.
        """
        raise NotImplementedError

    def target(self, view: TeacherView, truth: Targets) -> Target:
        """See `Distiller.target`: the maps `level0`, ..., float32 [B, C_t, H, W]."""
        maps = (view.features.maps[level].detach().float() for _, level in self.pairs)
        return {
            f"level{place}": self.quantizer(one) if MODES[self.config.mode].teacher else one
            for place, one in enumerate(maps)
        }

    def loss(self, student: StudentView, target: Target) -> Tensor:
        """See `Distiller.loss`: the mean over levels of `map_loss`."""
        pairs = enumerate(self.compared(student, target))
        return torch.stack(
            [self.map_loss(teacher, own, student.truth, place) for place, (teacher, own) in pairs]
        ).mean()

    def compared(self, student: StudentView, target: Target) -> Iterator[tuple[Tensor, Tensor]]:
        """Both maps of each level of `pairs`, the teacher's and the student's, as `map_loss` takes them."""
        for place, (level, _) in enumerate(self.pairs):
            own = self.adapt(student.features.maps[level], place).float()
            yield target[f"level{place}"], self.quantizer(own) if MODES[self.config.mode].student else own

    def target_settings(self) -> Mapping[str, object]:
        """See `Distiller.target_settings`; where the target is another one, all settings count."""
        if type(self).target is not MapDistiller.target:
            return super().target_settings()
        return {"levels": MODES[self.config.mode].teacher}

    def grids(self) -> Mapping[str, Quantizer]:
        """See `Distiller.grids`."""
        quantized = MODES[self.config.mode].teacher
        return {f"level{place}": self.quantizer for place in range(len(self.pairs))} if quantized else {}
