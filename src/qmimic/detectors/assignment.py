"""Which boxes anchors and proposals are trained towards, and which of them are sampled; whole batches at once."""

from dataclasses import dataclass

import torch
from torch import Tensor

from qmimic.boxes import iou, take
from qmimic.data.targets import IGNORED, Targets
from qmimic.processes import Source, rand


@dataclass(frozen=True)
class Assignment:
    """Assignment of candidate boxes to ground truth.

    Attributes:
        index: int64 [B, N], the box with the largest overlap.
        positive: bool [B, N].
        negative: bool [B, N]; candidates that are neither are left out of the losses.
    """

    index: Tensor
    positive: Tensor
    negative: Tensor


def assign(candidates: Tensor, targets: Targets, high: float, low: float, keep_best: bool) -> Assignment:
    """Assign candidates to the ground truth by IoU.

    Args:
        candidates: [B or 1, N, 4] boxes.
        targets: ground truth.
        high: a candidate with at least this IoU to some box is positive.
        low: a candidate below this IoU to every box is negative.
        keep_best: every box's best candidates are positive too, however low their IoU (RPN).
    """
    overlap = iou(targets.boxes, candidates)  # [B, M, N]: the many candidates are contiguous in memory
    known = overlap * (targets.labels >= 0)[..., None]
    best, index = known.max(1)
    positive = best >= high
    if keep_best:
        top = known.amax(2, keepdim=True).clamp_(min=1e-6)
        positive |= (known >= top).any(1)
    negative = (best < low) & ~positive
    ignored = targets.labels == IGNORED
    if ignored.any():
        # A candidate on an ignored box says nothing against any class.
        negative &= overlap.mul_(ignored[..., None]).amax(1) < low
    return Assignment(index, positive, negative)


@dataclass(frozen=True)
class Sampled:
    """A sample of candidates.

    Attributes:
        index: int64 [B, S], which candidates.
        positive: bool [B, S].
        valid: bool [B, S], False for slots that could not be filled.
    """

    index: Tensor
    positive: Tensor
    valid: Tensor


def sample(assigned: Assignment, count: int, positive_share: float, source: Source) -> Sampled:
    """Draw `count` candidates per image at random; at most `positive_share` of them are positive.

    Args:
        assigned: N candidates per image.
        count: S; fewer if there are fewer candidates.
        positive_share: of the sample; negatives fill the rest.
        source: of random numbers, on the device of the assignment.
    """
    candidates = assigned.positive.shape[1]
    count = min(count, candidates)
    most = min(max(1, int(count * positive_share)), candidates)
    keys = rand(source, *assigned.positive.shape)
    # The `most` positives with the largest keys come before all negatives; other positives are left out.
    lucky = keys.masked_fill(~assigned.positive, -1).topk(most, sorted=False)
    order = keys.masked_fill_(~assigned.negative, -1)
    # If there are fewer positives, the spare entries of `lucky` name candidates, which keep their own keys.
    ranked = torch.where(lucky.values >= 0, lucky.values + 2, order.gather(1, lucky.indices))
    order.scatter_(1, lucky.indices, ranked)
    order, index = order.topk(count, sorted=False)
    return Sampled(index, order >= 2, order >= 0)


def everything(assigned: Assignment) -> Sampled:
    """All N candidates of each image as a sample; those that are positive or negative are valid."""
    index = torch.arange(assigned.index.shape[1], device=assigned.index.device).expand_as(assigned.index)
    return Sampled(index, assigned.positive, assigned.positive | assigned.negative)


def assigned_boxes(targets: Targets, assigned: Assignment, sampled: Sampled) -> tuple[Tensor, Tensor]:
    """Boxes [B, S, 4] and labels [B, S] that the sampled candidates are assigned to."""
    index = assigned.index.gather(1, sampled.index)
    return take(targets.boxes, index), targets.labels.gather(1, index)
