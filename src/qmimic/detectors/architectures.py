"""The table of architectures: the only place that knows their names.

A new one is a file with a description (`DetectorSpec`) and a class (`Detector`), and a line here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmimic.config import DetectorConfig
from qmimic.detectors.anchors import anchors_in_cells, fit_anchors
from qmimic.detectors.detector import Detector
from qmimic.detectors.levels import choose_levels
from qmimic.detectors.one_stage import OneStage
from qmimic.detectors.spec import DetectorSpec, OneStageSpec, TwoStageSpec
from qmimic.detectors.two_stage import RFCN, FasterRCNN
from qmimic.errors import InputError

Sizes = NDArray[np.float32]


@dataclass(frozen=True)
class Architecture:
    """A kind of detector.

    Attributes:
        spec: the class of its description; it has the settings of a recipe's `detector` that this kind knows.
        detector: makes one with fresh weights from such a description.
        fitted: chooses what a recipe leaves open by the sizes of the training boxes [N, 2] and the input's size.
        ignores: settings in `spec` that it has from others and does not read.
    """

    spec: type[DetectorSpec]
    detector: Callable[[Any], Detector]
    fitted: Callable[[DetectorConfig, Sizes, tuple[int, int]], DetectorConfig] = lambda config, _, __: config
    ignores: tuple[str, ...] = ()

    @property
    def reads(self) -> frozenset[str]:
        """Settings of a recipe's `detector` that have an effect."""
        return frozenset(self.spec.model_fields) - {*self.ignores}


def _with_anchors(config: DetectorConfig, box_sizes: Sizes, size: tuple[int, int]) -> DetectorConfig:
    if config.anchor_cells:
        anchors = anchors_in_cells(config.anchor_cells, config.anchor_ratios, config.output_stride)
        return config.model_copy(update={"anchors": anchors, "anchor_cells": None, "anchor_ratios": (1.0,)})
    if config.anchors is not None:
        return config
    return config.model_copy(update={"anchors": fit_anchors(box_sizes, config.anchor_count)})


def _with_levels(config: DetectorConfig, box_sizes: Sizes, size: tuple[int, int]) -> DetectorConfig:
    if config.levels is not None:
        return config
    return config.model_copy(update={"levels": choose_levels(box_sizes, size)})


ARCHITECTURES = {
    "faster_rcnn": Architecture(TwoStageSpec, FasterRCNN, _with_anchors, ("levels",)),
    "rfcn": Architecture(TwoStageSpec, RFCN, _with_anchors, ("levels",)),
    "one_stage": Architecture(OneStageSpec, OneStage, _with_levels),
}


def architecture_of(name: object) -> Architecture:
    """The architecture of this name.

    Raises:
        InputError: no architecture has this name; the nearest one is given.
    """
    if isinstance(name, str) and name in ARCHITECTURES:
        return ARCHITECTURES[name]
    near = get_close_matches(str(name), ARCHITECTURES, n=1, cutoff=0.0)[0]
    raise InputError(
        f"Unknown detector.architecture {str(name)[:100]!r}; did you mean {near}? Known: {', '.join(ARCHITECTURES)}."
    )


def parse_spec(values: object) -> DetectorSpec:
    """The description of a detector from plain values, as a detector file holds them.

    Raises:
        InputError: they are not a mapping, or name no known architecture.
        ValidationError: a key is unknown or missing, or a value is wrong.
    """
    if not isinstance(values, Mapping):
        raise InputError("its description is not a mapping of names to values.")
    return architecture_of(values.get("architecture")).spec.model_validate(values)


def spec_for(
    config: DetectorConfig, backbone: str, classes: tuple[str, ...], size: tuple[int, int], grey: bool = False
) -> DetectorSpec:
    """The description of a detector by a recipe's settings, without those that its architecture does not know.

    Args:
        config: the settings, with anchors where the architecture has some.
        backbone: family and width divisor.
        classes: class names.
        size: height and width that images are fitted into, pixels.
        grey: whether the network sees their brightness alone.

    Raises:
        InputError: the architecture is unknown.
        ValidationError: the architecture refuses a value.
    """
    kind = architecture_of(config.architecture).spec
    settings = config.model_dump(include=set(kind.model_fields))
    return kind.model_validate({**settings, "backbone": backbone, "classes": classes, "size": size, "grey": grey})
