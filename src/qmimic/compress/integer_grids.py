"""A detector on integers: every map and every weight rounded to the grid that it has in an int8 file.

Fake quantization (Jacob et al., CVPR 2018): the forward pass rounds, the gradient passes straight through where the
grid does not cut. The same module is measured, trained on, and exported; what ships is what was measured.

Weights are symmetric, a scale for each output channel, and of 7 bits: without VNNI, processors add two products of 8
by 8 bits in 16, which 8-bit weights overflow. Maps have a scale each; they are unsigned, but for the pixels.
"""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qmimic.detectors.build import absorb_deviation, fold_batch_norm
from qmimic.detectors.detector import Detector
from qmimic.detectors.position_sensitive_head import PositionSensitiveHead
from qmimic.detectors.resnet import BasicBlock, Bottleneck, ResNet
from qmimic.detectors.two_layer_head import TwoLayerHead
from qmimic.detectors.two_stage import TwoStage
from qmimic.errors import InputError

WEIGHT_LIMIT = 63
CANDIDATES = 40  # scales tried for a map
SAMPLES = 2048  # values of a map that are looked at, an image


class Grid(nn.Module):
    """The grid of one map: {low, ..., high} times a scale, or no grid at all.

    Attributes:
        scale: float32 [1].
        low, high: the integers.
        fixed: the scale is given, not calibrated.
        enabled: False lets the map pass as it is.
    """

    scale: Tensor

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.low, self.high = (-128, 127) if signed else (0, 255)
        self.fixed, self.enabled = False, True
        self.register_buffer("scale", torch.ones(1))
        self._seen: list[Tensor] | None = None

    def fix(self, scale: Tensor, upper: int | None) -> None:
        """Give the grid: its scale [1], and the highest level if it has one."""
        self.scale.copy_(scale)
        self.high = min(self.high, upper or self.high)
        self.fixed = True

    def watch(self) -> None:
        """Let maps pass and look at their values, until `settle`."""
        self._seen = []

    def settle(self) -> None:
        """Choose the scale of least squared error on the values seen."""
        values, self._seen = torch.cat(self._seen or [torch.zeros(1)]), None
        if self.fixed:
            return
        top = (values.abs().max() if self.low else values.max()).clamp(min=1e-6)
        scales = top / self.high * torch.linspace(0.1, 1, CANDIDATES, device=values.device)
        # What is cut at 0 is the ReLU's work, no error.
        wanted = values if self.low else values.clamp(min=0)
        errors = [(round_to_grid(values, scale[None], self.low, self.high) - wanted).square().sum() for scale in scales]
        self.scale.copy_(scales[int(torch.stack(errors).argmin())])

    def forward(self, x: Tensor) -> Tensor:
        """The nearest values of the grid, in x's shape."""
        if self._seen is not None:
            flat = x.detach().flatten()
            # By chance: every n-th value would be of a few columns, where n and the map's width have a common divisor.
            generator = torch.Generator(x.device).manual_seed(len(self._seen))
            some = torch.randint(len(flat), (SAMPLES * len(x),), generator=generator, device=x.device)
            self._seen.append(flat[some])
            return x
        return round_to_grid(x, self.scale, self.low, self.high) if self.enabled else x


class WeightGrid(nn.Module):
    """The grids of a layer's weights [outputs, ...], as large as each output channel needs.

    Attributes:
        scale: [outputs] once the weights stay as they are; until then None.
        enabled: False leaves the weights as they are.
    """

    scale: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True
        self.register_buffer("scale", None)

    def forward(self, weight: Tensor) -> Tensor:
        """The nearest values of the grids."""
        if not self.enabled:
            return weight
        return round_to_grid(weight, self.scale_of(weight), -WEIGHT_LIMIT, WEIGHT_LIMIT)

    def scale_of(self, weight: Tensor) -> Tensor:
        """The scale [outputs] of such weights."""
        if self.scale is not None:
            return self.scale
        return weight.detach().abs().amax(tuple(range(1, weight.dim()))).clamp(min=1e-8) / WEIGHT_LIMIT


def round_to_grid(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """The nearest of {low, ..., high} times a scale, ties to even.

    Args:
        x: any shape.
        scale: [1], or one for each entry of x's first dimension.
        low, high: limits of the integers.
    """
    if torch.compiler.is_exporting():
        whole: Tensor = torch.ops.qmimic.round_to_grid(x, scale, low, high)
        return whole
    zeros = torch.zeros(len(scale), dtype=torch.int32, device=x.device)
    if len(scale) == 1:
        return torch.fake_quantize_per_tensor_affine(x, scale, zeros, low, high)
    return torch.fake_quantize_per_channel_affine(x, scale, zeros, 0, low, high)


@torch.library.custom_op("qmimic::round_to_grid", mutates_args=())
def _round_to_grid(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    return round_to_grid(x, scale, low, high)


@_round_to_grid.register_fake
def _(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    return torch.empty_like(x)


def on_grids(detector: Detector) -> Detector:
    """A copy of a trained detector whose maps and weights lie on grids; scales of maps are still to be calibrated.

    The grid of the backbone's map is that on which student and teacher met in training, if the detector has one: its
    stride s is the scale. Outputs of the last layers stay float.

    Raises:
        InputError: the detector's map is quantized by a stride for each channel, or to powers of two.
    """
    whole = fold_batch_norm(detector)
    assert isinstance(whole, TwoStage)
    absorb_deviation(whole)
    whole.requires_grad_(True)  # what folding made is to be trained as well
    for parent in list(whole.backbone.modules()):
        _follow_convolutions(parent)
    _into_blocks(whole.backbone)
    _onto_pixels(whole.backbone)
    whole.rpn.conv = nn.Sequential(whole.rpn.conv, Grid(signed=False))  # type: ignore[assignment]
    if isinstance(whole.head, TwoLayerHead):
        whole.head.fc1 = nn.Sequential(Grid(signed=False), whole.head.fc1, Grid(signed=False))  # type: ignore[assignment]
        whole.head.fc2 = nn.Sequential(whole.head.fc2, Grid(signed=False))  # type: ignore[assignment]
    elif isinstance(whole.head, PositionSensitiveHead):
        whole.head.conv = nn.Sequential(whole.head.conv, Grid(signed=False))  # type: ignore[assignment]
    for layer in layers(whole).values():
        parametrize.register_parametrization(layer, "weight", WeightGrid())
    quantizer, whole.quantizer = whole.quantizer, None
    if quantizer is not None:
        if quantizer.config.kind != "uniform" or len(quantizer.stride) != 1:
            raise InputError(
                "An integer map has one scale: a map quantized to powers of two, or by a stride for each channel, "
                "has no int8 file; train with quantizer.kind=uniform and quantizer.per_channel=false."
            )
        map_grid(whole).fix(quantizer.stride, quantizer.config.upper)
    return whole


def is_on_grids(detector: Detector) -> bool:
    """Whether a detector came out of `on_grids`."""
    return any(isinstance(module, Grid) for module in detector.modules())


def layers(detector: Detector) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers with weights, by name."""
    return {name: one for name, one in detector.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}


def freeze(detector: Detector) -> None:
    """Keep the scales that the weights have now: an exported graph must not compute them."""
    for layer in layers(detector).values():
        if parametrize.is_parametrized(layer):
            weights: Any = layer.parametrizations["weight"]  # type: ignore[index]
            weights[0].scale = weights[0].scale_of(weights.original)


def map_grid(detector: Detector) -> Grid:
    """The grid of the map that RPN and head see."""
    return [module for module in detector.backbone.modules() if isinstance(module, Grid)][-1]


@torch.no_grad()
def calibrate(detector: Detector, batches: Iterable[Tensor]) -> None:
    """Choose the scales of a detector's maps on images [B, 3, H, W] as they come."""
    grids = [module for module in detector.modules() if isinstance(module, Grid)]
    for grid in grids:
        grid.watch()
    for images in batches:
        detector.detect(images)
    for grid in grids:
        grid.settle()


def parts(detector: Detector) -> list[str]:
    """Names of the grids, those of maps first; the map that RPN and head see stays on its own in any case."""
    shared = map_grid(detector)
    own = {name: one for name, one in detector.named_modules() if isinstance(one, Grid | WeightGrid) and one.enabled}
    return sorted((name for name, one in own.items() if one is not shared), key=lambda name: "parametrizations" in name)


def keep_float(detector: Detector, *names: str) -> Detector:
    """A copy of a detector on grids in which some of its `parts` are float."""
    other = copy.deepcopy(detector)
    for name in names:
        part = other.get_submodule(name)
        assert isinstance(part, Grid | WeightGrid)
        part.enabled = False
    return other


def _follow_convolutions(parent: nn.Module) -> None:
    """Put a grid where a batch norm was folded away and a ReLU follows; behind a pooling, which is faster on floats.

    What a block adds up stays float: convolutions give that at no cost, and the sum gets a grid.
    """
    children = list(parent.named_children())
    if isinstance(parent, ResNet):
        parent.maxpool = nn.Sequential(parent.maxpool, Grid(signed=False))  # type: ignore[assignment]
    elif isinstance(parent, BasicBlock | Bottleneck):
        *inner, _ = [name for name, _ in children if name.startswith("bn")]
        for name in inner:
            setattr(parent, name, Grid(signed=False))
    elif isinstance(parent, nn.Sequential) and len(children) > 2:  # a shortcut's has two
        for place, (name, child) in enumerate(children):
            if place and isinstance(child, nn.Identity) and _is_convolution(children[place - 1][1]):
                pooling = children[place + 2][1] if place + 2 < len(children) else None
                if isinstance(pooling, nn.MaxPool2d):
                    setattr(parent, children[place + 2][0], nn.Sequential(pooling, Grid(signed=False)))
                else:
                    setattr(parent, name, Grid(signed=False))


def _is_convolution(module: nn.Module) -> bool:
    """Whether it is one, or, as a separable one, ends in one."""
    return isinstance(module[-1] if isinstance(module, nn.Sequential) else module, nn.Conv2d)


def _into_blocks(backbone: nn.Module) -> None:
    """Put a grid behind every sum of a block and its shortcut."""
    for stage in list(backbone.children()):
        if isinstance(stage, nn.Sequential):
            for name, block in list(stage.named_children()):
                if isinstance(block, BasicBlock | Bottleneck):
                    setattr(stage, name, nn.Sequential(block, Grid(signed=False)))


def _onto_pixels(backbone: nn.Module) -> None:
    """Put a grid before the first convolution."""
    name = next(name for name, module in backbone.named_modules() if isinstance(module, nn.Conv2d))
    parent, _, own = name.rpartition(".")
    setattr(backbone.get_submodule(parent), own, nn.Sequential(Grid(signed=True), backbone.get_submodule(name)))
