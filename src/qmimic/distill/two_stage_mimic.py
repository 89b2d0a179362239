"""Two-stage mimic (Li et al., CVPR 2017): the map, and what the teacher's second stage says of the same regions.

    L_m + 1/(2N) sum_i ( |z_t^i - z_s^i|^2 + |b_t^i - b_s^i|^2 )

L_m: the mimic loss of N regions, see `Mimic`; z^i, b^i: logits and regressed boxes of region i, as the heads give them.
Li et al. print no weights of the two squares; the 1 of each is ours.
"""

from pydantic import Field
from torch import Tensor

from qmimic.config import MimicConfig, Section
from qmimic.contracts import Features
from qmimic.data.targets import Targets
from qmimic.distill.distiller import Sides, StudentView, Target, TeacherView
from qmimic.distill.mimic import Mimic, mean_of_regions
from qmimic.errors import InputError


class Terms(Section):
    """Settings of `TwoStageMimic`: what its terms weigh."""

    features: float = Field(1.0, ge=0, description="the mimic loss of the map; 0: only what the heads say")
    logits: float = Field(1.0, ge=0, description="the squared distance of logits")
    boxes: float = Field(1.0, ge=0, description="the squared distance of regressed boxes")


class TwoStageMimic(Mimic):
    """The mimic loss, and logits and boxes on its regions. Args: as `Mimic`.

    Raises:
        InputError: one of the two has no second stage, they are of different kinds, or the recipe wants no regions.
    """

    Settings = Terms
    settings: Terms

    def __init__(self, config: MimicConfig, sides: Sides) -> None:
        super().__init__(config, sides)
        own, others = sides.second_stage, sides.heads.second_stage
        if own is None or others is None:
            one = "student" if own is None else "teacher"
            raise InputError(
                f"mimic.distiller=two_stage_mimic compares what two second stages say of regions, and the {one} has "
                "none that can be asked (a file never has): set detector.architecture=faster_rcnn or rfcn and "
                "teacher.kind=detector, or take another distiller."
            )
        if own != others:
            raise InputError(
                f"mimic.distiller=two_stage_mimic compares regressed boxes, and those of {own} (the student) and "
                f"{others} (the teacher) mean different things: leave out teacher.detector."
            )
        if config.regions == "map":
            raise InputError("mimic.distiller=two_stage_mimic needs regions: set mimic.regions to another value.")

    def target(self, view: TeacherView, truth: Targets) -> Target:
        """See `Mimic.target`; the teacher's answers (`Heads.answers`) where its regions are known already."""
        found = super().target(view, truth)
        return found | self.sides.heads.answers(view.features, found["boxes"]) if self.teacher_regions else found

    def loss(self, student: StudentView, target: Target) -> Tensor:
        """See `Distiller.loss`; of the map alone in steps that match whole maps (`mimic.map_steps`)."""
        regions = self.regions(student, target)
        loss = self.settings.features * self.loss_on(regions, student, target)
        if regions is None:
            return loss
        assert student.on_regions is not None
        if "logits" not in target:
            features = Features.of([target["level0"]], self.sides.teacher_strides)
            target = self.sides.heads.answers(features, regions.boxes)
        logits, deltas = student.on_regions(regions.boxes)
        logits_off = (target["logits"] - logits).square().sum(2)
        boxes_off = (target["deltas"] - deltas).square().sum((2, 3))
        distances = self.settings.logits * logits_off + self.settings.boxes * boxes_off
        return loss + mean_of_regions(distances, regions.valid)
