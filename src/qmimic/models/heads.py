"""The head that classifies and refines regions: two layers, then scores and boxes (Girshick, ICCV 2015)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmimic import boxes as box_ops
from qmimic.config import DetectorConfig
from qmimic.data.targets import Targets

DELTA_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
SMOOTH_L1_BETA = 1 / 9


@dataclass(frozen=True)
class BatchDetections:
    """Detections of a batch, in falling order of score.

    Attributes:
        boxes: float32 [B, D, 4], xyxy in pixels of the network's input.
        scores: float32 [B, D].
        labels: int64 [B, D], class index.
        valid: bool [B, D]; False where an image had fewer.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    valid: Tensor


class TwoLayerHead(nn.Module):
    """Two fully connected layers over pooled regions, then class scores and a box for each class.

    Args:
        channels: channels of the map.
        classes: number of classes, background not counted.
        width: units of the two layers.
        config: size of regions, thresholds.
    """

    def __init__(self, channels: int, classes: int, width: int, config: DetectorConfig) -> None:
        super().__init__()
        self.config = config
        self.classes = classes
        self.fc1 = nn.Linear(channels * config.roi_size**2, width)
        self.fc2 = nn.Linear(width, width)
        self.scores = nn.Linear(width, classes + 1)
        self.deltas = nn.Linear(width, 4 * classes)
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.scores.bias)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Logits float32 [B, P, 1 + K], background first, and deltas float32 [B, P, K, 4].

        Args:
            regions: pooled features [B, P, C, k, k].
        """
        # Bin by bin, channels innermost, as RoIAlign leaves them: no copy. (torchvision: channel by channel.)
        x = F.relu(self.fc1(regions.permute(0, 1, 3, 4, 2).flatten(2)), inplace=True)
        x = F.relu(self.fc2(x), inplace=True)
        return self.scores(x).float(), self.deltas(x).float().unflatten(2, (self.classes, 4))

    def losses(
        self,
        logits: Tensor,
        deltas: Tensor,
        rois: Tensor,
        boxes: Tensor,
        labels: Tensor,
        positive: Tensor,
        valid: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """L_cls^det and L_reg^det, scalars.

        Args:
            logits: [B, S, 1 + K]; deltas: [B, S, K, 4]; rois: [B, S, 4], the sampled regions.
            boxes: [B, S, 4]; labels: [B, S]; what the regions are matched to.
            positive: [B, S], regions that hold an object; valid: [B, S], regions that count.
        """
        wanted_class = torch.where(positive, labels + 1, 0)
        entropy = F.cross_entropy(logits.flatten(0, 1), wanted_class.flatten(), reduction="none")
        count = valid.sum().clamp(min=1)
        own = labels.clamp(min=0)[..., None, None].expand(-1, -1, 1, 4)
        distance = F.smooth_l1_loss(
            deltas.gather(2, own)[:, :, 0],
            box_ops.encode(boxes, rois, DELTA_WEIGHTS),
            reduction="none",
            beta=SMOOTH_L1_BETA,
        )
        return (entropy * valid.flatten()).sum() / count, (distance.sum(-1) * positive).sum() / count

    def detect(
        self, logits: Tensor, deltas: Tensor, rois: Tensor, valid: Tensor, size: tuple[int, int]
    ) -> BatchDetections:
        """Thresholded, suppressed detections; the suppression is greedy within a class.

        Args:
            logits: [B, P, 1 + K]; deltas: [B, P, K, 4]; rois: [B, P, 4]; valid: [B, P].
            size: height and width of the network's input, pixels.
        """
        config = self.config
        scores = logits.softmax(-1)[..., 1:]
        boxes = box_ops.clip(box_ops.decode(deltas, rois[:, :, None], DELTA_WEIGHTS), size)
        usable = (
            valid[..., None] & (scores > config.score_threshold) & ((boxes[..., 2:] - boxes[..., :2]) > 1e-2).all(-1)
        )
        keys = scores.masked_fill(~usable, -1).flatten(1)
        # Suppression is quadratic: four candidates for every detection kept lose nothing that was seen.
        best, index = keys.topk(min(4 * config.max_detections, keys.shape[1]), sorted=True)
        boxes = box_ops.take(boxes.flatten(1, 2), index)
        labels = index % self.classes
        apart = labels[..., None] * (max(size) + 1.0)  # classes far from each other do not suppress each other
        stays = box_ops.suppress(boxes + apart, best >= 0, config.nms_threshold)
        kept, place = best.masked_fill(~stays, -1).topk(min(config.max_detections, best.shape[1]), sorted=True)
        return BatchDetections(box_ops.take(boxes, place), kept, labels.gather(1, place), kept >= 0)


def pad_with_truth(rois: Tensor, valid: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Proposals with the ground-truth boxes behind them, so that the head sees objects from the first step on.

    Args:
        rois: [B, P, 4]; valid: [B, P].
        targets: ground truth, M boxes an image.

    Returns:
        [B, P + M, 4] and bool [B, P + M].
    """
    return torch.cat([rois, targets.boxes], 1), torch.cat([valid, targets.labels >= 0], 1)
