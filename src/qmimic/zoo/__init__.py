"""The zoo: small trained students inside the package. `zoo:pcb` names one of them wherever a detector file is expected.

Each has a file that ships (int8, ONNX), one to start training from or to export (safetensors), and a card that says
what was measured. `tools/make_zoo.py` makes all three from the recipes in `recipes/zoo`.
"""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qmimic.errors import InputError
from qmimic.files import parse_json, read_bytes
from qmimic.tables import look_up

PREFIX = "zoo:"
FOLDER = Path(__file__).parent
CARDS = "cards.json"
DEPLOYED, TRAINED = ".onnx", ".safetensors"


@dataclass(frozen=True)
class Card:
    """What is known about a student, as measured by its makers.

    Attributes:
        about: what it finds, in words.
        classes: class names; the index is the label.
        size: height and width that pictures are fitted into, pixels.
        backbone, grey: of its network.
        data, licence, source: what it was trained on, and where that comes from.
        recipe: with which it was trained.
        seeds: of all trainings; the file is from the first.
        epochs: how often each training picture was seen.
        map50, low, high: mAP@0.5 of the shipped file on val, 0..1, and its 95 % interval over resamples of val's
            pictures.
        map50_of_seeds: mAP@0.5 of each seed's int8 file on val, 0..1.
        map50_float: of the trained detector, on the same pictures.
        images: number of val's pictures.
        parameters, macs: number of weights, and multiply-accumulates per picture.
        bytes: of the shipped file.
        milliseconds: per picture on one thread of `machine`, ONNX Runtime.
        machine: where that was measured, and how.
        parity: how far the float ONNX file is from the trained detector, see `qmimic.ship.parity`.
        sums: sha256 of the files, by suffix.
    """

    about: str
    classes: tuple[str, ...]
    size: tuple[int, int]
    backbone: str
    grey: bool
    data: str
    licence: str
    source: str
    recipe: str
    seeds: tuple[int, ...]
    epochs: float
    map50: float
    low: float
    high: float
    map50_of_seeds: tuple[float, ...]
    map50_float: float
    images: int
    parameters: int
    macs: int
    bytes: int
    milliseconds: float
    machine: str
    parity: dict[str, Any]
    sums: dict[str, str]


@cache
def cards() -> dict[str, Card]:
    """The cards by name.

    Raises:
        InputError: the package's own file is damaged.
    """
    path = FOLDER / CARDS
    try:
        plain: dict[str, dict[str, Any]] = parse_json(read_bytes(path).decode(), str(path))
        for own in plain.values():
            own |= {key: tuple(own[key]) for key in ("classes", "size", "seeds", "map50_of_seeds")}
        return {name: Card(**own) for name, own in plain.items()}
    except (AttributeError, TypeError, KeyError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged ({error}); install qmimic again.") from error


def is_of_zoo(path: Path | str) -> bool:
    """Whether a name is that of a zoo student: it begins with `zoo:`."""
    return str(path).startswith(PREFIX)


def located(path: Path | str, kind: str) -> Path:
    """The file that a name stands for; any path other than `zoo:NAME` stands for itself.

    Args:
        path: of a file, or `zoo:NAME`.
        kind: DEPLOYED or TRAINED, which of a student's files.

    Raises:
        InputError: the zoo has no such student (the nearest name is given), or its file is damaged.
    """
    if not is_of_zoo(path):
        return Path(path)
    name = str(path).removeprefix(PREFIX)
    card = look_up(cards(), name, "student of the zoo")
    file = FOLDER / f"{name}{kind}"
    if hashlib.sha256(read_bytes(file)).hexdigest() != card.sums[kind]:
        raise InputError(f"{file} is damaged: its checksum is not the one on its card; install qmimic again.")
    return file
