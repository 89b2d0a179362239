"""What all heads share: the losses of regions, choosing the hardest, and detections from scores and boxes."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from qmimic import boxes as box_ops
from qmimic.contracts import BatchDetections, Part
from qmimic.data.targets import Targets
from qmimic.detectors.spec import DetectorSpec

# Suppression is quadratic. Four candidates for each detection that is kept never measurably lost accuracy.
CANDIDATES = 4
DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SMOOTH_L1_BETA = 1 / 9


class RegionHead(Part):
    """A head over regions."""

    @abstractmethod
    def forward(self, features: Tensor, rois: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 [B, P, 1 + K], background first, and deltas float32 [B, P, K or 1, 4].

        Args:
            features: map [B, C, H, W].
            rois: [B, P, 4], xyxy in pixels of the network's input; no gradient.
        """
        raise NotImplementedError

    def check_export(self) -> None:
        """Check that formats can write the head. Raises InputError: none can; the message says what to change."""


def pad_with_truth(rois: Tensor, valid: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Proposals followed by the ground-truth boxes, so that the head sees objects from the first step.

    Args:
        rois: [B, P, 4]; valid: [B, P].
        targets: ground truth, M boxes per image.

    Returns:
        [B, P + M, 4] and bool [B, P + M].
    """
    return torch.cat([rois, targets.boxes], 1), torch.cat([valid, targets.labels >= 0], 1)


def region_losses(
    logits: Tensor, deltas: Tensor, rois: Tensor, boxes: Tensor, labels: Tensor, positive: Tensor
) -> tuple[Tensor, Tensor]:
    """Cross entropy and smooth L1 distance of every region, [B, S] each; the distance is 0 where there is no object.

    Args:
        logits: [B, S, 1 + K], background first.
        deltas: [B, S, K, 4], or [B, S, 1, 4] for class-agnostic boxes.
        rois: [B, S, 4], the regions.
        boxes: [B, S, 4]; labels: [B, S]; what the regions are matched to.
        positive: [B, S], regions that hold an object.
    """
    wanted_class = torch.where(positive, labels + 1, 0)
    entropy = F.cross_entropy(logits.flatten(0, 1), wanted_class.flatten(), reduction="none").view_as(labels)
    own = labels.clamp(min=0, max=deltas.shape[2] - 1)[..., None, None].expand(-1, -1, 1, 4)
    distance = F.smooth_l1_loss(
        deltas.gather(2, own)[:, :, 0],
        box_ops.encode(boxes, rois, DELTA_WEIGHTS),
        reduction="none",
        beta=SMOOTH_L1_BETA,
    )
    return entropy, distance.sum(-1) * positive


@torch.no_grad()
def hardest(losses: Tensor, valid: Tensor, count: int) -> Tensor:
    """Online hard example mining (Shrivastava et al., CVPR 2016): the `count` valid regions with the largest losses.

    Args:
        losses: [B, S]; valid: bool [B, S].
        count: regions per image.

    Returns:
        bool [B, S].
    """
    keys = losses.masked_fill(~valid, -1)
    index = keys.topk(min(count, keys.shape[1]), sorted=False).indices
    return torch.zeros_like(valid).scatter_(1, index, True) & valid


def region_scores(logits: Tensor) -> Tensor:
    """Scores [B, P, K] of logits [B, P, 1 + K], background first."""
    return logits.softmax(-1)[..., 1:]


def region_boxes(deltas: Tensor, rois: Tensor) -> Tensor:
    """Boxes [B, P, K or 1, 4] from deltas of the same shape and regions [B, P, 4]."""
    return box_ops.decode(deltas, rois[:, :, None], DELTA_WEIGHTS)


def detect_regions(
    logits: Tensor, deltas: Tensor, rois: Tensor, valid: Tensor, size: tuple[int, int], config: DetectorSpec
) -> BatchDetections:
    """Detections from a head's outputs, see `best_detections`.

    Args:
        logits: [B, P, 1 + K]; deltas: [B, P, K or 1, 4]; rois: [B, P, 4]; valid: [B, P].
        size: height and width of the network's input, pixels.
        config: thresholds.
    """
    return best_detections(region_scores(logits), region_boxes(deltas, rois), valid, size, config)


def best_detections(
    scores: Tensor, boxes: Tensor, valid: Tensor, size: tuple[int, int], config: DetectorSpec
) -> BatchDetections:
    """Thresholded, suppressed detections; the suppression is greedy within a class.

    Args:
        scores: [B, N, K]; boxes: [B, N, K or 1, 4], xyxy in pixels; valid: [B, N].
        size: height and width of the network's input, pixels.
        config: thresholds.
    """
    classes = scores.shape[2]
    boxes = box_ops.clip(boxes, size).expand(-1, -1, classes, 4)
    usable = valid[..., None] & (scores > config.score_threshold) & ((boxes[..., 2:] - boxes[..., :2]) > 1e-2).all(-1)
    keys = scores.masked_fill(~usable, -1).flatten(1)
    best, index = keys.topk(min(CANDIDATES * config.max_detections, keys.shape[1]), sorted=True)
    return suppressed(box_ops.take(boxes.flatten(1, 2), index), best, index % classes, config)


def suppressed(boxes: Tensor, scores: Tensor, labels: Tensor, config: DetectorSpec) -> BatchDetections:
    """The detections among candidates; the suppression is greedy within a class.

    Args:
        boxes: [B, C, 4], xyxy in pixels, within the image.
        scores: [B, C], in falling order, below 0 where there is no candidate; labels: [B, C].
        config: thresholds.
    """
    apart = labels[..., None] * (max(config.size) + 1.0)  # moved far apart, classes do not suppress each other
    stays = box_ops.suppress(boxes + apart, scores >= 0, config.nms_threshold, config.max_detections)
    kept, place = scores.masked_fill(~stays, -1).topk(min(config.max_detections, scores.shape[1]), sorted=True)
    return BatchDetections(box_ops.take(boxes, place), kept, labels.gather(1, place), kept >= 0)
