"""What a student's map has in common with its teacher's on the regions of a split."""

from collections.abc import Iterator

import torch
from torch import Tensor

from qmimic.data.loader import Loader
from qmimic.detectors.detector import Detector
from qmimic.distill.mimic import MatchCounts, Mimic, choose_regions, count_matches


def matching(student: Detector, teacher: Detector, mimic: Mimic, loader: Loader) -> MatchCounts:
    """Matching ratio of two detectors' quantized maps on the regions of a split, see `region_levels`."""
    return sum((count_matches(*own) for own in region_levels(student, teacher, mimic, loader)), MatchCounts())


@torch.no_grad()
def region_levels(
    student: Detector, teacher: Detector, mimic: Mimic, loader: Loader
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Levels of two detectors' maps on the regions of a split, batch by batch, without augmentation.

    Regions are the recipe's; where it has none (the whole map), the teacher's proposals and the ground truth serve.

    Yields:
        Levels of the teacher and of the student, [B, P, C_t, k, k], and which regions count, bool [B, P].
    """
    config = mimic.config
    if config.regions == "map":
        config = config.model_copy(update={"regions": "teacher"})
    device = student.device
    generator = torch.Generator(device).manual_seed(0)
    for batch in loader.once():
        images, targets = batch.images.to(device), batch.targets.to(device)
        student_map, teacher_map = student.raw_features(images), teacher.raw_features(images)
        source = teacher if config.regions == "teacher" else student
        own_map = teacher_map if source is teacher else student_map
        proposals = source.propose(source.quantize(own_map))
        regions = choose_regions(config, proposals, targets, student.spec.size, generator)
        yield (*mimic.levels(student_map.map, teacher_map.map, regions), regions.valid)
