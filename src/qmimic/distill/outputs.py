"""What a one-stage teacher says at every place, for a one-stage student: how sure it is of each class, and its boxes.

With t the teacher's scores, s the student's, and w the teacher's best score of a place:

    sum |t - s|^2 BCE(s, t) / sum w   +   BOX_WEIGHT sum w (1 - GIoU(student's box, teacher's box)) / sum w
                                      +   RIVALS_WEIGHT sum w KL(softmax of t's logits, softmax of s's) / sum w

So the first term is the quality focal loss (Li et al., NeurIPS 2020) with the teacher's scores in place of labels, and
boxes count where the teacher sees something. The last term tells the classes of an object apart, as the detector's own
loss does (`detector.softmax_weight`): the focal factor leaves a wrong class of middling score next to no gradient.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from qmimic import boxes as box_ops
from qmimic.config import MimicConfig
from qmimic.data.targets import Targets
from qmimic.detectors.one_stage import BOX_WEIGHT, boxes_at, place_grid
from qmimic.distill.distiller import Distiller, Sides, StudentView, Target, TeacherView
from qmimic.errors import InputError
from qmimic.processes import mean_over

RIVALS_WEIGHT = 0.5  # as `detector.softmax_weight` by default


class Outputs(Distiller):
    """Scores and boxes of the places on the levels that both have.

    Raises:
        InputError: one of the two is not a one-stage detector, or they have no level in common by themselves.
    """

    def __init__(self, config: MimicConfig, sides: Sides) -> None:
        super().__init__(config, sides)
        if not all(sides.dense):
            one = "student" if sides.dense[1] else "teacher"
            raise InputError(
                f"mimic.distiller=outputs compares what two one-stage detectors of ours say at each place, and the "
                f"{one} is not one (a file never is): set detector.architecture=one_stage and teacher.kind=detector, "
                "or take another distiller."
            )
        if sides.enlarged:
            raise InputError(
                "mimic.distiller=outputs compares places, and no level of the student has the teacher's stride in the "
                "student's pixels (teacher.scale): set detector.levels, or take another distiller."
            )
        if config.map_steps:
            raise InputError("mimic.distiller=outputs has no phase of maps alone; set mimic.map_steps=0.")
        pairs = sides.pairs()
        self._rows = [
            torch.cat([_rows(strides, sides.size)[pair[side]] for pair in pairs])
            for side, strides in enumerate((sides.student_strides, sides.teacher_strides))
        ]
        common = tuple(sides.student_strides[own] for own, _ in pairs)
        self.register_buffer("places", place_grid(sides.size, common), persistent=False)
        self.places: Tensor

    def target(self, view: TeacherView, truth: Targets) -> Target:
        """See `Distiller.target`: `scores` float32 [B, N, K] and `boxes` float32 [B, N, 4]."""
        assert view.dense is not None
        logits, boxes = self._read(view.dense(), self._rows[1])
        return {"scores": logits.sigmoid(), "boxes": boxes}

    def loss(self, student: StudentView, target: Target) -> Tensor:
        """See `Distiller.loss`."""
        if student.dense is None:
            return student.features.maps[0].sum() * 0
        logits, boxes = self._read(student.dense, self._rows[0])
        wanted = target["scores"]
        if wanted.shape != logits.shape:
            raise InputError("mimic.distiller=outputs needs a teacher of the student's classes.")
        weight = wanted.amax(2)
        total = mean_over(weight.sum()).clamp(min=1e-6)
        off = (logits.sigmoid() - wanted).square()
        classes = (off * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")).sum()
        distance = (1 - box_ops.giou(boxes, target["boxes"])) * weight
        rivals = F.kl_div(logits.log_softmax(2), wanted.logit(eps=1e-6).softmax(2), reduction="none").sum(2) * weight
        return (classes + BOX_WEIGHT * distance.sum() + RIVALS_WEIGHT * rivals.sum()) / total

    def _read(self, dense: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, N, K] and boxes [B, N, 4] of some places, from outputs [B, K + 4, all places]."""
        found = dense.float()[:, :, rows.to(dense.device)].transpose(1, 2)
        return found[..., :-4], boxes_at(self.places, found[..., -4:])


def _rows(strides: tuple[int, ...], size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Which of all places are each level's."""
    counts = [(size[0] // stride) * (size[1] // stride) for stride in strides]
    return tuple(torch.arange(sum(counts)).split_with_sizes(counts))
