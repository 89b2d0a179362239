"""The contract of a distiller: what a teacher leaves for its student, and how far the student is from it.

A distiller is one file with a class like this, and one line in `DISTILLERS` (tables.py). It is a module: it
may have weights of its own, which are trained with the student's, kept in checkpoints and left behind in the end.

Who calls what, in each training step (training/step.py):

    teacher.look     images                     -> TeacherView
    target           TeacherView, ground truth  -> Target, which the bank keeps as it is
    loss             StudentView, Target        -> a scalar, weighted by the dose afterwards
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from qmimic.config import MimicConfig, Section
from qmimic.contracts import Features, Proposals
from qmimic.data.targets import Targets
from qmimic.detectors.detector import Detector
from qmimic.detectors.quantize import Quantizer
from qmimic.errors import InputError
from qmimic.processes import Source

# Tensors by name, each [B, ...], without gradient: all that a student sees of its teacher. The same view of the same
# image gives the same target, whatever the student does, so that a bank can keep it.
Target = dict[str, Tensor]


@dataclass(frozen=True)
class TeacherView:
    """What a teacher sees in a batch.

    Attributes:
        features: its raw levels, not quantized.
        regions: where it sees objects, in falling order; None if nobody asked.
        dense: computes what it says at every place (`Detector.place_outputs`); None of a teacher that cannot.
    """

    features: Features
    regions: Proposals | None
    dense: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class StudentView:
    """What a student shows its distiller in a training step.

    Attributes:
        features: its raw levels, part of the graph.
        regions: where it sees objects by now; None if nobody asked.
        truth: ground truth in pixels of the same view.
        source: of whatever is drawn at random.
        whole_map: compare whole maps and no regions (`mimic.map_steps`).
        dense: what it says at every place in this step, part of the graph; None of a student that has no such outputs.
        on_regions: what its second stage says of regions [B, P, 4], part of the graph (`Detector.region_outputs`); None
            of a student that has none, and in a step without detection losses.
    """

    features: Features
    regions: Proposals | None
    truth: Targets
    source: Source
    whole_map: bool = False
    dense: Tensor | None = None
    on_regions: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class Heads:
    """What a frozen teacher says of maps like its own, whoever made them. The gradient passes to the maps.

    Attributes:
        places: of every place of its levels (`Detector.place_outputs`); None of a teacher that has no such outputs.
        regions: of regions [B, P, 4] of its map (`Detector.region_outputs`); None of one without a second stage.
        second_stage: see `Detector.second_stage`.
    """

    places: Callable[[Features], Tensor] | None = None
    regions: Callable[[Features, Tensor], tuple[Tensor, Tensor]] | None = None
    second_stage: str | None = None

    def answers(self, features: Features, boxes: Tensor) -> Target:
        """What it says of regions [B, P, 4], without gradient: `logits` and `deltas`, see `regions`."""
        assert self.regions is not None
        with torch.no_grad():
            logits, deltas = self.regions(features, boxes)
        return {"logits": logits, "deltas": deltas}


class Levelled(Protocol):
    """What `Sides` reads of a teacher."""

    @property
    def channels(self) -> tuple[int, ...]: ...

    @property
    def strides(self) -> tuple[int, ...]: ...

    @property
    def place_strides(self) -> tuple[int, ...]: ...

    @property
    def heads(self) -> Heads: ...


@dataclass(frozen=True)
class Sides:
    """Two networks whose maps are compared.

    Attributes:
        student_channels, teacher_channels: of each level.
        student_strides, teacher_strides: output strides of the levels, pixels, in growing order.
        rms: root mean square of each of the teacher's levels on training images, float32 scalars.
        quantizer: Q, with the teacher's stride s.
        size: height and width of the input of both, pixels.
        seed: of fresh weights.
        dense: whether the student and the teacher, in this order, have outputs at every place.
        anchors: widths and heights of the student's anchors, pixels; empty of a student without anchors.
        second_stage: of the student, see `Detector.second_stage`.
        heads: of the teacher.
        enlarged: whether a level of the student's is brought up to the teacher's stride, which its outputs do not have.
    """

    student_channels: tuple[int, ...]
    teacher_channels: tuple[int, ...]
    student_strides: tuple[int, ...]
    teacher_strides: tuple[int, ...]
    rms: tuple[Tensor, ...]
    quantizer: Quantizer
    size: tuple[int, int]
    seed: int
    dense: tuple[bool, bool] = (False, False)
    anchors: tuple[tuple[float, float], ...] = ()
    second_stage: str | None = None
    heads: Heads = Heads()
    enlarged: bool = False

    @classmethod
    def between(
        cls, student: Detector, teacher: Levelled, rms: tuple[Tensor, ...], quantizer: Quantizer, seed: int
    ) -> "Sides":
        """Of a student and whoever teaches it; both see pictures of the student's size."""
        return cls(
            student_channels=student.channels,
            teacher_channels=teacher.channels,
            student_strides=student.strides,
            teacher_strides=teacher.strides,
            rms=rms,
            quantizer=quantizer,
            size=student.spec.size,
            seed=seed,
            dense=(bool(student.place_strides), bool(teacher.place_strides)),
            anchors=student.anchor_sizes,
            second_stage=student.second_stage,
            heads=teacher.heads,
        )

    def pairs(self) -> tuple[tuple[int, int], ...]:
        """Indices (student's, teacher's) of the levels that have a stride in common.

        Raises:
            InputError: there are none.
        """
        own, others = self.student_strides, self.teacher_strides
        found = tuple((own.index(stride), others.index(stride)) for stride in own if stride in others)
        if not found:
            raise InputError(
                f"The student's maps have output strides {', '.join(map(str, own))} and the teacher's "
                f"{', '.join(map(str, others))}; a student can only be taught on a stride that both have. Set "
                "detector.output_stride (two stages) or detector.levels (one stage), or name another map of a file in "
                "teacher.maps."
            )
        return found


class Distiller(nn.Module):
    """What a student learns from a teacher besides detection.

    Args:
        config: the recipe's switches.
        sides: the two networks.

    Attributes:
        reads: which settings of a recipe's `mimic` it reads, of those that not every distiller reads; others are
            refused when they are set.
        Settings: of its own, which a recipe gives as `mimic.settings`.
        settings: these, checked.
        teacher_regions, student_regions: whether it needs to know where one of them sees objects.
    """

    reads: ClassVar[frozenset[str]] = frozenset()
    Settings: ClassVar[type[Section]] = Section
    teacher_regions = False
    student_regions = False

    def __init__(self, config: MimicConfig, sides: Sides) -> None:
        super().__init__()
        self.config = config
        self.settings = self.Settings.model_validate(config.settings)
        self.sides = sides

    @abstractmethod
    def target(self, view: TeacherView, truth: Targets) -> Target:
        """All that the loss needs of the teacher; computed once for each view where there is a bank.

        Args:
            view: with regions if `teacher_regions`.
            truth: ground truth of the same images.
        """
        raise NotImplementedError

    @abstractmethod
    def loss(self, student: StudentView, target: Target) -> Tensor:
        """How far the student is from the target: a scalar, not yet weighted by lambda; 0 if nothing can be compared.

        Args:
            student: with regions if `student_regions`.
            target: from `target`.
        """
        raise NotImplementedError

    def target_settings(self) -> Mapping[str, object]:
        """Plain values of the settings that decide `target`: equal ones share a bank."""
        return {name: getattr(self.config, name) for name in type(self.config).model_fields}

    def grids(self) -> Mapping[str, Quantizer]:
        """By name, the tensors of a target whose values lie on a quantizer's dictionary; a bank keeps their levels."""
        return {}

    def measured(self) -> dict[str, float]:
        """Numbers for the log besides the loss, measured since the last call."""
        return {}
