"""What an architecture is: a description, a class, and the settings it derives from the training boxes.

A new one is a file with an `Architecture`, and a line in `ARCHITECTURES` (tables.py), where the names stand. What a
description holds is read without torch too (by `data check`), so the detectors here are named and not imported.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from qmimic.config import DetectorConfig
from qmimic.detectors.fitted import COARSE, anchors_in_cells, choose_levels, choose_output_stride, fit_anchors
from qmimic.detectors.spec import DetectorSpec, OneStageSpec, TwoStageSpec
from qmimic.errors import InputError
from qmimic.tables import ARCHITECTURES, imported

if TYPE_CHECKING:
    from qmimic.detectors.detector import Detector

Sizes = NDArray[np.float32]


@dataclass(frozen=True)
class Architecture:
    """A kind of detector.

    Attributes:
        spec: the class of its description, with those settings of a recipe's `detector` that this kind knows.
        detector: its class, or "module:class", which is imported when one is built.
        fitted: chooses what a recipe leaves open, from the sizes of the training boxes [N, 2] and of the input.
        by_places: whether it says at every place what lies there (`Detector.place_outputs`), which is all that some
            deployment formats can hold.
        ignores: settings in `spec` that it inherits but does not read.
    """

    spec: type[DetectorSpec]
    detector: "Callable[[Any], Detector] | str"
    fitted: Callable[[DetectorConfig, Sizes, tuple[int, int]], DetectorConfig] = lambda config, _, __: config
    by_places: bool = False
    ignores: tuple[str, ...] = ()

    def build(self, spec: DetectorSpec) -> "Detector":
        """One with fresh weights, from a description of the class `spec`."""
        make = imported(self.detector) if isinstance(self.detector, str) else self.detector
        detector: Detector = make(spec)
        return detector

    @property
    def reads(self) -> frozenset[str]:
        """Settings of a recipe's `detector` that have an effect."""
        return frozenset(self.spec.model_fields) - {*self.ignores}

    @property
    def of_one_map(self) -> bool:
        """Whether it has one map, of `detector.output_stride`; others have `detector.levels`, or their own."""
        return "output_stride" in self.reads


def with_anchors(config: DetectorConfig, box_sizes: Sizes, size: tuple[int, int]) -> DetectorConfig:
    """With an output stride, and with anchors in pixels. Args as `Architecture.fitted`."""
    stride = config.output_stride or choose_output_stride(box_sizes)
    config = config.model_copy(update={"output_stride": stride})
    if config.anchor_cells:
        anchors = anchors_in_cells(config.anchor_cells, config.anchor_ratios, stride)
        return config.model_copy(update={"anchors": anchors, "anchor_cells": None, "anchor_ratios": (1.0,)})
    if config.anchors is not None:
        return config
    return config.model_copy(update={"anchors": fit_anchors(box_sizes, config.anchor_count)})


def with_levels(config: DetectorConfig, box_sizes: Sizes, size: tuple[int, int]) -> DetectorConfig:
    """With the strides of the levels, which hold an output stride that is given. Args as `Architecture.fitted`."""
    if config.levels is not None:
        return config
    return config.model_copy(update={"levels": choose_levels(box_sizes, size, config.output_stride)})


def fitted_to(config: DetectorConfig, teacher: str | None, box_sizes: Sizes, size: tuple[int, int]) -> DetectorConfig:
    """The settings with all that the boxes decide for the student's architecture and its teacher's.

    Args:
        config: of the student; other args as `Architecture.fitted`.
        teacher: the teacher's architecture; None: the student's.
    """
    names = {config.architecture, teacher or config.architecture}
    # Those of one map first: levels hold its stride, where there is one.
    kinds = sorted((ARCHITECTURES[name] for name in sorted(names)), key=lambda kind: not kind.of_one_map)
    given, of_one_map = config.output_stride, any(kind.of_one_map for kind in kinds)
    if not of_one_map:
        config = config.model_copy(update={"output_stride": None})
    for kind in kinds:
        config = kind.fitted(config, box_sizes, size)
    return config if of_one_map else config.model_copy(update={"output_stride": given})


def map_strides(
    config: DetectorConfig, teacher: str | None, box_sizes: Sizes, size: tuple[int, int]
) -> tuple[int, ...]:
    """Strides of a student's maps in pixels, the finest first. Args as `fitted_to`."""
    own = ARCHITECTURES[config.architecture]
    without_anchors = config.model_copy(update={"anchors": ((1.0, 1.0),), "anchor_cells": None})
    fitted = fitted_to(without_anchors, teacher, box_sizes, size)
    return fitted.levels if fitted.levels and not own.of_one_map else (fitted.output_stride or COARSE,)


OF_ONE_STAGE = ("levels", "softmax_weight")
FASTER_RCNN = Architecture(TwoStageSpec, "qmimic.detectors.two_stage:FasterRCNN", with_anchors, ignores=OF_ONE_STAGE)
R_FCN = Architecture(TwoStageSpec, "qmimic.detectors.two_stage:RFCN", with_anchors, ignores=OF_ONE_STAGE)
ONE_STAGE = Architecture(OneStageSpec, "qmimic.detectors.one_stage:OneStage", with_levels, by_places=True)


def parse_spec(values: object) -> DetectorSpec:
    """The description of a detector from plain values, as a detector file holds them.

    Raises:
        InputError: they are not a mapping, or their architecture is unknown.
        ValidationError: a key is unknown or missing, or a value is wrong.
    """
    if not isinstance(values, Mapping):
        raise InputError("its description is not a mapping of names to values.")
    return _description(str(values.get("architecture"))).model_validate(values)


def spec_for(
    config: DetectorConfig, backbone: str, classes: tuple[str, ...], size: tuple[int, int], grey: bool = False
) -> DetectorSpec:
    """The description of a detector from a recipe's settings, without those that its architecture does not know.

    Args:
        config: the settings, with anchors if the architecture uses any.
        backbone: family and width divisor.
        classes: class names.
        size: height and width that images are fitted into, pixels.
        grey: whether the network sees only the images' brightness.

    Raises:
        InputError: the architecture is unknown.
        ValidationError: the architecture refuses a value.
    """
    kind = _description(config.architecture)
    settings = config.model_dump(include=set(kind.model_fields))
    return kind.model_validate({**settings, "backbone": backbone, "classes": classes, "size": size, "grey": grey})


def _description(architecture: str) -> type[DetectorSpec]:
    kind: type[DetectorSpec] = ARCHITECTURES[architecture].spec
    return kind
