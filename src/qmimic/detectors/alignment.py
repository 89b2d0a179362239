"""Which places of a one-stage detector learn which object: those that find it best so far, a whole batch at once.

Task-aligned assignment (Feng et al., TOOD, ICCV 2021): for each object, the places are ranked by how sure they are of
its class and by how well their box fits it, and the best few are its positives. So no size of object is tied to a level
by hand: the level whose boxes come nearest wins.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qmimic.boxes import iou
from qmimic.data.targets import IGNORED, Targets

POSITIVES = 10  # places that learn one object, at most
SCORE_POWER, IOU_POWER = 0.5, 4.0  # of the ranking: score^a IoU^b
REACH = 1.0  # strides around its middle within which even the smallest object has places
NEARNESS = 1e-3  # what a place at an object's middle gains as if by IoU: it ranks places while no box fits yet


@dataclass(frozen=True)
class Alignment:
    """What the places learn.

    Attributes:
        index: int64 [B, N], which of the image's boxes.
        positive: bool [B, N], places that learn an object.
        share: float32 [B, N], a place's weight for its object: 1 for the best, less for others by rank; 0 where
            nothing is learnt.
        quality: float32 [B, N], the score that a place should give its class: its share of the object's best IoU.
        counted: bool [B, N], False for places on ignored boxes, which say nothing against any class.
    """

    index: Tensor
    positive: Tensor
    share: Tensor
    quality: Tensor
    counted: Tensor


@torch.no_grad()
def align(scores: Tensor, boxes: Tensor, places: Tensor, targets: Targets) -> Alignment:
    """Assign places to the ground truth.

    Args:
        scores: [B, N, K], 0..1, and boxes: [B, N, 4], both as the detector gives them now.
        places: [N, 3], x and y of each place and the stride of its level, pixels.
        targets: ground truth, M boxes per image.
    """
    x, y, stride = places.T
    low, high = targets.boxes[..., :2, None], targets.boxes[..., 2:, None]  # [B, M, 2, 1]
    middle, reach = (low + high) / 2, torch.maximum((high - low) / 2, REACH * stride)
    offset = (torch.stack([x, y]) - middle).abs_()  # [B, M, 2, N]
    inside = (offset < reach).all(2) & (targets.labels >= 0)[..., None]
    near = NEARNESS / (1 + (offset / stride).square_().sum(2))
    fit = iou(targets.boxes, boxes).add_(near).mul_(inside)  # [B, M, N]
    label = targets.labels.clamp(min=0)[..., None].expand_as(fit)
    rank = scores.transpose(1, 2).gather(1, label).clamp_(min=1e-4).pow_(SCORE_POWER).mul_(fit.pow(IOU_POWER))
    best = rank.topk(min(POSITIVES, len(places)), 2, sorted=False)
    chosen = torch.zeros_like(rank).scatter_(2, best.indices, best.values)
    # A place that several objects choose learns the one that its box fits best.
    claim, index = fit.masked_fill(chosen == 0, 0).max(1)
    positive = claim > 0
    own = chosen * torch.zeros_like(chosen).scatter_(1, index[:, None], positive[:, None].to(chosen.dtype))
    highest = own.amax(2, keepdim=True).clamp_(min=1e-30)
    top = (fit * (own > 0)).amax(2, keepdim=True)
    shares = own / highest
    quality = (shares * top).amax(1).clamp(max=1)
    ignored = (targets.labels == IGNORED)[..., None]
    counted = positive | ~((offset * 2 < (high - low)).all(2) & ignored).any(1)
    return Alignment(index, positive, shares.amax(1), quality, counted)
