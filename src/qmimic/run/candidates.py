"""Networks that could fit a budget, and what each costs as a file on this machine."""

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qmimic.bench.arena import arena_bytes
from qmimic.bench.measure import Cost, measure
from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.config import Recipe
from qmimic.detectors.architectures import spec_for
from qmimic.detectors.build import build, mac_count
from qmimic.detectors.fitted import COARSE, STRIDES
from qmimic.errors import InputError
from qmimic.files import read_json, write_text
from qmimic.run.keys import costs_key
from qmimic.runtime.formats import FORMATS
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, write_described
from qmimic.tables import ARCHITECTURES

TRIED = ("resnet18/8", "resnet18/16", "resnet18/32", "vgg16/32", "repvgg/16", "repvgg/32", "yunet/16")
SIDES = (128, 192, 256)  # of a square of the same area
BOXES = np.geomspace(8, 256, 64, dtype=np.float32)[:, None].repeat(2, 1)  # widths and heights
MULTIPLE = 32  # pixels; of the input's sides
ROUNDS = 30


@dataclass(frozen=True)
class Candidate:
    """A network to try.

    Attributes:
        backbone, architecture: their names.
        size: height and width of the input, pixels.
        strides: of its maps.
    """

    backbone: str
    architecture: str
    size: tuple[int, int]
    strides: tuple[int, ...] = (COARSE,)

    def __str__(self) -> str:
        usual = self.strides in ((COARSE,), STRIDES)
        strides = "" if usual else f" stride {','.join(map(str, self.strides))}"
        return f"{self.backbone} {self.architecture} {self.size[0]}x{self.size[1]}{strides}"

    @property
    def file_name(self) -> str:
        """The same, as part of a file's name."""
        return str(self).replace("/", "_").replace(" ", "-").replace(",", "-")

    @property
    def maps(self) -> dict[str, object]:
        """The setting of its maps' strides, as its architecture has it."""
        if ARCHITECTURES[self.architecture].of_one_map:
            return {"detector.output_stride": self.strides[0]}
        return {"detector.levels": self.strides}

    def of(self, recipe: Recipe) -> Recipe:
        """A recipe with this network as its student."""
        network = {
            "detector.architecture": self.architecture,
            "student.backbone": self.backbone,
            **self.maps,
        }
        return recipe.changed({"data.size": self.size, **network})


@dataclass(frozen=True)
class Option:
    """A candidate as a file.

    Attributes:
        candidate: the network.
        target, precision: the kind of file.
        milliseconds: median of one picture on one thread of this machine.
        kilobytes: of the file.
        megabytes: largest resident memory of a process that runs it; 0 where it was not measured.
        macs: multiply-accumulates a picture.
        arena: kilobytes of working memory on a microcontroller; 0 where it was not measured.
    """

    candidate: Candidate
    target: str
    precision: str
    milliseconds: float
    kilobytes: float
    megabytes: float
    macs: int
    arena: float = 0.0


@dataclass(frozen=True)
class Budget:
    """Limits; None: no limit. `arena` is that of `Option`."""

    milliseconds: float | None = None
    kilobytes: float | None = None
    megabytes: float | None = None
    arena: float | None = None

    def excess(self, milliseconds: float, kilobytes: float, megabytes: float = 0.0, arena: float = 0.0) -> float:
        """The worst of them as a multiple of its limit; it fits up to 1."""
        values = milliseconds, kilobytes, megabytes, arena
        limits = self.milliseconds, self.kilobytes, self.megabytes, self.arena
        return max((value / limit for value, limit in zip(values, limits, strict=True) if limit), default=0.0)

    def of(self, option: Option) -> float:
        """The excess of a file."""
        return self.excess(option.milliseconds, option.kilobytes, option.megabytes, option.arena)


def candidates(
    image_sizes: NDArray[np.int32], strides_of: Callable[[str, tuple[int, int]], tuple[int, ...]]
) -> list[Candidate]:
    """Networks to try, small inputs first.

    Args:
        image_sizes: widths and heights of the training images, [N, 2], whose median shape the inputs have.
        strides_of: strides of the maps of an architecture whose input has this height and width.
    """
    widths, heights = image_sizes.T
    ratio = float(np.median(widths / heights)) ** 0.5

    def side(pixels: float) -> int:
        return max(MULTIPLE, MULTIPLE * round(pixels / MULTIPLE))

    sizes = [(side(one / ratio), side(one * ratio)) for one in SIDES]
    strides = {(size, name): strides_of(name, size) for size, name in product(sizes, ARCHITECTURES)}
    return [
        Candidate(backbone, head, size, strides[size, head])
        for size, backbone, head in product(sizes, TRIED, ARCHITECTURES)
    ]


def cost_table(
    tried: Sequence[Candidate],
    recipe: Recipe,
    classes: tuple[str, ...],
    targets: Sequence[str],
    budget: Budget,
    path: Path,
    watch: Callable[[int], None],
) -> list[Option]:
    """What candidates cost as files on this machine; what is in the table already is not measured again.

    A network that is too slow at a small size is not measured at larger ones.

    Args:
        tried: the candidates, small inputs first.
        recipe: for all else of their detectors.
        classes: of the data.
        targets: formats.
        budget: the limits; memory is measured where it has one.
        path: of the table, a JSON file.
        watch: told how many candidates are done.
    """
    # What decides a cost: anything else makes another table.
    key = costs_key(recipe.detector, len(classes))
    known: list[Option] = []
    try:
        table = read_json(path)
        if table["key"] == key:
            known = [Option(**{**row, "candidate": _candidate(row["candidate"])}) for row in table["options"]]
    except (InputError, ValueError, TypeError, KeyError, IndexError):
        pass  # missing or damaged: measured again
    for number, candidate in enumerate(tried):
        own = [one for one in known if one.candidate == candidate and one.target in targets]
        complete = {one.target for one in own} == set(targets)
        if (budget.megabytes and not all(one.megabytes for one in own)) or (
            budget.arena and not all(one.arena for one in own)
        ):
            complete = False
        if not complete and not _too_slow(candidate, known, budget):
            known = [one for one in known if one.candidate != candidate]
            known += _costs(candidate, recipe, classes, targets, budget)
            write_text(path, json.dumps({"key": key, "options": [asdict(one) for one in known]}, indent=1))
        watch(number + 1)
    wanted = set(tried)
    return [one for one in known if one.candidate in wanted and one.target in targets]


def _too_slow(candidate: Candidate, known: Sequence[Option], budget: Budget) -> bool:
    smaller = [
        one.milliseconds
        for one in known
        if (one.candidate.backbone, one.candidate.architecture) == (candidate.backbone, candidate.architecture)
        and math.prod(one.candidate.size) < math.prod(candidate.size)
    ]
    return budget.milliseconds is not None and bool(smaller) and min(smaller) > budget.milliseconds


def _costs(
    candidate: Candidate, recipe: Recipe, classes: tuple[str, ...], targets: Sequence[str], budget: Budget
) -> list[Option]:
    own = candidate.of(recipe)
    # Time hardly depends on weights and anchors.
    settings = ARCHITECTURES[candidate.architecture].fitted(own.detector, BOXES, candidate.size)
    detector = build(spec_for(settings, candidate.backbone, classes, candidate.size)).eval()
    integer = prepare_qat(detector)
    generator = torch.Generator().manual_seed(0)
    calibrate(integer, [torch.randint(0, 256, (2, 3, *candidate.size), generator=generator, dtype=torch.uint8)])
    with tempfile.TemporaryDirectory() as folder:
        files: dict[Path, tuple[str, str]] = {}
        for precision, network in (("fp32", detector), ("int8", integer)):
            exported = Exported(network)
            for target in targets:
                kind = FORMATS[target]
                if precision == "fp32" or kind.integers:
                    path = Path(folder) / f"{precision}{kind.suffixes[0]}"
                    write_described(exported, kind, describe(network, {}), path)
                    files[path] = target, precision
        memory = budget.megabytes is not None
        costs: dict[Path, Cost] = {cost.path: cost for cost in measure(list(files), [1], ROUNDS, memory)}
        arenas = {path: arena_bytes(path) / 1000 if budget.arena else 0.0 for path in files}
    macs = mac_count(detector)
    return [
        Option(candidate, target, precision, cost.p50, cost.kilobytes, cost.peak, macs, arenas[path])
        for path, (target, precision) in files.items()
        for cost in [costs[path]]
    ]


def _candidate(plain: dict[str, Any]) -> Candidate:
    size = plain["size"][0], plain["size"][1]
    return Candidate(plain["backbone"], plain["architecture"], size, tuple(plain["strides"]))
