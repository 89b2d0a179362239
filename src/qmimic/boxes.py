"""Box arithmetic on batches of tensors: overlap, the R-CNN encoding, suppression.

Boxes are float32 xyxy, 0-based, absolute pixels, unless said otherwise; a box from x1 to x2 is x2 - x1 wide.
Every function has fixed shapes and no loop over images or boxes.
"""

import math

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000.0 / 16)  # bounds exp() of an untrained regression, as in torchvision


def area(boxes: Tensor) -> Tensor:
    """Areas [...] of boxes [..., 4], in square pixels."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersections(a: Tensor, b: Tensor) -> Tensor:
    """Overlap areas of boxes a [..., N, 4] with boxes b [..., M, 4], [..., N, M]."""
    # Each coordinate is contiguous in memory, so the inner loop over b is a vector operation.
    left_a, top_a, right_a, bottom_a = a.movedim(-1, 0).contiguous()[..., None]
    left_b, top_b, right_b, bottom_b = b.movedim(-1, 0).contiguous()[..., None, :]
    width = torch.minimum(right_a, right_b).sub_(torch.maximum(left_a, left_b)).clamp_(min=0)
    height = torch.minimum(bottom_a, bottom_b).sub_(torch.maximum(top_a, top_b)).clamp_(min=0)
    return width.mul_(height)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes a [..., N, 4] with boxes b [..., M, 4], [..., N, M]; 0 for empty pairs."""
    overlap = intersections(a, b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - overlap
    return overlap / union.clamp(min=1e-9)


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalized IoU (Rezatofighi et al., CVPR 2019) of boxes a [..., 4] and b [..., 4] one by one, [...], -1 to 1.

    IoU minus the share of the smallest box around both that neither covers, so that disjoint boxes have a gradient.
    """
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1).clamp(min=1e-9)
    union = (area(a) + area(b) - inner).clamp(min=1e-9)
    return inner / union - (outer - union) / outer


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Regression targets [..., 4] that turn anchors [..., 4] into boxes [..., 4] (Girshick 2014, appendix C)."""
    anchor_wh = (anchors[..., 2:] - anchors[..., :2]).clamp(min=1e-3)
    box_wh = (boxes[..., 2:] - boxes[..., :2]).clamp(min=1e-3)
    shift = (boxes[..., :2] + box_wh / 2 - anchors[..., :2] - anchor_wh / 2) / anchor_wh
    return torch.cat([shift, torch.log(box_wh / anchor_wh)], -1) * boxes.new_tensor(weights)


def decode(deltas: Tensor, anchors: Tensor, weights: tuple[float, float, float, float]) -> Tensor:
    """Boxes [..., 4] from regressed deltas [..., 4] and anchors [..., 4]; the inverse of `encode`."""
    deltas = deltas / deltas.new_tensor(weights)
    anchor_wh = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + anchor_wh / 2 + deltas[..., :2] * anchor_wh
    half = torch.exp(deltas[..., 2:].clamp(max=MAX_LOG_SCALE)) * anchor_wh / 2
    return torch.cat([centre - half, centre + half], -1)


def clip(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Boxes [..., 4] cut to an image of `size` (height, width)."""
    height, width = size
    return torch.minimum(boxes.clamp(min=0), boxes.new_tensor([width, height, width, height]))


def suppress(boxes: Tensor, valid: Tensor, threshold: float, most: int | None = None) -> Tensor:
    """Greedy non-maximum suppression of a whole batch at once.

    A box stays if no *staying* box before it overlaps it by more than `threshold`. That recursion has one fixed
    point, the greedy answer; iterating it from "all stay" reaches it in as many products as the longest chain
    of suppressions (about five), which for K <= 256 is faster than one call of torchvision's `nms` per image.

    Args:
        boxes: [B, K, 4] in falling order of score.
        valid: bool [B, K]; invalid boxes neither stay nor suppress.
        threshold: largest IoU of two boxes that both stay.
        most: how many are needed, None for all; the result is undefined for boxes after the first `most` that stay.

    Returns:
        bool [B, K], True where a box stays.
    """
    if torch.compiler.is_exporting():
        # How often to iterate depends on the boxes, which no exported graph can express: there it is one operation.
        whole: Tensor = torch.ops.qmimic.suppress(boxes, valid, threshold, most or boxes.shape[1])
        return whole
    areas = area(boxes)
    # iou > t  <=>  overlap (1 + t) / t - area > area: no division, and only one buffer.
    suppressors = intersections(boxes, boxes).mul_((1 + threshold) / threshold)
    suppressors.sub_(areas[:, :, None]).gt_(areas[:, None, :]).triu_(1)
    stays = valid.to(boxes.dtype)
    for _ in range(boxes.shape[1]):
        hit = torch.bmm(stays[:, None], suppressors)[:, 0] > 0
        after = (valid & ~hit).to(boxes.dtype)
        if torch.equal(after, stays):
            break
        stays = after
    return stays > 0


def suppress_by_label(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Greedy non-maximum suppression among the many boxes of one picture, each label for itself.

    Args:
        boxes: [D, 4] xyxy.
        scores: [D].
        labels: int64 [D].
        threshold: largest IoU of two boxes of a label that both stay.

    Returns:
        int64 indices of the boxes that stay, in falling order of score.
    """
    from torchvision.ops import batched_nms  # here: importing it takes seconds, and few commands need it

    kept: Tensor = batched_nms(boxes, scores, labels, threshold)
    return kept


@torch.library.custom_op("qmimic::suppress", mutates_args=())
def _suppress(boxes: Tensor, valid: Tensor, threshold: float, most: int) -> Tensor:
    return suppress(boxes, valid, threshold, most)


@_suppress.register_fake
def _(boxes: Tensor, valid: Tensor, threshold: float, most: int) -> Tensor:
    return torch.empty_like(valid)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Rows `index` [B, K] of `values` [B, N, ...]: [B, K, ...]."""
    shape = index.shape + values.shape[2:]
    return values.gather(1, index.reshape(index.shape + (1,) * (values.dim() - 2)).expand(shape))
