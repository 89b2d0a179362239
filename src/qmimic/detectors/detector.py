"""The contract of a detector, and what all detectors share: from pixels to levels, and the quantizer."""

from abc import abstractmethod
from functools import reduce

import torch
from torch import Tensor, nn

from qmimic.contracts import (
    Backbone,
    BatchDetections,
    ChannelGroup,
    ExportParts,
    Features,
    FusedPair,
    Part,
    Proposals,
    QuantizationPoint,
    TrainingOutput,
)
from qmimic.data.augment import LUMA
from qmimic.data.targets import Targets
from qmimic.detectors.quantize import Quantizer
from qmimic.detectors.spec import DetectorSpec
from qmimic.errors import InputError
from qmimic.processes import Source


class Detector(nn.Module):
    """From images to detections, and from ground truth to losses.

    A kind of detector is one file with a class like this and a description of it, and one line in `ARCHITECTURES`.

    Attributes:
        spec: what it was built from; spec and weights together are the whole detector.
        backbone: see `qmimic.contracts.Backbone`.
        quantizer: if set, everything behind the backbone sees quantized maps.
        divides: whether `std` is divided out before the backbone sees the pixels; if not, the backbone's weights do it.
        mean, std: float32 [1, C, 1, 1] by which pixels are normalised; C is 3, or 1 for a grey network.
    """

    backbone: Backbone
    mean: Tensor
    std: Tensor

    def __init__(self, spec: DetectorSpec, backbone: Backbone) -> None:
        super().__init__()
        own = (backbone.mean, backbone.std)
        if spec.normalisation is None and own != (Backbone.mean, Backbone.std):
            # Its file must keep them: another version of the library that supplies them may have others.
            spec = spec.model_copy(update={"normalisation": own})
        mean, std = (torch.tensor(one).view(1, 3, 1, 1) for one in spec.normalisation or own)
        if spec.grey:
            take_grey(backbone)
            mean, std = _brightness(mean), _brightness(std)
        self.spec = spec
        self.backbone = backbone
        self.quantizer: Quantizer | None = None
        self.divides = True
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.mean.device

    @property
    def channels(self) -> tuple[int, ...]:
        """Of each level."""
        return self.backbone.channels

    @property
    def strides(self) -> tuple[int, ...]:
        """Of each level, pixels."""
        return self.backbone.strides

    def parts(self) -> dict[str, Part]:
        """Its parts by name, in the order of the data's flow."""
        return {name: child for name, child in self.named_children() if isinstance(child, Part)}

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """The parts' groups in the order of the data's flow; groups of one level are joined.

        Raises:
            InputError: a part does not declare its own.
        """
        found: list[ChannelGroup] = []
        for name, part in self.parts().items():
            for own in part.channel_groups():
                group = own.within(name)
                tied = [one for one in found if set(one.levels) & set(group.levels)]
                if not tied:
                    found.append(group)
                    continue
                place = found.index(tied[0])
                for one in tied[1:]:
                    found.remove(one)
                found[place] = reduce(ChannelGroup.joined, [*tied, group])
        return tuple(found)

    def fused_pairs(self) -> tuple[FusedPair, ...]:
        """The parts' convolutions with a batch norm behind them."""
        return tuple(pair.within(name) for name, part in self.parts().items() for pair in part.fused_pairs())

    def single_norms(self) -> tuple[str, ...]:
        """The parts' batch norms that cannot be folded into a convolution."""
        return tuple(f"{name}.{own}" for name, part in self.parts().items() for own in part.single_norms())

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        """Where an int8 file rounds: the pixels, and what the parts declare.

        Raises:
            InputError: a part does not declare its own.
        """
        pixels = [QuantizationPoint(name, before=True, signed=True) for name in self.backbone.pixel_layers]
        own = [point.within(name) for name, part in self.parts().items() for point in part.quantization_points()]
        return (*(point.within("backbone") for point in pixels), *own)

    def export_parts(self) -> ExportParts | None:
        """The parts that a format without suppression runs one after the other; None if there is no second stage.

        Raises:
            InputError: no format can write the detector; the message says what to change.
        """
        return None

    @property
    def place_strides(self) -> tuple[int, ...]:
        """Strides of the levels whose places `place_outputs` covers; empty if the detector has no such outputs."""
        return ()

    def place_outputs(self, features: Features) -> Tensor:
        """A one-stage detector's last layers: all that an engine without exponentials and suppression computes.

        Returns:
            Float32 [B, K + 4, N]: for every place (level by level, by row and column) the logits of the classes, then
            the logarithms of the distances to the four sides in strides: left, top, right, bottom.
        """
        raise NotImplementedError

    @property
    def anchor_sizes(self) -> tuple[tuple[float, float], ...]:
        """Widths and heights of the anchors at every place of its map, pixels; empty of a detector without anchors."""
        return ()

    @property
    def second_stage(self) -> str | None:
        """Architecture of the stage whose outputs `region_outputs` gives; None where there is none.

        Outputs of two detectors mean the same where these names are equal.
        """
        return None

    def region_outputs(self, features: Features, regions: Tensor) -> tuple[Tensor, Tensor]:
        """What a second stage says of regions [B, P, 4], part of the graph.

        Returns:
            Logits float32 [B, P, 1 + K], background first, and deltas float32 [B, P, K or 1, 4]; see `RegionHead`.
        """
        raise NotImplementedError

    def placed(self) -> tuple[Tensor, ...]:
        """What its graph holds of every place of a map, float32 [A, H, W, C] for each of its levels, such as anchors.

        Each is the sum of what one place has and of the places' positions, and an exporter may write it so: a file is
        smaller then. Levels follow one another in one constant [sum of A H W, C]. Empty of a detector without.
        """
        return ()

    def raw_features(self, images: Tensor) -> Features:
        """The backbone's levels before any quantizer: what is distilled, banked and measured.

        Args:
            images: RGB [B, 3, H, W], uint8 or float in 0..255.
        """
        return self.backbone(self._normalize(images))

    def features(self, images: Tensor) -> Features:
        """The levels that everything behind the backbone sees. Args as `raw_features`."""
        return self.quantize(self.raw_features(images))

    def quantize(self, features: Features) -> Features:
        """Raw levels through the quantizer, if the detector has one."""
        return features if self.quantizer is None else features.apply(self.quantizer)

    @abstractmethod
    def losses(self, features: Features, targets: Targets, source: Source) -> TrainingOutput:
        """The detection losses of a training step.

        Args:
            features: from `features` or `quantize`.
            targets: ground truth.
            source: of random numbers.
        """
        raise NotImplementedError

    @abstractmethod
    def detect_on(self, features: Features) -> BatchDetections:
        """Detections from levels as `features` gives them, after the spec's threshold and suppression."""
        raise NotImplementedError

    @torch.no_grad()
    def detect(self, images: Tensor) -> BatchDetections:
        """Detections in images [B, 3, H, W], RGB, uint8 or float in 0..255, of the spec's size."""
        return self.detect_on(self.features(images))

    @property
    def region_count(self) -> int:
        """P, the number of regions that `propose` gives."""
        return self.spec.max_detections

    @torch.no_grad()
    def propose(self, features: Features) -> Proposals:
        """Regions where objects may be, for distillers that compare regions.

        A detector without a region stage gives its detections.
        """
        found = self.detect_on(features)
        return Proposals(found.boxes, found.valid)

    @abstractmethod
    def score_boxes(self, features: Features) -> tuple[Tensor, Tensor]:
        """Every box that could be a detection, before threshold and suppression, for callers that suppress themselves.

        Returns:
            Boxes float32 [B, N, K or 1, 4] and scores [B, N, K], below 0 where there is no box.
        """
        raise NotImplementedError

    @torch.no_grad()
    def run_heads(self, features: Features, regions: Tensor) -> None:
        """Run each layer behind the backbone once, for callers that watch layers through hooks.

        Args:
            features: as for `detect_on`.
            regions: [B, P, 4], what a second stage looks at.
        """
        self.detect_on(features)

    def centred(self, pixels: Tensor) -> Tensor:
        """Pixels as a deployed file takes them, made into the backbone's input; for exporters.

        They are divided by `std` here unless the backbone's weights do so, see `absorb_deviation`.

        Args:
            pixels: RGB, uint8 [B, H, W, 3].
        """
        if self.spec.grey:
            centred = (pixels.float() @ torch.tensor(LUMA)[:, None]).permute(0, 3, 1, 2) - self.mean
        else:
            centred = pixels.permute(0, 3, 1, 2).float() - self.mean
        return centred / self.std if self.divides else centred

    def _normalize(self, images: Tensor) -> Tensor:
        """Images minus `mean`, divided by `std`, in channels-last memory."""
        if self.spec.grey:
            return (_brightness(images) - self.mean) / self.std
        batch, channels, height, width = images.shape
        # A careless pass over the images costs as much as a narrow layer. So the layout changes while they are uint8,
        # each row of pixels is one long vector, and there is only one large buffer.
        rows = images.permute(0, 2, 3, 1).contiguous().view(batch * height, width * channels)
        rows = rows.float() if rows.dtype == torch.uint8 else rows.clone()
        rows.sub_(self.mean.flatten().repeat(width)).div_(self.std.flatten().repeat(width))
        return rows.view(batch, height, width, channels).permute(0, 3, 1, 2)


def take_grey(backbone: Backbone) -> None:
    """Reduce the layers that read pixels to one input channel, in place.

    Raises:
        InputError: something other than a convolution reads the pixels.
    """
    if not backbone.pixel_layers:
        raise InputError("data.grey needs a backbone whose first layers are convolutions; take another backbone.")
    for name in backbone.pixel_layers:
        layer = backbone.get_submodule(name)
        assert isinstance(layer, nn.Conv2d), f"{name} of the backbone is not a convolution, so it reads no pixels"
        layer.weight = nn.Parameter(layer.weight.detach()[:, :1].clone())
        layer.in_channels = 1


def _brightness(colours: Tensor) -> Tensor:
    """The brightness (ITU-R BT.601), float [B, 1, H, W], of RGB values [B, 3, H, W] of any dtype."""
    shares = colours.new_tensor(LUMA, dtype=torch.float32).view(1, -1, 1, 1)
    return (colours.float() * shares).sum(1, keepdim=True)  # a product of matrices would be rounded in bf16
