"""What a student's map has in common with its teacher's on the regions of a split."""

from collections.abc import Iterator
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from qmimic.data.loader import Loader
from qmimic.detectors.detector import Detector
from qmimic.distill.mimic import Mimic
from qmimic.distill.regions import choose_regions
from qmimic.distill.teacher import Teacher
from qmimic.tables import DISTANCES, MODES

NEAR = 0.3  # absolute: the paper's section 4 counts entries with |f_t - f_s| below it


@dataclass(frozen=True)
class MatchCounts:
    """Entries on regions, and how many of them agree.

    Attributes:
        entries, matched: over all entries, those with Q(f_t) = Q(r(f_s)).
        nonzero, nonzero_matched: over those where the teacher's is not zero; an all-zero student scores 0 there.
        near: entries that match as the paper has it, |f_t - f_s| < 0.3 in the map's own units.
    """

    entries: int = 0
    matched: int = 0
    nonzero: int = 0
    nonzero_matched: int = 0
    near: int = 0

    def __add__(self, other: "MatchCounts") -> "MatchCounts":
        return MatchCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def ratio(self) -> float:
        """Share of the entries that are on the same level, 0..1."""
        return self.matched / max(1, self.entries)

    @property
    def nonzero_ratio(self) -> float:
        """The same over the teacher's non-zero entries, 0..1."""
        return self.nonzero_matched / max(1, self.nonzero)

    @property
    def near_ratio(self) -> float:
        """The paper's matching ratio, 0..1."""
        return self.near / max(1, self.entries)


@dataclass(frozen=True)
class RegionPair:
    """The same regions of a teacher's and a student's map.

    Attributes:
        teacher, student: f_t^i and r(f_s^i), float32 [B, P, C_t, k, k], quantized where the loss sees them so.
        teacher_levels, student_levels: indices in the dictionary of both, whole numbers, the same shape.
        valid: bool [B, P], which regions count.
    """

    teacher: Tensor
    student: Tensor
    teacher_levels: Tensor
    student_levels: Tensor
    valid: Tensor

    def counts(self) -> MatchCounts:
        """Entry by entry."""
        shape = (*self.valid.shape, *[1] * (self.teacher.dim() - 2))
        counted = self.valid.view(shape).expand_as(self.teacher)
        equal = (self.teacher_levels == self.student_levels) & counted
        nonzero = (self.teacher_levels != 0) & counted
        near = ((self.teacher - self.student).abs() < NEAR) & counted
        counts = (counted, equal, nonzero, equal & nonzero, near)
        return MatchCounts(*(int(one.sum()) for one in counts))

    def near_shares(self) -> Tensor:
        """Of each valid region the share of entries with |f_t - f_s| < 0.3, float32 [N]; the paper's figure 5."""
        near = ((self.teacher - self.student).abs() < NEAR).float()
        return near.flatten(2).mean(2)[self.valid]


def matching(student: Detector, teacher: Teacher, distiller: Mimic, loader: Loader) -> MatchCounts:
    """How far a student's and a teacher's maps agree on the regions of a split, see `region_pairs`."""
    return sum((pair.counts() for pair in region_pairs(student, teacher, distiller, loader)), MatchCounts())


@torch.no_grad()
def region_pairs(student: Detector, teacher: Teacher, distiller: Mimic, loader: Loader) -> Iterator[RegionPair]:
    """A student's and a teacher's maps on the regions of a split, batch by batch and level by level, as the images are.

    Regions are the recipe's; where it has none (the whole map), the teacher's and the ground truth serve, or the ground
    truth alone where the teacher shows no regions.
    """
    config = distiller.config
    if config.regions == "map":
        whose = "teacher" if teacher.has_regions else "ground_truth"
        config = config.model_copy(update={"regions": whose})
    device, q = student.device, distiller.quantizer
    generator = torch.Generator(device).manual_seed(0)
    for batch in loader.once():
        images, targets = batch.images.to(device), batch.targets.to(device)
        own = student.raw_features(images)
        seen = teacher.look(images, config.regions == "teacher")
        proposals = seen.regions if seen.regions else student.propose(student.quantize(own))
        regions = choose_regions(config, proposals, targets, student.spec.size, generator)
        for place, (ours, theirs) in enumerate(distiller.pairs):
            pair = (own.maps[ours], seen.features.maps[theirs], regions, place)
            of_teacher, of_student = distiller.sides_of(*pair)
            teacher_levels, student_levels = q.levels_inside(of_teacher), q.levels_inside(of_student)
            mode, distance = MODES[distiller.config.mode], DISTANCES[distiller.config.distance]
            yield RegionPair(
                q.values_inside(teacher_levels) if mode.teacher else of_teacher,
                q.values_inside(student_levels) if mode.student and not distance.to_cells else of_student,
                teacher_levels,
                student_levels,
                regions.valid,
            )
