"""Quantization mimic (Wei et al., ECCV 2018): the loss that makes a student's map match a quantized teacher's.

    mimic:               L_m = 1/(2N) sum_i || f_t^i - r(f_s^i) ||^2
    quantization mimic:  L_m = 1/(2N) sum_i || Q(f_t^i) - Q(r(f_s^i)) ||^2

f_t^i, f_s^i: region i pooled from the teacher's and the student's map; r: the adaptor, a 1x1 convolution from the
student's channels to the teacher's; Q: the quantizer; N: number of regions. The switches are `MimicConfig`'s. What
takes the place of the squared distance is a function in `DISTANCES` (tables.py).
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from qmimic.config import MimicConfig
from qmimic.contracts import Proposals
from qmimic.data.targets import Targets
from qmimic.detectors.quantize import Quantizer
from qmimic.detectors.roi_pooling import ROI_POOLINGS, cells_inside
from qmimic.distill.distiller import Sides, StudentView, Target, TeacherView
from qmimic.distill.map_distiller import AdaptedDistiller
from qmimic.distill.regions import SETTINGS, choose_regions, regions_of_step
from qmimic.processes import mean_over
from qmimic.tables import DISTANCES, MODES


def sees_levels(config: MimicConfig) -> bool:
    """Whether the loss is the same for the teacher's map and for the map quantized, to the last bit.

    It is where the map is quantized before anything else, where maxima are taken first, which commute with Q, and
    where entries are taken as they lie.
    """
    first = config.order == "quantize_pool" or config.regions == "map" or config.pooling in ("pool", "crop")
    return MODES[config.mode].teacher and first


def sees_region_levels(config: MimicConfig) -> bool:
    """Whether all that the loss sees of the teacher are its own regions, pooled and then quantized."""
    own = config.regions == "teacher" and config.order == "pool_quantize" and config.map_steps == 0
    return MODES[config.mode].teacher and own and config.pooling != "crop"


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


def mean_of_regions(distances: Tensor, valid: Tensor) -> Tensor:
    """1/(2N) times the sum of distances [B, P] over the N valid regions, bool [B, P]; scalar, 0 if N is 0."""
    return (distances * valid).sum() / (2 * mean_over(valid.sum()).clamp(min=1))


class Mimic(AdaptedDistiller):
    """The loss between two networks' maps as the recipe's switches have it, on regions or on the whole maps.

    Args and errors: as `AdaptedDistiller`.
    """

    reads = AdaptedDistiller.reads | {"distance", "normalize", "order", "pooling", "region_size"} | SETTINGS
    rms: Tensor

    def __init__(self, config: MimicConfig, sides: Sides) -> None:
        super().__init__(config, sides)
        self.distance = DISTANCES[config.distance]
        self.teacher_regions = config.regions == "teacher"
        self.student_regions = config.regions == "student"
        self.register_buffer("rms", torch.stack([sides.rms[teacher].reshape(()) for _, teacher in self.pairs]))

    def target(self, view: TeacherView, truth: Targets) -> Target:
        """See `Distiller.target`.

        Returns:
            `level0`, ...: the teacher's side, float32: of a map [B, C_t, H, W], or pooled already, [B, P, C_t, k, k];
            where the regions are the teacher's, `boxes` [B, P, 4] and `valid` [B, P].
        """
        found: Target = {}
        regions = None
        if self.teacher_regions:
            regions = choose_regions(self.config, view.regions, truth, self.sides.size, None)
            found = {"boxes": regions.boxes, "valid": regions.valid}
        for place, (_, level) in enumerate(self.pairs):
            side = view.features.maps[level].detach().float()
            # A bank keeps this: it must not be rounded by how the student is computed.
            with torch.autocast(side.device.type, enabled=False):
                if sees_region_levels(self.config):
                    side = self.teacher_side(side, regions, place)
                elif sees_levels(self.config):
                    side = self.quantizer(side)
            found[f"level{place}"] = side
        return found

    def loss(self, student: StudentView, target: Target) -> Tensor:
        """See `Distiller.loss`: L_m, the mean over levels."""
        return self.loss_on(self.regions(student, target), student, target)

    def regions(self, student: StudentView, target: Target) -> Proposals | None:
        """The regions of a step; None: whole maps."""
        if student.whole_map or self.config.regions == "map":
            return None
        return regions_of_step(self.config, student, target, self.sides.size)

    def loss_on(self, regions: Proposals | None, student: StudentView, target: Target) -> Tensor:
        """L_m of a step on its regions, scalar."""
        losses = []
        for place, (level, _) in enumerate(self.pairs):
            side = target[f"level{place}"]
            if not sees_region_levels(self.config):
                side = self.teacher_side(side, regions, place)
            losses.append(self.loss_to(student.features.maps[level], side, regions, place))
        return losses[0] if len(losses) == 1 else torch.stack(losses).mean()

    def target_settings(self) -> Mapping[str, object]:
        """See `Distiller.target_settings`."""
        config = self.config
        names = {"regions", "with_truth", "region_count", "sampling"} if self.teacher_regions else set()
        names |= {"pooling", "region_size"} if sees_region_levels(config) else set()
        levels = sees_levels(config), sees_region_levels(config)
        return {"levels": levels, **config.model_dump(mode="json", include=names)}

    def grids(self) -> Mapping[str, Quantizer]:
        """See `Distiller.grids`."""
        quantized = sees_levels(self.config) or sees_region_levels(self.config)
        return {f"level{place}": self.quantizer for place in range(len(self.pairs))} if quantized else {}

    def teacher_side(self, teacher_map: Tensor, regions: Proposals | None, place: int = 0) -> Tensor:
        """f_t^i or Q(f_t^i), float32 [B, P, C_t, k, k]; of a whole map, or of one to crop, [B, 1, C_t, H, W].

        Args:
            teacher_map: [B, C_t, H, W], no gradient; quantized or not where `sees_levels` says that it is the same.
            regions: where the maps are compared; None: every entry of the whole map.
            place: of the level among `pairs`.
        """
        quantized = MODES[self.config.mode].teacher
        features = teacher_map.detach().float()
        with torch.autocast(features.device.type, enabled=False):
            if self.config.order == "quantize_pool":
                return self._pooled(self._quantized(features, quantized), regions, place)
            return self._quantized(self._pooled(features, regions, place), quantized)

    def loss_to(self, student_map: Tensor, teacher: Tensor, regions: Proposals | None, place: int = 0) -> Tensor:
        """L_m of one level, scalar, from a student's map [B, C_s, H, W] to a side. Other args as `teacher_side`."""
        quantized = MODES[self.config.mode].student and not self.distance.to_cells
        pooled_first = self.config.order != "quantize_pool"
        adapted = self.adapt(self._pooled(student_map, regions, place) if pooled_first else student_map, place)
        # From r on in float32, as the teacher's side, however the student is computed.
        with torch.autocast(student_map.device.type, enabled=False):
            student = self._quantized(adapted.float(), quantized)
            student = student if pooled_first else self._pooled(student, regions, place)
            return self.distance_loss(teacher, student, regions, place)

    def distance_loss(self, teacher: Tensor, student: Tensor, regions: Proposals | None, place: int) -> Tensor:
        """L_m of two sides, [B, P, C_t, k, k] or [B, 1, C_t, H, W] each. Other args as `teacher_side`."""
        distances, entries = self._distances(teacher, student, regions, place)
        valid = teacher.new_ones(len(teacher), 1, dtype=torch.bool) if regions is None else regions.valid
        loss = mean_of_regions(distances, valid)
        if self.config.normalize == "entry":
            loss = loss * 2 / (entries * self.rms[place].square())
        elif self.config.normalize == "region":  # Li et al., eq. 5
            loss = loss / entries
        return loss

    def sides_of(
        self, student_map: Tensor, teacher_map: Tensor, regions: Proposals, place: int = 0
    ) -> tuple[Tensor, Tensor]:
        """f_t^i and r(f_s^i), float32 [B, P, C_t, k, k], neither of them quantized, for counting what matches.

        Quantized maps that RoIAlign then averages leave the dictionary, and hardly any entry could be equal: so regions
        are pooled first, by maxima where the recipe takes them from the map as they lie.

        Args:
            student_map: [B, C_s, H, W].
            teacher_map: [B, C_t, H, W].
            regions: where the maps are compared.
            place: of the level among `pairs`.
        """

        def pool(features: Tensor) -> Tensor:
            stride = self.sides.student_strides[self.pairs[place][0]]
            name = "pool" if self.config.pooling == "crop" else self.config.pooling
            return ROI_POOLINGS[name](features, regions.boxes, self.config.region_size, stride)

        if self.config.order == "quantize_pool":
            adapted = pool(self.adapt(student_map, place))
        else:
            adapted = self.adapt(pool(student_map), place)
        return pool(teacher_map.float()), adapted.float()

    def _pooled(self, features: Tensor, regions: Proposals | None, place: int) -> Tensor:
        """Regions [B, P, C, k, k] of a map; one that is taken whole, or as it lies, is one region, [B, 1, C, H, W]."""
        if regions is None or self.config.pooling == "crop":
            return features[:, None]
        stride = self.sides.student_strides[self.pairs[place][0]]
        return ROI_POOLINGS[self.config.pooling](features, regions.boxes, self.config.region_size, stride)

    def _quantized(self, features: Tensor, wanted: bool) -> Tensor:
        """Q of a map [B, C, H, W] or of regions [B, P, C, k, k], if it is wanted."""
        if not wanted:
            return features
        quantized: Tensor = self.quantizer(features.movedim(-3, 1))  # where a stride for each channel is looked for
        return quantized.movedim(1, -3)

    def _distances(self, teacher: Tensor, student: Tensor, regions: Proposals | None, place: int) -> tuple[Tensor, int]:
        """Distances of regions, [B, P], and m, by which they are still to be divided where that is wanted."""
        distance, stride = self.distance.function, self.quantizer.stride
        if regions is None or self.config.pooling != "crop":
            return distance(teacher, student, stride), teacher[0, 0].numel()
        # The distance of each place of the map is taken once, however many regions it lies in.
        batch, _, channels, height, width = teacher.shape
        of_teacher, of_student = (one[:, 0].flatten(2).transpose(1, 2) for one in (teacher, student))
        places = distance(of_teacher, of_student, stride)
        output_stride = self.sides.student_strides[self.pairs[place][0]]
        down, across = cells_inside(regions.boxes, output_stride, (height, width))
        sums = ((down @ places.view(batch, height, width)) * across).sum(-1)
        if self.config.normalize == "paper":
            return sums, 1
        return sums / (channels * down.sum(-1) * across.sum(-1)), 1  # m_i differs from region to region
