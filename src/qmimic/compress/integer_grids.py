"""A detector on integer grids: every map and every weight is rounded to the grid that it has in an int8 file.

Fake quantization (Jacob et al., CVPR 2018): the forward pass rounds, and the gradient passes straight through where the
grid does not clip. The same module is measured, trained and exported: what ships is what was measured.

Weights are symmetric, have 7 bits and a scale for each output channel: processors without VNNI add two products of 8
by 8 bits in 16 bits, which 8-bit weights would overflow. Each map has one scale; all but the pixels are unsigned.
"""

import copy
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from qmimic.contracts import QuantizationPoint
from qmimic.detectors.build import absorb_deviation, fold_batch_norm, put_module
from qmimic.detectors.detector import Detector
from qmimic.errors import InputError

WEIGHT_LIMIT = 63
CANDIDATES = 40  # scales tried for a map
SAMPLES = 2048  # values looked at per map and image


class Grid(nn.Module):
    """The grid of one map: {low, ..., high} times a scale, or no grid at all.

    Attributes:
        scale: float32 [1].
        low, high: the integers.
        level: index of the backbone's level whose map this is, or None.
        summand: whether the map is added to another; then it stays float where the engine adds floats.
        fixed: whether the scale is given, not calibrated.
        enabled: False lets the map pass unchanged.
    """

    scale: Tensor

    def __init__(self, signed: bool, level: int | None = None, summand: bool = False) -> None:
        super().__init__()
        self.low, self.high = (-128, 127) if signed else (0, 255)
        self.level, self.summand = level, summand
        self.fixed, self.enabled = False, not summand
        self.register_buffer("scale", torch.ones(1))
        self._seen: list[Tensor] | None = None

    def fix(self, scale: Tensor, upper: int | None) -> None:
        """Set the grid: its scale [1], and its highest level if it has one."""
        self.scale.copy_(scale)
        self.high = min(self.high, upper or self.high)
        self.fixed = True

    def observe(self) -> None:
        """Let maps pass unchanged and record their values, until `calibrate`."""
        self._seen = []

    def calibrate(self) -> None:
        """Choose the scale with the least squared error on the values recorded."""
        values, self._seen = torch.cat(self._seen or [torch.zeros(1)]), None
        if self.fixed:
            return
        top = (values.abs().max() if self.low else values.max()).clamp(min=1e-6)
        scales = top / self.high * torch.linspace(0.1, 1, CANDIDATES, device=values.device)
        # Clipping at 0 is the ReLU's work, not an error.
        wanted = values if self.low else values.clamp(min=0)
        errors = [(round_to_grid(values, scale[None], self.low, self.high) - wanted).square().sum() for scale in scales]
        self.scale.copy_(scales[int(torch.stack(errors).argmin())])

    def forward(self, x: Tensor) -> Tensor:
        """The nearest values of the grid, in x's shape."""
        if self._seen is not None:
            flat = x.detach().flatten()
            # At random: every n-th value would come from a few columns if n and the map's width had a common divisor.
            generator = torch.Generator(x.device).manual_seed(len(self._seen))
            some = torch.randint(len(flat), (SAMPLES * len(x),), generator=generator, device=x.device)
            self._seen.append(flat[some])
            return x
        return round_to_grid(x, self.scale, self.low, self.high) if self.enabled else x


class WeightGrid(nn.Module):
    """The grids of a layer's weights [outputs, ...], each as wide as its output channel needs.

    Attributes:
        scale: [outputs] once the weights are frozen; None before.
        enabled: False leaves the weights unchanged.
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
        """The scale [outputs] for these weights."""
        if self.scale is not None:
            return self.scale
        return weight.detach().abs().amax(tuple(range(1, weight.dim()))).clamp(min=1e-8) / WEIGHT_LIMIT


def round_to_grid(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    """The nearest values of {low, ..., high} times a scale, ties to even.

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


def prepare_qat(detector: Detector) -> Detector:
    """A copy of a trained detector whose maps and weights lie on grids; call `calibrate` next for the maps' scales.

    If the detector has a quantizer, the grid of the backbone's map is the one on which student and teacher met in
    training: its stride s is the scale. Outputs of the last layers stay float.

    Raises:
        InputError: the detector's map is quantized with a stride per channel, or to powers of two.
    """
    whole = fold_batch_norm(detector)
    absorb_deviation(whole)
    whole.requires_grad_(True)  # the weights that folding created are trained as well
    _put_grids(whole, detector.quantization_points())
    for layer in layers(whole).values():
        parametrize.register_parametrization(layer, "weight", WeightGrid())
    quantizer, whole.quantizer = whole.quantizer, None
    if quantizer is not None:
        if quantizer.config.kind != "uniform" or len(quantizer.stride) != 1:
            raise InputError(
                "An integer map has one scale, so a map quantized to powers of two, or with a stride per channel, "
                "cannot become an int8 file; train with quantizer.kind=uniform and quantizer.per_channel=false."
            )
        for grid in map_grids(whole):
            grid.fix(quantizer.stride, quantizer.config.upper)
    return whole


def is_on_grids(detector: Detector) -> bool:
    """Whether a detector came out of `prepare_qat`."""
    return any(isinstance(module, Grid) for module in detector.modules())


def layers(detector: Detector) -> dict[str, nn.Conv2d | nn.Linear]:
    """The layers with weights, by name."""
    return {name: one for name, one in detector.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}


def freeze(detector: Detector) -> None:
    """Fix the weights' scales at their present values: an exported graph must not compute them."""
    for layer in layers(detector).values():
        if parametrize.is_parametrized(layer):
            weights: Any = layer.parametrizations["weight"]  # type: ignore[index]
            weights[0].scale = weights[0].scale_of(weights.original)


def map_grids(detector: Detector) -> list[Grid]:
    """The grids of the levels' maps, in order; everything behind the backbone sees these maps."""
    found = {one.level: one for one in detector.modules() if isinstance(one, Grid) and one.level is not None}
    return [found[level] for level in sorted(found)]


@torch.no_grad()
def calibrate(detector: Detector, batches: Iterable[Tensor]) -> None:
    """Choose the scales of a detector's maps on batches of images [B, 3, H, W].

    Raises:
        InputError: a layer reads a map that no quantization point rounds.
    """
    grids = [module for module in detector.modules() if isinstance(module, Grid)]
    for grid in grids:
        grid.observe()
    sample: Tensor | None = None
    for images in batches:
        detector.detect(images)
        sample = images[:1]
    for grid in grids:
        grid.calibrate()
    if sample is not None:
        _check_covered(detector, sample)


def grid_names(detector: Detector) -> list[str]:
    """Names of the grids, the maps' first; the levels' maps are left out, since they always stay on their grids."""
    shared = map_grids(detector)
    own = {name: one for name, one in detector.named_modules() if isinstance(one, Grid | WeightGrid) and one.enabled}
    return sorted((name for name, one in own.items() if one not in shared), key=lambda name: "parametrizations" in name)


def keep_float(detector: Detector, *names: str) -> Detector:
    """A copy of a detector on grids in which the named grids (from `grid_names`) are disabled, so float."""
    other = copy.deepcopy(detector)
    for name in names:
        part = other.get_submodule(name)
        assert isinstance(part, Grid | WeightGrid)
        part.enabled = False
    return other


def with_summands(detector: Detector) -> Detector:
    """A copy of a detector on grids in which summands are rounded too, for engines that add integers.

    What `keep_float` left float stays float.
    """
    other = copy.deepcopy(detector)
    for module in other.modules():
        if isinstance(module, Grid) and module.summand:
            module.enabled = True
    return other


def _put_grids(detector: Detector, points: Iterable[QuantizationPoint]) -> None:
    """Put grids before and behind modules, and in place of batch norms that were folded away."""
    around: dict[str, dict[bool, Grid]] = {}
    for point in points:
        around.setdefault(point.module, {})[point.before] = Grid(point.signed, point.level, point.summand)
    for name in sorted(around, key=lambda name: -name.count(".")):  # a block's inner modules before the block itself
        try:
            module = detector.get_submodule(name)
        except AttributeError as error:
            raise InputError(f"The detector has no module {name}: see quantization_points().") from error
        before, behind = around[name].get(True), around[name].get(False)
        chain = [
            one for one in (before, None if isinstance(module, nn.Identity) else module, behind) if one is not None
        ]
        put_module(detector, name, chain[0] if len(chain) == 1 else nn.Sequential(*chain))


def _check_covered(detector: Detector, images: Tensor) -> None:
    """Check that every layer reads rounded maps. Raises InputError: one reads more distinct values than a grid has."""
    loose: list[str] = []

    def look(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if inputs[0].unique().numel() > 256:
            loose.append(name)

    handles = [one.register_forward_pre_hook(partial(look, name)) for name, one in layers(detector).items()]
    try:
        detector.detect(images)
    finally:
        for handle in handles:
            handle.remove()
    if loose:
        part = loose[0].split(".")[0]
        raise InputError(f"No quantization point rounds what {loose[0]} reads: declare it in {part}.")
