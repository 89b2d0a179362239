"""The contracts between detectors, backbones and everything that works on them: plain data, and what a part declares.

The contract of a detector is the base class `qmimic.detectors.detector.Detector`; this file holds what crosses its
border, so that every floor can use features, regions, channels and grids without knowing a network.

Who asks whom:

    training, distill   features, losses, propose           each step of training
    scores, ship        detect, score_boxes, export_parts   detections, and what a deployed file computes
    compress            channel_groups, run_heads           which channels can go, and what the layers read
                        fused_pairs, quantization_points    what folds into one layer, and where an int8 file rounds
    detectors/files     spec, the state's tensors           a detector in a file

A detector of another kind (for example without anchors, on levels of strides 8, 16 and 32) has to provide a description
(a `DetectorSpec` with its own settings) and a `Detector` with `losses`, `detect_on` and `score_boxes`, made of a
`Backbone` and further `Part`s that declare their structure. The base class does the rest: pixels to levels, the
quantizer, regions for distillers (its detections, if it has no proposals), and the joined declarations. It is one file
and one line in `ARCHITECTURES` (tables.py). A complete one, small enough to read in a minute, is
`tests/detectors/anchor_free.py`.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from qmimic.errors import InputError


@dataclass(frozen=True)
class Level:
    """One feature map of a backbone.

    Attributes:
        map: float [B, C, H/stride, W/stride].
        stride: distance between neighbouring entries of the map, in pixels of the network's input.
    """

    map: Tensor
    stride: int

    @property
    def channels(self) -> int:
        """C of the map."""
        return self.map.shape[1]


@dataclass(frozen=True)
class Features:
    """A backbone's output for a batch of images: one map or several, in increasing order of stride.

    Backbones make them; quantizers, distillers and detectors take them. Two-stage detectors have exactly one level.
    """

    levels: tuple[Level, ...]

    @classmethod
    def of(cls, maps: Sequence[Tensor], strides: Sequence[int]) -> "Features":
        """Levels of maps [B, C, H/stride, W/stride] and their strides."""
        return cls(tuple(Level(one, stride) for one, stride in zip(maps, strides, strict=True)))

    @property
    def maps(self) -> tuple[Tensor, ...]:
        """The levels' maps."""
        return tuple(level.map for level in self.levels)

    @property
    def map(self) -> Tensor:
        """The map [B, C, H/stride, W/stride] of the only level, for code that works on one map.

        Raises:
            InputError: there are several levels.
        """
        if len(self.levels) != 1:
            strides = ", ".join(str(level.stride) for level in self.levels)
            raise InputError(f"This works on one feature map, but the detector has levels of strides {strides}.")
        return self.levels[0].map

    def apply(self, change: Callable[[Tensor], Tensor]) -> "Features":
        """The same levels with `change` applied to each map; `change` must keep height and width."""
        return Features(tuple(replace(level, map=change(level.map)) for level in self.levels))

    def to(self, device: torch.device) -> "Features":
        """The same on another device."""
        return self.apply(lambda one: one.to(device))


@dataclass(frozen=True)
class Proposals:
    """Regions of a batch that may contain objects, the most likely first.

    Attributes:
        boxes: float32 [B, P, 4], xyxy in pixels of the network's input; no gradient.
        valid: bool [B, P]; False where an image had fewer.
    """

    boxes: Tensor
    valid: Tensor


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


@dataclass(frozen=True)
class TrainingOutput:
    """A detector's output in a training step.

    Attributes:
        losses: terms by name, scalars; their sum is minimised.
        proposals: the regions of this step, for distillers that compare regions; None if the detector has none.
        dense: a one-stage detector's outputs at every place, see `Detector.place_outputs`; None for others.
    """

    losses: dict[str, Tensor]
    proposals: Proposals | None
    dense: Tensor | None = None


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that can be pruned only together, as a part declares them.

    A convolution and its batch norm produce them, and the next convolution consumes them; through shortcuts, several
    convolutions produce the same channels. A depthwise convolution passes channels on: it is one of their producers
    and none of their consumers.

    Attributes:
        producers: names of the modules whose outputs they are: convolutions, linear layers and their batch norms; the
            first one makes channels of its own and is not depthwise.
        consumers: names of the convolutions and linear layers that mix them.
        levels: the levels whose maps have these channels. A head names consumers for a level but no producers;
            the detector joins them to the backbone's group. A head that several levels share ties their channels.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    levels: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The first producer's."""
        return self.producers[0]

    def within(self, parent: str) -> "ChannelGroup":
        """The same group seen from a module that holds this part as `parent`."""
        return ChannelGroup(
            tuple(f"{parent}.{name}" for name in self.producers),
            tuple(f"{parent}.{name}" for name in self.consumers),
            self.levels,
        )

    def joined(self, other: "ChannelGroup") -> "ChannelGroup":
        """Both as one group."""
        return ChannelGroup(
            self.producers + other.producers,
            self.consumers + other.consumers,
            tuple(sorted({*self.levels, *other.levels})),
        )


@dataclass(frozen=True)
class FusedPair:
    """A convolution and the batch norm that alone takes its output; after training, they fold into one layer.

    Attributes:
        conv, norm: names of the two modules.
    """

    conv: str
    norm: str

    def within(self, parent: str) -> "FusedPair":
        """The same pair seen from a module that holds this part as `parent`."""
        return FusedPair(f"{parent}.{self.conv}", f"{parent}.{self.norm}")


@dataclass(frozen=True)
class QuantizationPoint:
    """Where a map is rounded to a grid in an int8 file.

    Every convolution and linear layer must read a map that a point rounds. Summands stay float in training, and in
    engines that add floats; engines that add integers need a point for each summand.

    Attributes:
        module: its name; if it is a fused pair's batch norm, the grid replaces it after folding.
        before: round the module's input instead of its output.
        signed: whether the map has values below 0 (as pixels have; in front of a ReLU they would be cut anyway).
        level: index of the level whose map this is; its grid is the quantizer's, if the detector has one.
        summand: whether the map is added to another before a point rounds the sum; see above.
    """

    module: str
    before: bool = False
    signed: bool = False
    level: int | None = None
    summand: bool = False

    def within(self, parent: str) -> "QuantizationPoint":
        """The same point seen from a module that holds this part as `parent`."""
        return replace(self, module=f"{parent}.{self.module}")


class Part(nn.Module):
    """A part of a detector (backbone, RPN, head) that declares what others need to know about its structure.

    Nothing is guessed from the names or the number of a part's children; what is not declared raises.
    """

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """Channels that can only be pruned together, in the order of the data's flow.

        Raises:
            InputError: the part declares none.
        """
        raise InputError(f"{type(self).__name__} cannot be pruned: give it a method channel_groups().")

    def fused_pairs(self) -> tuple[FusedPair, ...]:
        """Its convolutions that are followed by a batch norm."""
        return ()

    def single_norms(self) -> tuple[str, ...]:
        """Batch norms that cannot fold into a convolution; one that is neither here nor in a pair is refused."""
        return ()

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        """Where its maps are rounded in an int8 file.

        Raises:
            InputError: the part declares none.
        """
        raise InputError(f"{type(self).__name__} has no int8 form: give it a method quantization_points().")


class Backbone(Part):
    """Images to levels. `BACKBONES` in `tables.py` lists them by name.

    Attributes:
        channels: of each level's map; pruning updates them.
        strides: of each level, in increasing order.
        width_divisor: n of `family/n`; divides the width of heads that do not set their own.
        pixel_layers: names of the convolutions that read the image.
        mean, std: of the RGB values 0..255 that it was made for; the detector subtracts the mean and divides by std.
        published_name: of a network whose published weights have their own names; None: torchvision's names.
        frozen_norms: names of batch norms that keep their statistics in training, see `freeze`.
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]
    width_divisor: float
    pixel_layers: tuple[str, ...]
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)  # ImageNet's
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    published_name: str | None = None
    frozen_norms: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Normalised images [B, 3, H, W] to levels, after ReLU."""
        raise NotImplementedError

    def keep_levels(self, strides: tuple[int, ...]) -> None:
        """Give the maps of these strides from now on, in increasing order; a fresh backbone gives only its last one.

        Raises:
            InputError: it has no maps of these strides.
        """
        if strides != self.strides:
            own, wanted = (", ".join(map(str, values)) for values in (self.strides, strides))
            raise InputError(
                f"{type(self).__name__} gives levels of strides {own}, not {wanted}; set detector.levels to [{own}], "
                "or take another backbone."
            )

    def stages(self) -> tuple[tuple[str, ...], ...]:
        """Names of its modules and weights by stage, from the image on, for freezing; new weights are in no stage."""
        return ()

    def freeze(self, stages: int, norms: bool) -> None:
        """Freeze the weights of the first stages, and statistics and weights of batch norms.

        Args:
            stages: how many; their batch norms are frozen too.
            norms: whether the batch norms of all stages are frozen.

        Raises:
            InputError: there are fewer stages.
        """
        own = self.stages()
        if not own:
            raise InputError(
                "The backbone has no stages that can be frozen; leave out teacher.frozen_stages and frozen_norm."
            )
        if stages > len(own):
            raise InputError(f"The backbone has {len(own)} stages; teacher.frozen_stages={stages} is too high.")

        def within(name: str, some: tuple[tuple[str, ...], ...]) -> bool:
            return any(f"{name}.".startswith(f"{part}.") for stage in some for part in stage)

        kept = []
        for name, module in self.named_modules():
            if isinstance(module, nn.BatchNorm2d) and within(f"{name}.weight", own if norms else own[:stages]):
                kept.append(name)
        for name, parameter in self.named_parameters():
            if within(name, own[:stages]) or name.rpartition(".")[0] in kept:
                parameter.requires_grad_(False)
        self.frozen_norms = tuple(kept)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """As torch's, but frozen batch norms stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen_norms:
            self.get_submodule(name).eval()
        return self

    def __call__(self, images: Tensor) -> Features:
        """As `forward`."""
        features: Features = super().__call__(images)
        return features


@dataclass(frozen=True)
class ExportParts:
    """A two-stage detector in two parts, between which a caller suppresses regions.

    Attributes:
        candidates: from features to regions before suppression, [B, K, 4] in falling order of objectness.
        classify_regions: from features and regions [B, P, 4] to scores [B, P, K] and boxes [B, P, K or 1, 4].
        regions: P, how many the caller keeps.
    """

    candidates: Callable[[Features], Tensor]
    classify_regions: Callable[[Features, Tensor], tuple[Tensor, Tensor]]
    regions: int
