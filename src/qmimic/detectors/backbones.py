"""The table of backbones, and their names: `resnet18/16` is ResNet-18 with 1/16 of its channels."""

import re
from collections.abc import Callable
from difflib import get_close_matches

from qmimic.contracts import Backbone
from qmimic.detectors.plain import repvgg, yunet
from qmimic.detectors.resnet import resnet18, resnet18_grouped, resnet18_separable, resnet34, resnet50
from qmimic.detectors.vgg import vgg16, vgg16_grouped, vgg16_separable
from qmimic.errors import InputError

TIMM = "timm:"  # what begins so is looked up in timm's table

BACKBONES: dict[str, Callable[[float, int], Backbone]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "vgg16": vgg16,
    "resnet18_separable": resnet18_separable,
    "resnet18_grouped": resnet18_grouped,
    "vgg16_separable": vgg16_separable,
    "vgg16_grouped": vgg16_grouped,
    "repvgg": repvgg,
    "yunet": yunet,
}


def parse_name(name: str) -> tuple[str, float]:
    """Family and width divisor of a backbone's name: `resnet18/16` is ("resnet18", 16.0), `vgg16` is ("vgg16", 1.0).

    A network of timm, `timm:NAME`, is a family of its own that cannot be divided.

    Raises:
        InputError: the family is unknown or the divisor is not a number of at least 1.
    """
    if name.startswith(TIMM):
        from qmimic.detectors.timm_backbone import check_name  # an extra, and seconds of importing

        check_name(name.removeprefix(TIMM))
        return name, 1.0
    match = re.fullmatch(r"([a-z0-9_]+)(?:/(\d+(?:\.\d+)?))?", name)
    family = match[1] if match else name.split("/")[0]
    if family not in BACKBONES:
        near = get_close_matches(family, BACKBONES, n=1, cutoff=0.0)[0]
        raise InputError(
            f"Unknown backbone {name!r}; did you mean {near}? Known: {', '.join(BACKBONES)}, "
            "each with /n, and timm:NAME."
        )
    divisor = float(match[2] or 1) if match else 0.0
    if not 1 <= divisor <= 4096:
        raise InputError(f"Backbone {name!r} needs a width divisor from 1 to 4096; write for example {family}/16.")
    return family, divisor


def build_backbone(name: str, output_stride: int, levels: tuple[int, ...] | None = None) -> Backbone:
    """A backbone with fresh weights.

    Args:
        name: `family/n`, such as `resnet18/16`, or `timm:NAME`.
        output_stride: pixels from one entry of the last map to the next: 32, 16 or 8.
        levels: strides of the maps, in growing order, of which the last is `output_stride`; None: the last map alone.

    Raises:
        InputError: the name is unknown, or the backbone lacks a level.
    """
    family, divisor = parse_name(name)
    if name.startswith(TIMM):
        from qmimic.detectors.timm_backbone import TimmBackbone

        return TimmBackbone(name.removeprefix(TIMM), levels or (output_stride,))
    backbone = BACKBONES[family](divisor, output_stride)
    if levels is not None:
        backbone.keep_levels(levels)
    return backbone
