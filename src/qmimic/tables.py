"""Tables: the names that a recipe may use, and what each stands for. Names are looked up only here.

What a name stands for may need torch, but recipes are also read by commands that start instantly, or where torch is not
installed. So an entry may be written as "module:attribute", which is imported when it is looked up.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from qmimic.errors import InputError

T = TypeVar("T")
MAX_SHOWN = 100  # characters shown of a name that a stranger wrote


def near(name: str, names: Iterable[str]) -> str | None:
    """The most similar name; None if none is similar."""
    return next(iter(get_close_matches(name, list(names), n=1, cutoff=0.5)), None)


def unknown(what: str, name: str, names: Iterable[str]) -> str:
    """The message for a name that a table does not have; `what` is the kind of name: "backbone", "mimic.mode"."""
    listed = list(names)
    meant = near(name, listed)
    hint = f"did you mean {meant}? " if meant else ""
    return f"Unknown {what} {name[:MAX_SHOWN]!r}; {hint}Known: {', '.join(listed)}."


def look_up(table: Mapping[str, T], name: str, what: str) -> T:
    """The entry of a name in a table that is a plain mapping.

    Args:
        table: by name.
        name: as the user wrote it.
        what: the kind of name, for the message: "backbone", "mimic.distance".

    Raises:
        InputError: the table does not have the name; the message gives the nearest one and all others.
    """
    if name in table:
        return table[name]
    raise UnknownNameError(unknown(what, name, table))


def imported(place: str) -> Any:
    """The object at "module:attribute"."""
    module, _, attribute = place.partition(":")
    return getattr(import_module(module), attribute)


class UnknownNameError(InputError, KeyError):
    """A table does not have the name that was looked up."""

    __str__ = Exception.__str__  # a KeyError would show the sentence in quotes


class Table(MutableMapping[str, T], Generic[T]):
    """Names and what they stand for, in order. Looking up an unknown name raises `UnknownNameError`.

    Args:
        key: the recipe key that takes these names, for the message that refuses others.
        entries: name to value, or to "module:attribute", from which the value is imported when it is looked up.
    """

    def __init__(self, key: str, entries: Mapping[str, T | str]) -> None:
        self.key = key
        self._entries: dict[str, T | str] = dict(entries)

    def __getitem__(self, name: str) -> T:
        if name not in self._entries:
            raise UnknownNameError(unknown(self.key, name, self))
        entry = self._entries[name]
        if isinstance(entry, str):
            self._entries[name] = entry = imported(entry)
        return entry

    def __setitem__(self, name: str, value: T) -> None:
        self._entries[name] = value

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@dataclass(frozen=True)
class Mode:
    """What is quantized while a student imitates its teacher.

    Attributes:
        title: its name in tables and reports.
        teacher: whether the target is the quantized teacher's quantized map; else the full-precision teacher's map.
        student: whether the student's map is quantized too.
    """

    title: str
    teacher: bool = False
    student: bool = False


MODES = Table(
    "mimic.mode",
    {
        "none": Mode("no mimic"),
        "mimic": Mode("mimic"),
        "quantization": Mode("quantization mimic", teacher=True, student=True),
        "teacher_only": Mode("teacher's map quantized", teacher=True),
        "student_only": Mode("student's map quantized", student=True),
    },
)
PAPER_DISTILLER = "mimic"  # that of the paper, which the titles of the modes are about


def taught_by(mode: str, distiller: str) -> str:
    """How a student is taught, in tables and reports: the mode's title, or another distiller by its name.

    Args:
        mode: `mimic.mode`.
        distiller: `mimic.distiller`; empty in results from before there were several.
    """
    if mode == "none" or distiller in ("", PAPER_DISTILLER):
        return MODES[mode].title if mode in MODES else mode
    return distiller if mode == "mimic" else f"{distiller}, mode {mode}"


# Kinds of detector: `Architecture` (detectors/architectures.py).
ARCHITECTURES: Table[Any] = Table(
    "architecture",
    {
        "faster_rcnn": "qmimic.detectors.architectures:FASTER_RCNN",
        "rfcn": "qmimic.detectors.architectures:R_FCN",
        "one_stage": "qmimic.detectors.architectures:ONE_STAGE",
    },
)
# Functions of a width divisor and an output stride that give a `Backbone` (contracts.py).
BACKBONES: Table[Any] = Table(
    "backbone",
    {
        "resnet18": "qmimic.detectors.resnet:resnet18",
        "resnet34": "qmimic.detectors.resnet:resnet34",
        "resnet50": "qmimic.detectors.resnet:resnet50",
        "vgg16": "qmimic.detectors.vgg:vgg16",
        "resnet18_separable": "qmimic.detectors.resnet:resnet18_separable",
        "resnet18_grouped": "qmimic.detectors.resnet:resnet18_grouped",
        "vgg16_separable": "qmimic.detectors.vgg:vgg16_separable",
        "vgg16_grouped": "qmimic.detectors.vgg:vgg16_grouped",
        "repvgg": "qmimic.detectors.plain:repvgg",
        "yunet": "qmimic.detectors.plain:yunet",
    },
)
TIMM = "timm:"  # a backbone with this prefix is looked up in timm's own table, if timm is installed
_TIMM_CHECK = "qmimic.detectors.timm_backbone:check_name"


def parse_backbone(name: str) -> tuple[str, float]:
    """Family and width divisor of a backbone's name: `resnet18/16` is ("resnet18", 16.0), `vgg16` is ("vgg16", 1.0).

    A network of timm, `timm:NAME`, is a family of its own that cannot be divided.

    Raises:
        InputError: the family is unknown or the divisor is not a number of at least 1.
    """
    if name.startswith(TIMM):
        own = name.removeprefix(TIMM)
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", own):
            raise InputError(
                f"timm has no network {own[:MAX_SHOWN]!r}; write timm: and one of its names, without a width divisor."
            )
        if find_spec("timm"):
            imported(_TIMM_CHECK)(own)
        return name, 1.0
    match = re.fullmatch(r"([a-z0-9_]+)(?:/(\d+(?:\.\d+)?))?", name)
    family = match[1] if match else name.split("/")[0]
    if family not in BACKBONES:
        known = unknown("backbone", family, BACKBONES).removesuffix(".")
        raise UnknownNameError(f"{known}, each with /n, and timm:NAME.")
    divisor = float(match[2] or 1) if match else 0.0
    if not 1 <= divisor <= 4096:
        raise InputError(
            f"Backbone {name[:MAX_SHOWN]!r} needs a width divisor from 1 to 4096; write for example {family}/16."
        )
    return family, divisor


_POOLINGS: dict[str, Any] = {
    "align": "qmimic.detectors.roi_pooling:ALIGN",
    "pool": "qmimic.detectors.roi_pooling:POOL",
}
ROI_POOLINGS: Table[Any] = Table("detector.roi_pooling", _POOLINGS)
# How a distiller pools regions: as heads do, or not at all.
REGION_POOLINGS: Table[Any] = Table("mimic.pooling", {**_POOLINGS, "crop": None})
# Kinds of teacher: None is the detector that the run trains; the others are classes, called with `recipe.teacher` and
# the input's size (see distill/teacher.py).
TEACHERS: Table[Any] = Table(
    "teacher.kind",
    {
        "detector": None,
        "onnx": "qmimic.distill.onnx_teacher:OnnxTeacher",
    },
)
# What a student learns from its teacher: subclasses of `Distiller` (distill/distiller.py).
DISTILLERS: Table[Any] = Table(
    "mimic.distiller",
    {
        "mimic": "qmimic.distill.mimic:Mimic",
        "channel_wise": "qmimic.distill.channel_wise:ChannelWise",
        "pearson": "qmimic.distill.pearson:Pearson",
        "fine_grained": "qmimic.distill.fine_grained:FineGrained",
        "masked_generative": "qmimic.distill.masked_generative:MaskedGenerative",
        "focal_global": "qmimic.distill.focal_global:FocalGlobal",
        "outputs": "qmimic.distill.outputs:Outputs",
        "cross_head": "qmimic.distill.cross_head:CrossHead",
        "two_stage_mimic": "qmimic.distill.two_stage_mimic:TwoStageMimic",
    },
)


@dataclass(frozen=True)
class Distance:
    """How far a student's regions are from the teacher's.

    Attributes:
        place: "module:function" of a function like `squared_distance` (distill/mimic.py), or the function itself.
        to_cells: whether it measures the distance to the teacher's cell; then the teacher's map must be quantized, with
            cells of one size, and the student's is not.
    """

    place: Any
    to_cells: bool = False

    @property
    def function(self) -> Any:
        """The function, imported if only its name is given."""
        return imported(self.place) if isinstance(self.place, str) else self.place


DISTANCES = Table(
    "mimic.distance",
    {
        "squared": Distance("qmimic.distill.mimic:squared_distance"),
        "cell": Distance("qmimic.distill.mimic:cell_distance", to_cells=True),
    },
)
DICTIONARIES: Table[Any] = Table(
    "quantizer.kind",
    {
        "uniform": "qmimic.detectors.quantize:UNIFORM",
        "power_of_two": "qmimic.detectors.quantize:POWER_OF_TWO",
    },
)
TRACKERS: Table[Any] = Table(
    "run.trackers",
    {
        "tensorboard": "qmimic.training.trackers:_TensorBoard",
        "mlflow": "qmimic.training.trackers:_MLflow",
        "trackio": "qmimic.training.trackers:_Trackio",
        "wandb": "qmimic.training.trackers:_WandB",
    },
)
