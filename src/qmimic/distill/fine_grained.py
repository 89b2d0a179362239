"""Fine-grained feature imitation (FGFI; Wang et al., CVPR 2019): maps are matched where anchors lie near objects."""

import torch
from pydantic import Field
from torch import Tensor

from qmimic import boxes as box_ops
from qmimic.config import MimicConfig, Section, Side
from qmimic.data.targets import Targets
from qmimic.detectors.anchors import anchor_grid
from qmimic.detectors.fitted import anchors_in_cells
from qmimic.distill.distiller import Sides, StudentView, Target
from qmimic.distill.map_distiller import MapDistiller
from qmimic.errors import InputError
from qmimic.processes import mean_over


class NearObjects(Section):
    """Settings of `FineGrained`; its anchors, for students without any, are RetinaNet's (Lin et al., ICCV 2017)."""

    threshold: float = Field(
        0.5, gt=0, lt=1, description="psi: an anchor is near an object at so much of the object's largest IoU"
    )
    anchor_cells: tuple[Side, ...] = Field(
        (4.0, 5.04, 6.35), min_length=1, description="sides of square anchors in strides, of a student without anchors"
    )
    anchor_ratios: tuple[Side, ...] = Field(
        (0.5, 1.0, 2.0), min_length=1, description="width to height of each of these anchors, which keeps its area"
    )


class FineGrained(MapDistiller):
    """1/(2 N_p) sum over the N_p places near an object of |r(f_s) - f_t|^2 (section 3.2; the paper's weight is 0.01).

    A place is near an object if one of its anchors has more than psi times the object's largest IoU with any anchor
    (section 3.1). The anchors are the student's own, or those of the settings. With several levels, the largest IoU and
    N_p are those of all levels that are compared, so an object is imitated where anchors of its size lie. The adaptor
    is that of all distillers here, a 1x1 convolution where the released code has a 3x3 one.

    Raises:
        InputError: settings for anchors, and a student that has its own; or as `AdaptedDistiller`.
    """

    Settings = NearObjects
    settings: NearObjects
    anchors: Tensor

    def __init__(self, config: MimicConfig, sides: Sides) -> None:
        super().__init__(config, sides)
        idle = sorted(self.settings.model_fields_set & {"anchor_cells", "anchor_ratios"})
        if sides.anchors and idle:
            raise InputError(f"mimic.settings.{idle[0]} has no effect, since the student has anchors; leave it out.")
        strides = [sides.student_strides[student] for student, _ in self.pairs]
        levels = []
        for stride in strides:
            cells, ratios = self.settings.anchor_cells, self.settings.anchor_ratios
            levels.append(anchor_grid(sides.anchors or anchors_in_cells(cells, ratios, stride), sides.size, stride))
        self._counts = [len(level) for level in levels]
        self._shapes = [(-1, sides.size[0] // stride, sides.size[1] // stride) for stride in strides]
        self.register_buffer("anchors", torch.cat(levels), persistent=False)

    def near(self, truth: Targets) -> tuple[Tensor, ...]:
        """The places near objects, bool [B, H, W] of each level that is compared."""
        overlap = box_ops.iou(truth.boxes, self.anchors[None]) * (truth.labels >= 0)[..., None]
        near = (overlap > self.settings.threshold * overlap.amax(2, keepdim=True)).any(1)
        levels = near.split_with_sizes(self._counts, 1)
        return tuple(one.unflatten(1, shape).any(1) for one, shape in zip(levels, self._shapes, strict=True))

    def loss(self, student: StudentView, target: Target) -> Tensor:
        """See `Distiller.loss`; 0 in a batch without objects."""
        masks = self.near(student.truth)
        pairs = zip(self.compared(student, target), masks, strict=True)
        distance = sum(((own - teacher).square().sum(1) * mask).sum() for (teacher, own), mask in pairs)
        count = mean_over(torch.stack([mask.sum() for mask in masks]).sum())
        return torch.as_tensor(distance / (2 * count.clamp(min=1)))
