"""The regions on which a student's maps are compared with its teacher's."""

import torch

from qmimic.boxes import take
from qmimic.config import MimicConfig
from qmimic.contracts import Proposals
from qmimic.data.targets import Targets
from qmimic.detectors.assignment import Assignment, assign, sample
from qmimic.detectors.rpn import first
from qmimic.distill.distiller import StudentView, Target
from qmimic.processes import Source, rand

SETTINGS = frozenset({"regions", "with_truth", "sampling", "region_count"})  # of `MimicConfig`, that are read here
POSITIVE_IOU = 0.5  # of a region with an object; Li et al. do not print theirs


def choose_regions(
    config: MimicConfig,
    proposals: Proposals | None,
    targets: Targets,
    size: tuple[int, int],
    source: Source | None,
) -> Proposals:
    """The regions on which maps are matched, at most `region_count` an image.

    Args:
        config: whose regions, how many, which of them, and whether ground truth joins.
        proposals: the teacher's or the student's, as `config.regions` says; unused by the other choices.
        targets: ground truth.
        size: height and width of the network's input, pixels.
        source: of random regions and of samples; None where nothing is drawn.
    """
    truth = Proposals(targets.boxes, targets.labels >= 0)
    if config.regions == "ground_truth":
        return first(truth.boxes, truth.valid, config.region_count)
    if config.regions == "random":
        assert source is not None
        proposals = random_regions(len(targets.boxes), config.region_count, size, source)
    assert proposals is not None, f"mimic.regions={config.regions} needs proposals"
    boxes, valid = proposals.boxes, proposals.valid
    if config.with_truth:
        boxes, valid = torch.cat([truth.boxes, boxes], 1), torch.cat([truth.valid, valid], 1)
    if config.sampling == "balanced":
        assert source is not None
        return balanced(Proposals(boxes, valid), targets, config.region_count, source)
    return first(boxes, valid, config.region_count)


def regions_of_step(config: MimicConfig, student: StudentView, target: Target, size: tuple[int, int]) -> Proposals:
    """The regions of a training step: those that a target holds (`boxes`, `valid`) where they are the teacher's.

    Args:
        config: as `choose_regions`.
        student: whose regions, ground truth and source of random numbers may be needed.
        target: of the same images.
        size: height and width of the network's input, pixels.
    """
    if config.regions == "teacher":
        return Proposals(target["boxes"], target["valid"])
    return choose_regions(config, student.regions, student.truth, size, student.source)


def balanced(regions: Proposals, targets: Targets, count: int, source: Source) -> Proposals:
    """At most `count` regions an image, drawn at random, as many without an object as with one (Li et al., 3.4).

    An image in which every region has an object, or none has, gives none.

    Args:
        regions: to draw from.
        targets: ground truth.
        count: positive and negative together.
        source: of the draw.
    """
    assigned = assign(regions.boxes, targets, POSITIVE_IOU, POSITIVE_IOU, keep_best=False)
    usable = Assignment(assigned.index, assigned.positive & regions.valid, assigned.negative & regions.valid)
    drawn = sample(usable, count, 0.5, source)
    negative = drawn.valid & ~drawn.positive
    each = torch.minimum(drawn.positive.sum(1, keepdim=True), negative.sum(1, keepdim=True))
    kept = (drawn.positive & (drawn.positive.cumsum(1) <= each)) | (negative & (negative.cumsum(1) <= each))
    return first(take(regions.boxes, drawn.index), kept, count)


def random_regions(batch: int, count: int, size: tuple[int, int], source: Source) -> Proposals:
    """Boxes with sides from 1/8 of the image's to the whole, anywhere inside it."""
    drawn = rand(source, batch, count, 4)
    whole = drawn.new_tensor([size[1], size[0]])
    sides = (0.125 + 0.875 * drawn[..., :2]) * whole
    corner = drawn[..., 2:] * (whole - sides)
    return Proposals(torch.cat([corner, corner + sides], -1), torch.ones_like(drawn[..., 0], dtype=torch.bool))
