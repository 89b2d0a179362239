"""The table of architectures: the only place that knows their names.

A new one is a file with a description (`DetectorSpec`) and a class (`Detector`), and a line here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from qmimic.config import DetectorConfig
from qmimic.detectors.detector import Detector
from qmimic.detectors.spec import DetectorSpec, TwoStageSpec
from qmimic.detectors.two_stage import RFCN, FasterRCNN
from qmimic.errors import InputError


@dataclass(frozen=True)
class Architecture:
    """A kind of detector.

    Attributes:
        spec: the class of its description; it has the settings of a recipe's `detector` that this kind knows.
        detector: makes one with fresh weights from such a description.
    """

    spec: type[DetectorSpec]
    detector: Callable[[Any], Detector]


ARCHITECTURES = {
    "faster_rcnn": Architecture(TwoStageSpec, FasterRCNN),
    "rfcn": Architecture(TwoStageSpec, RFCN),
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
