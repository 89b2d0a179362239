"""Quantization mimic (Wei et al., ECCV 2018): the loss that makes a student's map match a quantized teacher's.

    mimic:               L_m = 1/(2N) sum_i || f_t^i - r(f_s^i) ||^2
    quantization mimic:  L_m = 1/(2N) sum_i || Q(f_t^i) - Q(r(f_s^i)) ||^2

f_t^i, f_s^i: region i pooled from the teacher's and the student's map; r: the adaptor, a 1x1 convolution from the
student's channels to the teacher's; Q: the quantizer; N: number of regions. The switches are `MimicConfig`'s. What
takes the place of the squared distance is a function in `DISTANCES`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmimic.config import MimicConfig
from qmimic.contracts import Proposals
from qmimic.data.targets import Targets
from qmimic.detectors.quantize import Quantizer
from qmimic.detectors.roi_pooling import ROI_POOLINGS
from qmimic.detectors.rpn import first
from qmimic.errors import InputError
from qmimic.processes import Source, mean_over, rand

REGION_SIZE = 5  # bins of a region on each side
QUANTIZED_SIDES = {
    # mode: (teacher's map, student's map)
    "mimic": (False, False),
    "quantization": (True, True),
    "teacher_only": (True, False),
    "student_only": (False, True),
}


def sees_levels(config: MimicConfig) -> bool:
    """Whether the loss is the same for the teacher's map and for the map quantized, to the last bit.

    It is where the map is quantized before anything else, and where maxima are taken first, which commute with Q.
    """
    first = config.order == "quantize_pool" or config.regions == "map" or config.pooling == "pool"
    return QUANTIZED_SIDES[config.mode][0] and first


def sees_region_levels(config: MimicConfig) -> bool:
    """Whether all that the loss sees of the teacher are its own regions, pooled and then quantized."""
    own = config.regions == "teacher" and config.order == "pool_quantize" and config.map_steps == 0
    return QUANTIZED_SIDES[config.mode][0] and own


Distance = Callable[[Tensor, Tensor, Tensor], Tensor]


def squared_distance(teacher: Tensor, student: Tensor, stride: Tensor) -> Tensor:
    """|| f_t^i - f_s^i ||^2 of regions [B, P, C, k, k], or of whole maps [B, 1, C, H, W]; returns [B, P].

    Args:
        teacher, student: the two sides.
        stride: s of the dictionary, [1] or [C]; unused.
    """
    return (teacher - student).square().sum(tuple(range(2, teacher.dim())))


def cell_distance(teacher: Tensor, student: Tensor, stride: Tensor) -> Tensor:
    """sum of max(0, abs(Q(f_t^i) - r(f_s^i)) - s/2)^2: to the border of the teacher's cell, 0 in it; returns [B, P].

    What section 3.4 argues for: the student's manifold has to cross a cube, not to pass through its centre. The
    gradient does not jump, as that of a quantized student does. Args as `squared_distance`; the teacher's side is
    quantized, the student's is not.
    """
    half = stride.view(-1, *[1] * (teacher.dim() - 3)) / 2
    return ((teacher - student).abs() - half).clamp(min=0).square().sum(tuple(range(2, teacher.dim())))


# How far a student's regions are from the teacher's; a recipe names one by `mimic.distance`.
DISTANCES: dict[str, Distance] = {
    "squared": squared_distance,
    "cell": cell_distance,
}
UNQUANTIZED_STUDENT = {"cell"}  # distances for which the student's side stays as it is


def check_distance(name: str) -> None:
    """Raises InputError: there is no such distance."""
    if name not in DISTANCES:
        raise InputError(f"mimic.distance: {name!r} is no distance; take one of {', '.join(DISTANCES)}.")


def mimic_loss(
    teacher: Tensor, student: Tensor, valid: Tensor, distance: Distance = squared_distance, stride: Tensor | None = None
) -> Tensor:
    """L_m as the paper writes it: 1/(2N) times the sum over regions of the squared distance.

    Args:
        teacher: f_t^i or Q(f_t^i), [B, P, C, ...]; no gradient is wanted.
        student: r(f_s^i) or Q(r(f_s^i)), the same shape.
        valid: bool [B, P], which of the regions count.
        distance: another one in the squared one's place.
        stride: s, [1] or [C], of distances that need it.

    Returns:
        Scalar; 0 if no region counts.
    """
    stride = teacher.new_zeros(1) if stride is None else stride
    return (distance(teacher, student, stride) * valid).sum() / (2 * mean_over(valid.sum()).clamp(min=1))


@dataclass(frozen=True)
class MatchCounts:
    """Entries on regions, and how many of them agree: Q(f_t) = Q(r(f_s)).

    Attributes:
        entries, matched: over all entries.
        nonzero, nonzero_matched: over those where the teacher's is not zero; an all-zero student scores 0 there.
    """

    entries: int = 0
    matched: int = 0
    nonzero: int = 0
    nonzero_matched: int = 0

    def __add__(self, other: "MatchCounts") -> "MatchCounts":
        return MatchCounts(
            self.entries + other.entries,
            self.matched + other.matched,
            self.nonzero + other.nonzero,
            self.nonzero_matched + other.nonzero_matched,
        )

    @property
    def ratio(self) -> float:
        """The paper's matching ratio, 0..1."""
        return self.matched / max(1, self.entries)

    @property
    def nonzero_ratio(self) -> float:
        """The matching ratio over the teacher's non-zero entries, 0..1."""
        return self.nonzero_matched / max(1, self.nonzero)


def count_matches(teacher: Tensor, student: Tensor, valid: Tensor) -> MatchCounts:
    """Compare quantized regions [B, P, C, ...] entry by entry; `valid` bool [B, P] says which count."""
    counts = valid.view(*valid.shape, *[1] * (teacher.dim() - 2)).expand_as(teacher)
    equal, nonzero = (teacher == student) & counts, (teacher != 0) & counts
    return MatchCounts(int(counts.sum()), int(equal.sum()), int(nonzero.sum()), int((equal & nonzero).sum()))


class Mimic(nn.Module):
    """The adaptor r, and the loss between two maps as the recipe's switches have it.

    Args:
        config: the switches.
        student_channels, teacher_channels: of the two maps.
        quantizer: Q, with the teacher's stride s.
        rms: root mean square of the teacher's map on training images, scalar.
        stride: output stride of both maps.
        seed: of the adaptor's fresh weights.
    """

    rms: Tensor

    def __init__(
        self,
        config: MimicConfig,
        student_channels: int,
        teacher_channels: int,
        quantizer: Quantizer,
        rms: Tensor,
        stride: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.config = config
        self.stride = stride
        self.quantizer = quantizer
        self.adaptor = nn.Conv2d(student_channels, teacher_channels, 1)
        generator = torch.Generator().manual_seed(seed)
        nn.init.kaiming_normal_(self.adaptor.weight, nonlinearity="relu", generator=generator)
        assert self.adaptor.bias is not None
        nn.init.zeros_(self.adaptor.bias)
        self.register_buffer("rms", rms.reshape(()).clone())

    def adapt(self, features: Tensor) -> Tensor:
        """r(f_s), with the ReLU if the recipe wants it: [..., C_s, H, W] to [..., C_t, H, W]."""
        # A 1x1 convolution as the product that it is: the same for a map and for regions of one.
        adapted = F.linear(features.movedim(-3, -1), self.adaptor.weight.flatten(1), self.adaptor.bias)
        return (F.relu(adapted) if self.config.adaptor_relu else adapted).movedim(-1, -3)

    def loss(self, student_map: Tensor, teacher_map: Tensor, regions: Proposals | None) -> Tensor:
        """L_m, scalar, not yet weighted by lambda.

        Args:
            student_map: [B, C_s, H, W].
            teacher_map: [B, C_t, H, W], not quantized, no gradient.
            regions: where the maps are compared; None: every entry of the whole map.
        """
        return self.loss_to(student_map, self.target(teacher_map, regions), regions)

    def target(self, teacher_map: Tensor, regions: Proposals | None) -> Tensor:
        """The teacher's side, float32 [B, P, C_t, k, k], of the whole map [B, 1, C_t, H, W]. Args as `loss`."""
        quantized, _ = QUANTIZED_SIDES[self.config.mode]
        features = teacher_map.detach().float()
        # A bank keeps this: it must not be rounded by how the student is computed.
        with torch.autocast(features.device.type, enabled=False):
            if self.config.order == "quantize_pool":
                return self._pooled(self._quantized(features, quantized), regions)
            return self._quantized(self._pooled(features, regions), quantized)

    def loss_to(self, student_map: Tensor, teacher: Tensor, regions: Proposals | None) -> Tensor:
        """L_m from a student's map to a teacher's side, see `target`. Other args as `loss`."""
        quantized = QUANTIZED_SIDES[self.config.mode][1] and self.config.distance not in UNQUANTIZED_STUDENT
        if self.config.order == "quantize_pool":
            student = self._pooled(self._quantized(self.adapt(student_map).float(), quantized), regions)
        else:
            student = self._quantized(self.adapt(self._pooled(student_map, regions)).float(), quantized)
        distance, valid = DISTANCES[self.config.distance], self._valid(student_map, regions)
        loss = mimic_loss(teacher, student, valid, distance, self.quantizer.stride)
        if self.config.normalize == "entry":
            loss = loss * 2 / (teacher[0, 0].numel() * self.rms.square())
        elif self.config.normalize == "region":  # Li et al., eq. 5; regions of one batch are of one dimension
            loss = loss / teacher[0, 0].numel()
        return loss

    def matches(self, student_map: Tensor, teacher_map: Tensor, regions: Proposals) -> MatchCounts:
        """Matching Q(f_t^i) = Q(r(f_s^i)) of pooled, then quantized regions, whatever trains them. Args as `loss`.

        Quantized maps that RoIAlign then averages leave the dictionary, and hardly any entry could be equal.
        """
        return count_matches(*self.levels(student_map, teacher_map, regions), regions.valid)

    def levels(self, student_map: Tensor, teacher_map: Tensor, regions: Proposals) -> tuple[Tensor, Tensor]:
        """Indices in the dictionary of Q(f_t^i) and Q(r(f_s^i)), whole numbers [B, P, C_t, k, k]. Args as `loss`."""
        adapted = (
            self._pooled(self.adapt(student_map), regions)
            if self.config.order == "quantize_pool"
            else self.adapt(self._pooled(student_map, regions))
        )
        teacher, student = (
            self.quantizer.levels(one.movedim(-3, 1)).movedim(1, -3)  # where a stride for each channel is looked for
            for one in (self._pooled(teacher_map.float(), regions), adapted.float())
        )
        return teacher, student

    def _pooled(self, features: Tensor, regions: Proposals | None) -> Tensor:
        """Regions [B, P, C, k, k] of a map; the whole map is one region, [B, 1, C, H, W]."""
        if regions is None:
            return features[:, None]
        return ROI_POOLINGS[self.config.pooling](features, regions.boxes, REGION_SIZE, self.stride)

    def _quantized(self, features: Tensor, wanted: bool) -> Tensor:
        """Q of a map [B, C, H, W] or of regions [B, P, C, k, k], if it is wanted."""
        if not wanted:
            return features
        quantized: Tensor = self.quantizer(features.movedim(-3, 1))  # where a stride for each channel is looked for
        return quantized.movedim(1, -3)

    def _valid(self, student_map: Tensor, regions: Proposals | None) -> Tensor:
        return student_map.new_ones(len(student_map), 1, dtype=torch.bool) if regions is None else regions.valid


def as_map(regions: Tensor) -> Tensor:
    """Pooled regions [B, P, C, k, k] one below the other as a map [B, C, P k, k]."""
    return regions.transpose(1, 2).flatten(2, 3)


def as_regions(features: Tensor) -> Tensor:
    """The inverse of `as_map`."""
    regions: Tensor = features.unflatten(2, (-1, REGION_SIZE)).transpose(1, 2)
    return regions


def choose_regions(
    config: MimicConfig,
    proposals: Proposals | None,
    targets: Targets,
    size: tuple[int, int],
    source: Source,
) -> Proposals:
    """The regions on which maps are matched, at most `region_count` an image.

    Args:
        config: whose regions, how many, and whether ground truth joins.
        proposals: the teacher's or the student's, as `config.regions` says; unused by the other choices.
        targets: ground truth.
        size: height and width of the network's input, pixels.
        source: of random regions.
    """
    truth = Proposals(targets.boxes, targets.labels >= 0)
    if config.regions == "ground_truth":
        return first(truth.boxes, truth.valid, config.region_count)
    if config.regions == "random":
        proposals = random_regions(len(targets.boxes), config.region_count, size, source)
    assert proposals is not None, f"mimic.regions={config.regions} needs proposals"
    boxes, valid = proposals.boxes, proposals.valid
    if config.with_truth:
        boxes, valid = torch.cat([truth.boxes, boxes], 1), torch.cat([truth.valid, valid], 1)
    return first(boxes, valid, config.region_count)


def random_regions(batch: int, count: int, size: tuple[int, int], source: Source) -> Proposals:
    """Boxes with sides from 1/8 of the image's to the whole, anywhere inside it."""
    drawn = rand(source, batch, count, 4)
    whole = drawn.new_tensor([size[1], size[0]])
    sides = (0.125 + 0.875 * drawn[..., :2]) * whole
    corner = drawn[..., 2:] * (whole - sides)
    return Proposals(torch.cat([corner, corner + sides], -1), torch.ones_like(drawn[..., 0], dtype=torch.bool))
