"""Cross-head distillation (CrossKD; Wang et al., CVPR 2024): the teacher's frozen heads read the student's map.

What they say of r(f_s) is to be what they say of f_t, so that the student's own heads hear of the labels alone
(section 3.2). The paper cuts inside of heads that are several convolutions deep and equally wide. Ours are one
convolution deep, and the student's are narrower. So the cut is at the map, before neck and heads, as in the released
code for Faster R-CNN, behind an adaptor r to the teacher's channels. Released detectors of one stage standardise the
student's map there too; r takes the place of that.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from qmimic import boxes as box_ops
from qmimic.config import MimicConfig, Section
from qmimic.contracts import Features
from qmimic.data.targets import Targets
from qmimic.detectors.one_stage import boxes_at, place_grid
from qmimic.distill.distiller import Sides, StudentView, Target, TeacherView
from qmimic.distill.map_distiller import AdaptedDistiller
from qmimic.distill.regions import SETTINGS, choose_regions, regions_of_step
from qmimic.errors import InputError
from qmimic.processes import mean_over
from qmimic.tables import MODES

PLACES, REGIONS = (1.0, 2.0), (0.5, 1.0)  # weights of classes and boxes as released, for GFL and for Faster R-CNN


class Crossing(Section):
    """Settings of `CrossHead`. Weights of null are the released ones, of one stage (GFL) or two (Faster R-CNN)."""

    classes: float | None = Field(None, ge=0, description="weight of the classes; null: 1 of one stage, 0.5 of two")
    boxes: float | None = Field(None, ge=0, description="weight of the boxes; null: 2 of one stage, 1 of two")
    temperature: float = Field(3.0, gt=0, description="T of the classes of a teacher of two stages")


class CrossHead(AdaptedDistiller):
    """Distance of what the teacher's heads say of f_t and of r(f_s), for students of one stage or two.

    With t the scores of a teacher of one stage, s those from r(f_s), and w its best score of a place:

        classes sum |t - s| BCE(s, t) / sum w   +   boxes sum w (1 - GIoU) / sum w

    With z the logits of N regions of a teacher of two stages, b the box and w the score of its best class:

        classes T^2/N sum KL(softmax(z_t / T) || softmax(z_s / T))   +   boxes sum w |b_t - b_s|_1 / (4 sum w)

    The third term of the released code for GFL, KL of box distributions, needs heads that give distributions. Args: as
    `AdaptedDistiller`.

    Raises:
        InputError: the teacher has no heads to lend, they need a level that the student lacks, or a setting that is set
            has no effect with this teacher.
    """

    reads = AdaptedDistiller.reads | SETTINGS
    Settings = Crossing
    settings: Crossing
    places: Tensor

    def __init__(self, config: MimicConfig, sides: Sides) -> None:
        super().__init__(config, sides)
        self.by_places = sides.heads.places is not None
        self._require(config, sides)
        weights = PLACES if self.by_places else REGIONS
        given = (self.settings.classes, self.settings.boxes)
        self.weights = tuple(usual if own is None else own for own, usual in zip(given, weights, strict=True))
        self.teacher_regions = not self.by_places and config.regions == "teacher"
        self.student_regions = not self.by_places and config.regions == "student"
        self.register_buffer("places", place_grid(sides.size, sides.teacher_strides), persistent=False)

    def _require(self, config: MimicConfig, sides: Sides) -> None:
        heads, name = sides.heads, "mimic.distiller=cross_head"
        if heads.places is None and heads.regions is None:
            raise InputError(
                f"{name} lends the student the teacher's heads, and this teacher has none to lend (a file never has): "
                "set teacher.kind=detector with another teacher.detector, or take another distiller."
            )
        if set(sides.teacher_strides) - set(sides.student_strides):
            own, others = (", ".join(map(str, one)) for one in (sides.student_strides, sides.teacher_strides))
            raise InputError(
                f"{name} lends the student the teacher's heads, which need maps of output strides {others}; the "
                f"student's are {own}."
            )
        if config.map_steps:
            raise InputError(f"{name} has no phase of maps alone; set mimic.map_steps=0.")
        fields = MimicConfig.model_fields
        idle = [one for one in sorted(SETTINGS) if getattr(config, one) != fields[one].default]
        if self.by_places and idle:
            raise InputError(f"mimic.{idle[0]} has no effect with {name} and a teacher of one stage; leave it out.")
        if not self.by_places and config.regions == "map":
            raise InputError(f"{name} needs regions of a teacher of two stages: set mimic.regions to another value.")

    def target(self, view: TeacherView, truth: Targets) -> Target:
        """See `Distiller.target`.

        Returns:
            `outputs` float32 [B, K + 4, N] of a teacher of one stage. Of two: its regions `boxes`, `valid` and its
            answers (`Heads.answers`), or the map `level0` where the regions are not its own.
        """
        if self.by_places:
            assert view.dense is not None
            return {"outputs": view.dense()}
        if not self.teacher_regions:
            return {"level0": view.features.map.detach().float()}
        chosen = choose_regions(self.config, view.regions, truth, self.sides.size, None)
        found = {"boxes": chosen.boxes, "valid": chosen.valid}
        return found | self.sides.heads.answers(view.features, chosen.boxes)

    def loss(self, student: StudentView, target: Target) -> Tensor:
        """See `Distiller.loss`."""
        maps = [self.adapt(student.features.maps[own], place).float() for place, (own, _) in enumerate(self.pairs)]
        crossed = Features.of(maps, self.sides.teacher_strides)
        crossed = crossed.apply(self.quantizer) if MODES[self.config.mode].student else crossed
        return self._of_places(crossed, target) if self.by_places else self._of_regions(crossed, student, target)

    def _of_places(self, crossed: Features, target: Target) -> Tensor:
        assert self.sides.heads.places is not None
        own, wanted = (one.transpose(1, 2) for one in (self.sides.heads.places(crossed), target["outputs"]))
        scores = wanted[..., :-4].sigmoid()
        weight = scores.amax(2)
        off = (own[..., :-4].sigmoid() - scores).abs()
        classes = off * F.binary_cross_entropy_with_logits(own[..., :-4], scores, reduction="none")
        boxes, theirs = (boxes_at(self.places, one[..., -4:]) for one in (own, wanted))
        distance = (1 - box_ops.giou(boxes, theirs)) * weight
        total = mean_over(weight.sum()).clamp(min=1e-6)
        return (self.weights[0] * classes.sum() + self.weights[1] * distance.sum()) / total

    def _of_regions(self, crossed: Features, student: StudentView, target: Target) -> Tensor:
        heads, temperature = self.sides.heads, self.settings.temperature
        assert heads.regions is not None
        regions = regions_of_step(self.config, student, target, self.sides.size)
        if "logits" not in target:
            target = heads.answers(Features.of([target["level0"]], self.sides.teacher_strides), regions.boxes)
        logits, deltas = heads.regions(crossed, regions.boxes)
        wanted, own = (F.log_softmax(one / temperature, 2) for one in (target["logits"], logits))
        classes = F.kl_div(own, wanted, reduction="none", log_target=True).sum(2) * temperature**2 * regions.valid
        weight, best = target["logits"].softmax(2)[..., 1:].max(2)
        weight = weight * regions.valid
        index = best.clamp(max=deltas.shape[2] - 1)[..., None, None].expand(-1, -1, 1, 4)
        distance = (target["deltas"] - deltas).abs().gather(2, index)[:, :, 0].mean(2) * weight
        count, total = mean_over(torch.stack([regions.valid.sum(), weight.sum()]))
        boxes = distance.sum() / total.clamp(min=1e-6)
        loss: Tensor = self.weights[0] * classes.sum() / count.clamp(min=1) + self.weights[1] * boxes
        return loss

    def target_settings(self) -> Mapping[str, object]:
        """See `Distiller.target_settings`."""
        names = SETTINGS if self.teacher_regions else set()
        return self.config.model_dump(mode="json", include=set(names))
