"""Networks of timm as backbones: `timm:NAME`, at their own width and with the pixel statistics of their training.

The levels come from timm's `feature_info`. Their channels and signs differ from network to network (inverted
residuals end without a ReLU, and a quantizer's dictionary has no values below 0), so a neck with new weights makes the
maps: a 1x1 convolution and a batch norm on each level, coarser levels added to finer ones, then ReLU. It is a feature
pyramid (Lin et al., CVPR 2017) without its 3x3 convolutions; a detector with one map gets the finest.
"""

from dataclasses import replace
from difflib import get_close_matches
from functools import cache
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d as TimmBatchNorm
from torch import Tensor, nn

from qmimic.contracts import Backbone, ChannelGroup, Features, FusedPair, QuantizationPoint
from qmimic.detectors.batch_norm import BatchNorm2d, BatchNormAct2d
from qmimic.detectors.convolution import Conv2d
from qmimic.detectors.timm_structure import Structure, levels_below_0, structure_of
from qmimic.errors import InputError

WIDTH = 256  # channels of a map, as in feature pyramids; fewer where the network itself has fewer
# What timm's networks raise if they cannot give features, or cannot take images of this size.
UNFIT = (RuntimeError, AssertionError, TypeError, ValueError, AttributeError, LookupError)
PROBE = (112, 176)  # multiples of 16 and not of 32, as images may be
RESNET_CHANNELS = 512  # channels of ResNet-18's map, relative to which width divisors are counted


class TimmBackbone(Backbone):
    """A network of timm without its classifier, and a neck.

    Args:
        name: timm's own, such as `tf_efficientnet_lite0`.
        strides: of the maps, in increasing order; the network must have a level of each.

    Attributes:
        body: timm's network; its weights have timm's names.
        neck: a convolution and a batch norm for each level from the finest map's stride up, in increasing order.
        structure: of the body as it was built.

    Raises:
        InputError: timm has no such network, or it does not give maps of these strides for images of any size.
    """

    def __init__(self, name: str, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.name, self.published_name, self.strides = name, name, strides
        self.body, found = _body(name, strides)
        self.structure, self._below_0 = _structure(name, tuple(level["index"] for level in found))
        self.mean, self.std = _statistics(name)
        own = [level["num_chs"] for level in found]
        width = min(WIDTH, max(own))
        self.neck = nn.ModuleList(
            nn.Sequential(Conv2d(channels, width, 1, bias=False), BatchNorm2d(width)) for channels in own
        )
        self.maps = nn.ModuleList(nn.ReLU() for _ in strides)
        self.channels = (width,) * len(strides)
        self.width_divisor = RESNET_CHANNELS / width
        self._places = tuple([level["reduction"] for level in found].index(stride) for stride in strides)
        for module in self.neck.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Features:
        """Normalised images [B, 3, H, W] to levels, after ReLU."""
        own = self.body(images)
        summed = [layer(level) for layer, level in zip(self.neck, own, strict=True)]
        for place in range(len(summed) - 1, 0, -1):  # from the coarsest to the finest
            finer = summed[place - 1]
            summed[place - 1] = finer + F.interpolate(summed[place], finer.shape[2:], mode="nearest")
        return Features.of(
            [relu(summed[place]) for relu, place in zip(self.maps, self._places, strict=True)], self.strides
        )

    @property
    def pixel_layers(self) -> tuple[str, ...]:  # type: ignore[override]
        """See `Backbone`."""
        return tuple(f"body.{name}" for name in self.structure.pixel_layers)

    def stages(self) -> tuple[tuple[str, ...], ...]:
        """See `Backbone.stages`: one for each level of `feature_info`, found through the levels' gradients."""
        return tuple(tuple(f"body.{name}" for name in stage) for stage in _stages(self.name))

    def fused_pairs(self) -> tuple[FusedPair, ...]:
        """See `Part.fused_pairs`."""
        neck = [FusedPair(f"neck.{place}.0", f"neck.{place}.1") for place in range(len(self.neck))]
        return (*(pair.within("body") for pair in self.structure.pairs), *neck)

    def single_norms(self) -> tuple[str, ...]:
        """See `Part.single_norms`."""
        return tuple(f"body.{name}" for name in self.structure.single_norms)

    def channel_groups(self) -> tuple[ChannelGroup, ...]:
        """See `Part.channel_groups`: those in the graph of timm's network, and the neck's, which sums its levels."""
        if self.structure.groups is None:
            raise InputError(
                f"The channels of timm:{self.name} are tied in ways that cannot be pruned; take a plain network, "
                "such as timm:resnet18, or a backbone of qmimic's own."
            )
        found = []
        for group in self.structure.groups:
            readers = tuple(f"neck.{level}.0" for level in group.levels)
            own = replace(group, levels=()).within("body")
            found.append(own.joined(ChannelGroup((), readers)))
        producers = [f"neck.{place}.{layer}" for layer in (0, 1) for place in range(len(self.neck))]
        return (*found, ChannelGroup(tuple(producers), (), tuple(range(len(self.strides)))))

    def quantization_points(self) -> tuple[QuantizationPoint, ...]:
        """See `Part.quantization_points`: before each layer with weights, and behind the maps."""
        signed = self.structure.signed
        if signed is None:
            raise InputError(
                f"timm:{self.name} has no int8 form: its graph does not show what its layers read; take another "
                "network, or ship it as float."
            )
        body = [QuantizationPoint(f"body.{name}", before=True, signed=own) for name, own in signed.items()]
        neck = [
            QuantizationPoint(f"neck.{place}.0", before=True, signed=own) for place, own in enumerate(self._below_0)
        ]
        maps = [QuantizationPoint(f"maps.{level}", level=level) for level in range(len(self.maps))]
        return (*body, *neck, *maps)


def check_name(name: str) -> None:
    """Look a network up in timm's table.

    Raises:
        InputError: it is not there, or has no weights of that tag; the message gives names that are there.
    """
    if "/" in name or ":" in name or not timm.is_model(name):
        near = get_close_matches(name.partition(".")[0], timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "`timm.list_models()` lists them."
        raise InputError(f"timm has no network {name[:100]!r}; {hint}")
    own, _, tag = name.partition(".")
    if tag and not _has_tag(name):
        tags = [one.partition(".")[2] for one in timm.list_pretrained(f"{own}.*")]
        known = f"choose one of {', '.join(tags)}, or write" if tags else "it has none at all: write"
        raise InputError(f"timm's {own} has no weights with the tag {tag[:100]!r}; {known} timm:{own}.")


def _has_tag(name: str) -> bool:
    """Whether timm knows a network's tag, of which some, such as `untrained`, have no weights."""
    try:
        return timm.get_pretrained_cfg(name) is not None
    except RuntimeError:
        return False


def whole_network(name: str) -> nn.Module:
    """timm's network with its classifier, on the meta device: for the names and shapes of its weights."""
    with torch.device("meta"):
        network: nn.Module = timm.create_model(name)
    return network


def classifier(name: str) -> tuple[str, ...]:
    """Prefixes of the names of the classifier's weights, whose shape depends on the data."""
    config = timm.get_pretrained_cfg(name)
    found = config.classifier if config is not None else None
    return tuple(f"{one}." for one in ((found,) if isinstance(found, str) else found or ()))


def published(name: str) -> dict[str, Tensor]:
    """The weights that timm fetches for a network.

    Raises:
        InputError: timm has none, or cannot reach them.
    """
    try:
        network: nn.Module = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).split(". ")[0].strip(" .")
        raise InputError(
            f"timm cannot provide pretrained weights of {name} ({reason[:200]}); name a file of them instead."
        ) from error
    return network.state_dict()


def _body(name: str, strides: tuple[int, ...]) -> tuple[nn.Module, list[dict[str, Any]]]:
    """The network up to its last level, with qmimic's batch norm, and its levels from the finest wanted one up."""
    levels = _levels(name)
    had = [level["reduction"] for level in levels]
    if missing := [stride for stride in strides if stride not in had]:
        listed = ", ".join(map(str, sorted(set(had))))
        raise InputError(f"timm:{name} has levels of strides {listed}, not {missing[0]}; take another network.")
    # Of several levels with the same stride, the last is the deepest.
    last = {level["reduction"]: level for level in levels if level["reduction"] >= strides[0]}
    found = sorted(last.values(), key=lambda level: level["reduction"])
    return _create(name, tuple(level["index"] for level in found)), found


def _create(name: str, levels: tuple[int, ...]) -> nn.Module:
    body: nn.Module = timm.create_model(name, features_only=True, out_indices=levels)
    _take_over(body)
    return body


@cache
def _structure(name: str, levels: tuple[int, ...]) -> tuple[Structure, tuple[bool, ...]]:
    """The network's structure, and for each level whether its map has values below 0."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        network = _create(name, levels)
    return structure_of(network), levels_below_0(network)


@cache
def _levels(name: str) -> tuple[dict[str, Any], ...]:
    """timm's `feature_info` of a network, after checking that its levels are as promised for images of any size."""
    check_name(name)
    reason = "its levels are not maps"
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            network = timm.create_model(name, features_only=True).eval()
            info: Any = network.feature_info
            levels = tuple(
                {**level, "index": place} for place, level in zip(info.out_indices, info.get_dicts(), strict=True)
            )
            maps = network(torch.zeros(1, 3, *PROBE))
    except UNFIT as error:
        reason, maps, levels = str(error).split("\n")[0].strip(" .") or type(error).__name__, (), ()
    if not maps or not all(_fits(one, level) for one, level in zip(maps, levels, strict=True)):
        raise InputError(
            f"timm:{name} does not give feature maps at every image size ({reason[:100]}); "
            "take a convolutional network of timm."
        )
    return levels


def _fits(map: Tensor, level: dict[str, Any]) -> bool:
    """Whether a level's map of an image of size `PROBE` is as `feature_info` promises, rounded down or up."""
    sides = [(side // level["reduction"], -(-side // level["reduction"])) for side in PROBE]
    shape = map.shape
    return len(shape) == 4 and shape[1] == level["num_chs"] and shape[2] in sides[0] and shape[3] in sides[1]


@cache
def _stages(name: str) -> tuple[tuple[str, ...], ...]:
    """Modules of each level that no earlier level depends on."""
    with torch.random.fork_rng(devices=[]):
        network = timm.create_model(name, features_only=True).eval()
    maps = network(torch.zeros(1, 3, 64, 64))
    named = dict(network.named_parameters())
    known: set[str] = set()
    found = []
    for one in maps:
        gradients = torch.autograd.grad(one.sum(), list(named.values()), allow_unused=True, retain_graph=True)
        used = {key for key, gradient in zip(named, gradients, strict=True) if gradient is not None}
        found.append(tuple(dict.fromkeys(key.rpartition(".")[0] for key in named if key in used - known)))
        known |= used
    return tuple(found)


def _statistics(name: str) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and deviation of RGB values 0..255 for which timm's weights were made."""
    config = timm.get_pretrained_cfg(name)
    if config is None:
        return Backbone.mean, Backbone.std
    (r, g, b), (dr, dg, db) = config.mean, config.std
    return (255 * r, 255 * g, 255 * b), (255 * dr, 255 * dg, 255 * db)


def _take_over(network: nn.Module) -> None:
    """Replace timm's batch norm by ours, which works across processes, and strided 1x1 convolutions by safe ones."""
    for name, module in list(network.named_modules()):
        other: nn.Module | None = None
        if type(module) is nn.BatchNorm2d or (type(module) is TimmBatchNorm and isinstance(module.drop, nn.Identity)):
            other = _norm(module)
        elif type(module) is nn.Conv2d and (*module.kernel_size, *module.padding, module.groups) == (1, 1, 0, 0, 1):
            step = module.stride[0], module.stride[1]
            if step != (1, 1):
                other = Conv2d(module.in_channels, module.out_channels, 1, step, bias=module.bias is not None)
        if other is not None:
            other.load_state_dict(module.state_dict(), assign=True)
            parent, _, own = name.rpartition(".")
            setattr(network.get_submodule(parent), own, other)


def _norm(module: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Our batch norm in place of timm's, with the same activation."""
    settings = module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats
    if isinstance(module, TimmBatchNorm):
        return BatchNormAct2d(*settings, act=module.act)
    return BatchNorm2d(*settings)
