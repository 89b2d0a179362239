"""A one-stage detector without anchors, of fixed shape: no loop over images, and over levels only for their own layers.

Every place of every level gives a score for each class and the distances to the four sides of a box. Up to the
suppression, the graph holds convolutions, elementwise operations and reshapes, which every engine can compute.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmimic import boxes as box_ops
from qmimic import processes
from qmimic.contracts import (
    BatchDetections,
    ChannelGroup,
    Features,
    FusedPair,
    Part,
    QuantizationPoint,
    TrainingOutput,
)
from qmimic.data.targets import Targets
from qmimic.detectors.alignment import align
from qmimic.detectors.backbones import build_backbone
from qmimic.detectors.batch_norm import BatchNorm2d
from qmimic.detectors.convolution import Conv2d
from qmimic.detectors.detector import Detector
from qmimic.detectors.regions import CANDIDATES, suppressed
from qmimic.detectors.spec import OneStageSpec
from qmimic.processes import Source, mean_over
from qmimic.runtime import places as decoding

PRIOR = 0.01  # score of every class before training
WIDTH = 256  # channels of the heads at full width
BOX_WEIGHT = 2.0  # weight of the boxes' loss relative to the classes'


class LevelHeads(Part):
    """A light neck and a head for each level.

    A 1x1 convolution brings each level to one width, coarser levels are added to finer ones, and each level has a 3x3
    and a 1x1 convolution of its own for its outputs.

    Args:
        channels: of the levels, the finest first.
        strides: of the levels.
        width: channels of neck and heads.
        classes: K.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], width: int, classes: int) -> None:
        super().__init__()
        self.strides, self.classes = strides, classes
        self.lateral = nn.ModuleList(_fresh(Conv2d(own, width, 1)) for own in channels)
        self.merged = nn.ModuleList(nn.ReLU(inplace=True) for _ in channels)
        self.conv = nn.ModuleList(_fresh(Conv2d(width, width, 3, padding=1, bias=False)) for _ in channels)
        self.norm = nn.ModuleList(BatchNorm2d(width) for _ in channels)
        self.out = nn.ModuleList(_fresh_outputs(width, classes) for _ in channels)

    def forward(self, maps: tuple[Tensor, ...]) -> Tensor:
        """Logits and sides float32 [B, K + 4, N] of all places, from maps [B, C, H/stride, W/stride].

        Places are ordered level by level, the finest first, then by row and column.
        """
        found: list[Tensor] = []
        above: Tensor | None = None
        for level in reversed(range(len(maps))):
            x = self.lateral[level](maps[level])
            if above is not None:
                x = x + enlarged(above, self.strides[level + 1] // self.strides[level])
            above = self.merged[level](x)
            hidden = F.relu(self.norm[level](self.conv[level](above)), inplace=True)
            found.append(self.out[level](hidden).flatten(2))
        return torch.cat(found[::-1], 2).float()

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """See `Part.channel_groups`; maps that are added share their channels."""
        levels = range(len(self.strides))
        own = [ChannelGroup((), (f"lateral.{n}",), levels=(n,)) for n in levels]
        shared = ChannelGroup(tuple(f"lateral.{n}" for n in levels), tuple(f"conv.{n}" for n in levels))
        heads = [ChannelGroup((f"conv.{n}", f"norm.{n}"), (f"out.{n}",)) for n in levels]
        return (*own, shared, *heads)

    def fused_pairs(self) -> tuple[FusedPair, ...]:
        """See `Part.fused_pairs`."""
        return tuple(FusedPair(f"conv.{n}", f"norm.{n}") for n in range(len(self.strides)))

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        """See `Part.quantization_points`; the last layers' outputs stay float."""
        levels = range(len(self.strides))
        summands = [QuantizationPoint(f"lateral.{n}", signed=True, summand=True) for n in levels[:-1]]
        sums = [QuantizationPoint(f"merged.{n}") for n in levels]
        return (*summands, *sums, *(QuantizationPoint(f"norm.{n}") for n in levels))


def _fresh(layer: Conv2d) -> Conv2d:
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _fresh_outputs(width: int, classes: int) -> Conv2d:
    layer = Conv2d(width, classes + 4, 1)
    assert layer.bias is not None
    nn.init.normal_(layer.weight, std=0.01)
    nn.init.zeros_(layer.bias)
    nn.init.constant_(layer.bias[:classes], -math.log((1 - PRIOR) / PRIOR))
    return layer


def enlarged(x: Tensor, times: int) -> Tensor:
    """A map [B, C, H, W] with every entry repeated in a square of `times` by `times`: [B, C, times H, times W].

    In an exported program it is one operation, for engines that have it; for others it is decomposed.
    """
    whole: Tensor = torch.ops.qmimic.enlarged(x, times)
    return whole


def _by_copies(x: Tensor, times: int) -> Tensor:
    """`enlarged` by joining copies and reshaping, in at most four dimensions: small engines have no more."""
    _, channels, height, width = x.shape
    wide = torch.cat([x.reshape(-1, channels, height * width, 1)] * times, 3)
    rows = wide.reshape(-1, channels * height, 1, width * times)
    return torch.cat([rows] * times, 2).reshape(-1, channels, height * times, width * times)


torch.library.define("qmimic::enlarged", "(Tensor x, int times) -> Tensor")
torch.library.impl("qmimic::enlarged", "CompositeImplicitAutograd")(_by_copies)


class OneStage(Detector):
    """A backbone of several levels and a head for each.

    Attributes:
        places: float32 [N, 3], x and y of every place (the middle of its cell) and the stride of its level, pixels.
    """

    places: Tensor
    spec: OneStageSpec

    def __init__(self, spec: OneStageSpec) -> None:
        super().__init__(spec, build_backbone(spec.backbone, spec.levels[-1], spec.levels))
        width = spec.head_width or math.ceil(WIDTH / self.backbone.width_divisor)
        self.head = LevelHeads(self.channels, self.strides, width, len(spec.classes))
        self.to(memory_format=torch.channels_last)
        self.register_buffer("places", place_grid(spec.size, spec.levels), persistent=False)

    def losses(self, features: Features, targets: Targets, source: Source) -> TrainingOutput:
        """The losses of classes (`cls`, and among the classes of an object `softmax`) and of boxes (`box`).

        Args:
            features: what the heads see.
            targets: ground truth.
            source: of random numbers; unused.
        """
        outputs = self.place_outputs(features)
        logits, sides = (one.transpose(1, 2) for one in self._split(outputs))
        boxes = boxes_at(self.places, sides)
        found = align(logits.detach().sigmoid(), boxes.detach(), self.places, targets)
        label = targets.labels.gather(1, found.index).clamp(min=0)
        wanted = F.one_hot(label, logits.shape[2]) * found.quality[..., None]
        sure, objects = (mean_over(one.sum()).clamp(min=1) for one in (found.quality, found.share))
        # Quality focal loss (Li et al., NeurIPS 2020): places that are already right count little; otherwise the
        # thousands without an object would drown the few that have one.
        off = (logits.sigmoid() - wanted).square()
        entropy = off * F.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        own = box_ops.take(targets.boxes, found.index)
        # By share, not by quality: the smallest objects fit worst at first and would otherwise be learnt least.
        distance = (1 - box_ops.giou(boxes, own)) * found.share
        losses = {"cls": (entropy.sum(-1) * found.counted).sum() / sure, "box": BOX_WEIGHT * distance.sum() / objects}
        if self.spec.softmax_weight and logits.shape[2] > 1:
            # The focal factor leaves a wrong class of middling score next to no gradient, so which class it is would be
            # learnt last. Only differences of logits count here: the scores themselves still learn the IoU.
            rivals = F.cross_entropy(
                (logits + _frequency(targets, logits.shape[2]).log()).transpose(1, 2), label, reduction="none"
            )
            losses["softmax"] = self.spec.softmax_weight * (rivals * found.share).sum() / objects
        return TrainingOutput(losses, None, outputs)

    @property
    def region_count(self) -> int:
        """See `Detector.region_count`: the detections, at most one for each pair of place and class."""
        return min(self.spec.max_detections, len(self.places) * len(self.spec.classes))

    @torch.no_grad()
    def detect_on(self, features: Features) -> BatchDetections:
        """See `Detector.detect_on`."""
        # Candidates are pairs of class and place. The best pairs lie in the places that are best by their best class,
        # so these are chosen first: that leaves little to sort, and boxes are computed for these alone.
        outputs = self.place_outputs(features)
        classes, most = len(self.spec.classes), CANDIDATES * self.spec.max_detections
        places = min(most, len(self.places))
        chosen = outputs[:, :classes].amax(1).topk(places, sorted=False).indices
        logits, sides = self._split(outputs.gather(2, chosen[:, None].expand(-1, classes + 4, -1)))
        best, index = logits.flatten(1).topk(min(most, classes * places), sorted=True)
        label = quotient(index, places)
        place = index - label * places
        boxes = box_ops.take(boxes_at(F.embedding(chosen, self.places), sides.transpose(1, 2)), place)
        scores = best.sigmoid()
        scores = scores.masked_fill(scores <= self.spec.score_threshold, -1)
        return suppressed(box_ops.clip(boxes, self.spec.size), scores, label, self.spec)

    @torch.no_grad()
    def score_boxes(self, features: Features) -> tuple[Tensor, Tensor]:
        """See `Detector.score_boxes`; N is all places."""
        logits, sides = (one.transpose(1, 2) for one in self._split(self.place_outputs(features)))
        return boxes_at(self.places, sides)[:, :, None], logits.sigmoid()

    @property
    def place_strides(self) -> tuple[int, ...]:
        """See `Detector.place_strides`."""
        return self.spec.levels

    def place_outputs(self, features: Features) -> Tensor:
        """See `Detector.place_outputs`."""
        outputs: Tensor = self.head(features.maps)
        return outputs

    def placed(self) -> tuple[Tensor, ...]:
        """See `Detector.placed`: middles and strides."""
        shapes = [tuple(side // stride for side in self.spec.size) for stride in self.spec.levels]
        levels = self.places.split([height * width for height, width in shapes])
        return tuple(own.view(1, *shape, 3) for own, shape in zip(levels, shapes, strict=True))

    def _split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, K, N] and logarithms of the distances to the sides [B, 4, N]."""
        classes = len(self.spec.classes)
        return outputs[:, :classes], outputs[:, classes:]


def _frequency(targets: Targets, classes: int) -> Tensor:
    """Share of each class among the objects of a batch, float32 [K]; every class counts one more than it has.

    Added as logarithms to logits before a softmax, they keep rare classes from being learnt away (logit adjustment:
    Menon et al., ICLR 2021, eq. 10, whose shares are those of the training set).
    """
    known = targets.labels >= 0
    own = (F.one_hot(targets.labels.clamp(min=0), classes) * known[..., None]).sum((0, 1)).float()
    counts = 1 + processes.count() * mean_over(own)
    return counts / counts.sum()


def quotient(index: Tensor, by: int) -> Tensor:
    """`index // by` for index int64 of 0 and more, below 4,000,000: four operations in a file, where `//` takes ten.

    The half keeps every quotient away from the next whole number: engines multiply by the reciprocal of `by`, which is
    rounded.
    """
    return ((index + 0.5) / by).long()


def place_grid(size: tuple[int, int], strides: tuple[int, ...]) -> Tensor:
    """All places of an image, float32 [N, 3]: x, y and stride, pixels; level by level, by row and column.

    Args:
        size: height and width of the image, pixels.
        strides: of the levels.
    """
    return torch.from_numpy(decoding.place_grid(size, strides))


def boxes_at(places: Tensor, sides: Tensor) -> Tensor:
    """Boxes [..., N, 4], xyxy in pixels, from places [..., N, 3] and regressed sides [..., N, 4].

    The regressed value t puts a side exp(t) strides from its place; order left, top, right, bottom.
    """
    distance = sides.clamp(-decoding.MAX_LOG_SIDE, decoding.MAX_LOG_SIDE).exp() * places[..., 2:]
    centre = places[..., :2]
    return torch.cat([centre - distance[..., :2], centre + distance[..., 2:]], -1)
