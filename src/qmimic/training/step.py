"""What a network is trained for: detection alone, or detection while it mimics a teacher.

An objective is a module, so that one forward call goes through DistributedDataParallel whole.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from qmimic.config import AugmentConfig, MimicConfig
from qmimic.contracts import Proposals
from qmimic.data.augment import augment, exact_views
from qmimic.data.targets import Targets
from qmimic.detectors.detector import Detector
from qmimic.distill.bank import TeacherView
from qmimic.distill.dose import Dose
from qmimic.distill.mimic import Mimic, as_map, as_regions, choose_regions
from qmimic.distill.teacher import Teacher
from qmimic.processes import Share, Source

Phase = Literal["map", "joint", "detection"]


@dataclass(frozen=True)
class StepGenerators:
    """Everything random in one training step: a generator for the views, one for the samples.

    The two are apart so that arms which sample differently still see the same views.
    """

    views: Source
    samples: Source

    def of_rows(self, rows: slice, total: int) -> "StepGenerators":
        """What falls to these rows of a batch of `total` images."""
        assert isinstance(self.views, torch.Generator)
        assert isinstance(self.samples, torch.Generator)
        return StepGenerators(Share(self.views, rows, total), Share(self.samples, rows, total))


class DetectionObjective(nn.Module):
    """L_cls^rpn + L_reg^rpn + L_cls^det + L_reg^det on augmented images."""

    def __init__(self, detector: Detector, augmentation: AugmentConfig) -> None:
        super().__init__()
        self.detector = detector
        self.augmentation = augmentation

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
            indices: int64 [B], places of the images in the training split; only a teacher's bank needs them.
        """
        views = augment(images, targets, self.augmentation, generators.views)
        return self.detector.losses(self.detector.features(views.images), views.targets, generators.samples).losses

    def measured(self) -> dict[str, float]:
        """What was measured besides the losses since the last call: nothing."""
        return {}


class MimicObjective(nn.Module):
    """Detection losses plus lambda * L_m against a frozen teacher.

    Args:
        student: the detector that learns.
        mimic: the adaptor and the loss.
        teacher: frozen; it is no part of the module's state.
        config: lambda, regions and phases.
        augmentation: the views.
    """

    def __init__(
        self,
        student: Detector,
        mimic: Mimic,
        teacher: Teacher,
        config: MimicConfig,
        augmentation: AugmentConfig,
    ) -> None:
        super().__init__()
        self.detector = student
        self.mimic = mimic
        self.config = config
        self.augmentation = augmentation
        self.teacher = teacher
        self.dose = Dose(None if config.weight == "auto" else config.weight, config.share)

    def forward(
        self,
        images: Tensor,
        targets: Targets,
        generators: StepGenerators,
        progress: float,
        indices: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms of the loss, `mimic` already weighted by lambda. Args as `DetectionObjective.forward`."""
        phase = self.phase(progress)
        views = augment(images, targets, self.augmentation, generators.views)
        targets = views.targets
        raw = self.detector.raw_features(views.images)
        losses: dict[str, Tensor] = {}
        proposals = None
        if phase != "map":
            output = self.detector.losses(self.detector.quantize(raw), targets, generators.samples)
            losses, proposals = dict(output.losses), output.proposals
        if phase == "detection":
            return losses
        records = None
        if indices is not None and views.kinds is not None:
            records = indices * (exact_views(self.augmentation) or 1) + views.kinds

        def choose(proposals: Proposals | None) -> Proposals | None:
            if phase == "map" or self.config.regions == "map":
                return None
            return choose_regions(self.config, proposals, targets, self.detector.spec.size, generators.samples)

        def pool(seen: TeacherView) -> TeacherView:
            chosen = choose(seen.proposals)
            return TeacherView(as_map(self.mimic.target(seen.features, chosen)), chosen)

        if phase == "joint" and self.teacher.keeps_regions:
            taught = self.teacher.look(views.images, records, True, pool)
            regions, target = taught.proposals, as_regions(taught.features)
        else:
            of_teacher = phase == "joint" and self.config.regions == "teacher"
            taught = self.teacher.look(views.images, records, of_teacher)
            regions = choose(taught.proposals if of_teacher else proposals)
            target = self.mimic.target(taught.features, regions)
        mimic = self.mimic.loss_to(raw.map, target, regions)
        if losses:
            losses["mimic"] = self.dose.weighed(raw.map, torch.stack(list(losses.values())).sum(), mimic)
        else:
            losses["mimic"] = self.dose.weight() * mimic
        return losses

    def measured(self) -> dict[str, float]:
        """What was measured besides the losses since the last call; see `Dose.take`."""
        return self.dose.take()

    def phase(self, progress: float) -> Phase:
        """Which losses count after `progress` (0..1) of the steps."""
        if progress < self.config.map_steps:
            return "map"
        return "joint" if progress < self.config.last_step else "detection"
