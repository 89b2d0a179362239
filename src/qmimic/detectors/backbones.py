"""Backbones by name: `resnet18/16` is ResNet-18 with 1/16 of its channels. The families are in tables.py."""

from qmimic.contracts import Backbone
from qmimic.tables import BACKBONES, TIMM, parse_backbone


def build_backbone(name: str, output_stride: int, levels: tuple[int, ...] | None = None) -> Backbone:
    """A backbone with fresh weights.

    Args:
        name: `family/n`, such as `resnet18/16`, or `timm:NAME`.
        output_stride: pixels from one entry of the last map to the next: 32, 16 or 8.
        levels: strides of the maps, in increasing order, ending with `output_stride`; None: only the last map.

    Raises:
        InputError: the name is unknown, or the backbone lacks a level.
    """
    family, divisor = parse_backbone(name)
    if name.startswith(TIMM):
        from qmimic.detectors.timm_backbone import TimmBackbone  # an extra that takes seconds to import

        return TimmBackbone(name.removeprefix(TIMM), levels or (output_stride,))
    backbone: Backbone = BACKBONES[family](divisor, output_stride)
    if levels is not None:
        backbone.keep_levels(levels)
    return backbone
