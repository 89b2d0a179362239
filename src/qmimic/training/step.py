"""The training step: detection alone, or detection while the network learns from a teacher.

An objective is a module, so that DistributedDataParallel sees the whole step as one forward call.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from qmimic.config import AugmentConfig, MimicConfig
from qmimic.data.augment import Views, augment, closing, exact_views
from qmimic.data.targets import Targets
from qmimic.detectors.detector import Detector
from qmimic.distill.bank import Bank, channels_last
from qmimic.distill.distiller import Distiller, StudentView, Target
from qmimic.distill.dose import Dose
from qmimic.distill.scales import Enlarger, smaller
from qmimic.distill.teacher import Teacher
from qmimic.processes import Share, Source

Phase = Literal["map", "joint", "detection"]


@dataclass(frozen=True)
class StepGenerators:
    """Everything random in one training step: a generator for the views, one for the samples.

    They are separate, so that arms that sample differently still see the same views.
    """

    views: Source
    samples: Source

    def of_rows(self, rows: slice, total: int) -> "StepGenerators":
        """The generators for these rows of a batch of `total` images."""
        assert isinstance(self.views, torch.Generator)
        assert isinstance(self.samples, torch.Generator)
        return StepGenerators(Share(self.views, rows, total), Share(self.samples, rows, total))


class DetectionObjective(nn.Module):
    """A detector's own losses on augmented images; with two stages L_cls^rpn + L_reg^rpn + L_cls^det + L_reg^det.

    Args:
        detector: to train.
        augmentation: how views are drawn.
        closing_from: share of the steps after which only exact views are drawn.
    """

    def __init__(self, detector: Detector, augmentation: AugmentConfig, closing_from: float = 1.0) -> None:
        super().__init__()
        self.detector = detector
        self.augmentation = augmentation
        self.closing_from = closing_from

    def forward(
        self,
        images: Tensor,
        targets: Targets,
        generators: StepGenerators,
        progress: float,
        indices: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the loss, scalars; their sum is minimised.

        Args:
            images: uint8 [B, 3, H, W].
            targets: boxes in pixels of these images.
            generators: of this step.
            progress: share of the steps done, 0..1.
            indices: int64 [B], of the images in the training split; only a teacher's bank needs them.
        """
        config = closing(self.augmentation) if progress >= self.closing_from else self.augmentation
        views = augment(images, targets, config, generators.views)
        return self.detector.losses(self.detector.features(views.images), views.targets, generators.samples).losses

    def measured(self) -> dict[str, float]:
        """What was measured besides the losses since the last call: nothing, here."""
        return {}


class DistillationObjective(nn.Module):
    """Detection losses plus lambda times a distiller's loss to a frozen teacher.

    Args:
        student: the detector to train.
        distiller: defines what it learns from the teacher; trained with it.
        teacher: frozen; not part of the module's state.
        bank: keeps the targets of exact views; None: targets are computed in every step.
        config: lambda and phases.
        augmentation: how views are drawn.
        closing_from: share of the steps after which only exact views are drawn.
        scale: how many times as high and wide as the student the teacher sees a picture; images and targets of a step
            are as the teacher sees them.
        enlarger: brings the student's map up to the teacher's; None: levels are compared as they are.
    """

    def __init__(
        self,
        student: Detector,
        distiller: Distiller,
        teacher: Teacher,
        bank: Bank | None,
        config: MimicConfig,
        augmentation: AugmentConfig,
        closing_from: float = 1.0,
        scale: int = 1,
        enlarger: Enlarger | None = None,
    ) -> None:
        super().__init__()
        self.scale, self.enlarger = scale, enlarger
        self.detector = student
        self.distiller = distiller
        self.teacher = teacher
        self.bank = bank
        self.config = config
        self.augmentation = augmentation
        self.closing_from = closing_from
        self.dose = Dose(config.weight if isinstance(config.weight, int | float) else None, config.share)

    def forward(
        self,
        images: Tensor,
        targets: Targets,
        generators: StepGenerators,
        progress: float,
        indices: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the loss, `distillation` already weighted by lambda. Args as `DetectionObjective.forward`."""
        phase = self.phase(progress)
        student = self.detector

        # 1. Views, and the student's levels.
        config = closing(self.augmentation) if progress >= self.closing_from else self.augmentation
        views = augment(images, targets, config, generators.views)
        own = smaller(views, self.scale)
        raw = student.raw_features(own.images)

        # 2. Detection losses; if the student has a quantizer, its heads see quantized levels.
        losses: dict[str, Tensor] = {}
        regions = dense = on_regions = None
        if phase != "map":
            seen = student.quantize(raw)
            output = student.losses(seen, own.targets, generators.samples)
            losses, dense = dict(output.losses), output.dense
            if phase == "joint" and self.distiller.student_regions:
                regions = output.proposals or student.propose(seen)
            on_regions = partial(student.region_outputs, seen) if student.second_stage else None
        if phase == "detection":
            return losses

        # 3. The teacher's target; from the bank if it has been computed before.
        target = self.target(views, own.targets, indices)

        # 4. The distillation loss, weighted by its dose.
        shown = self.enlarger(raw) if self.enlarger else raw
        view = StudentView(shown, regions, own.targets, generators.samples, phase == "map", dense, on_regions)
        distance = self.distiller.loss(view, target)
        if losses:
            losses["distillation"] = self.dose.weighed(raw.maps, torch.stack(list(losses.values())).sum(), distance)
        else:
            losses["distillation"] = self.dose.weight() * distance
        return losses

    def target(self, views: Views, truth: Targets, indices: Tensor | None) -> Target:
        """The distiller's target of a batch.

        Args:
            views: as the teacher sees them.
            truth: their ground truth as the student sees it.
            indices: as `forward`.
        """

        @torch.no_grad()
        def compute() -> Target:
            seen = self.teacher.look(views.images, self.distiller.teacher_regions)
            return channels_last(self.distiller.target(seen, truth))

        if self.bank is None or indices is None or views.kinds is None:
            return compute()
        return self.bank.get(indices * (exact_views(self.augmentation) or 1) + views.kinds, compute)

    def measured(self) -> dict[str, float]:
        """What was measured besides the losses since the last call; see `Dose.take`."""
        return {**self.dose.take(), **self.distiller.measured()}

    def phase(self, progress: float) -> Phase:
        """Which losses count after `progress` (0..1) of the steps."""
        if progress < self.config.map_steps:
            return "map"
        return "joint" if progress < self.config.last_step else "detection"
