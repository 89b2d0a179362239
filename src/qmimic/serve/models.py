"""What is served: the detectors of run folders and single files, each as a function from pixels to detections."""

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from qmimic.arms import ARMS, STUDENT, order
from qmimic.data.letterbox import letterbox_file
from qmimic.detections import Detections
from qmimic.errors import InputError
from qmimic.runtime.formats import bytes_of, can_be_opened, format_of, suffixes
from qmimic.zoo import DEPLOYED, located

TRAINED = ".safetensors"
TORCH = "PyTorch"
SIDE_BY_SIDE = 3

Look = Callable[[NDArray[np.uint8]], Detections]  # of a resized image [H, W, 3]; boxes in its pixels


@dataclass(frozen=True)
class Served:
    """A detector that is served.

    Attributes:
        name: unique among the models served; not a path.
        run: name of the run or folder that it belongs to.
        engine: what computes it.
        precision: fp32 or int8.
        backbone: family and width divisor.
        classes: class names; the index is the label.
        size: height and width that pictures are fitted into, pixels.
        parameters: number of weights, batch norm folded.
        bytes: size of its file, including a separate weights file.
        map50: mAP@0.5 on the run's val split, 0..1; None if the file does not say.
        min_score: the detector's own threshold; it gives no detections below it.
        look: computes detections; any thread may call it.
    """

    name: str
    run: str
    engine: str
    precision: str
    backbone: str
    classes: tuple[str, ...]
    size: tuple[int, int]
    parameters: int
    bytes: int
    map50: float | None
    min_score: float
    look: Look


@dataclass(frozen=True)
class Shelf:
    """All that is served.

    Attributes:
        models: by name, in the order in which they are listed.
        runs: folders by name, for their reports.
        left_out: a sentence for each file of a folder that could not be loaded.
    """

    models: dict[str, Served]
    runs: dict[str, Path]
    left_out: tuple[str, ...]

    @property
    def side_by_side(self) -> list[str]:
        """Names of the models to show first: teacher, best student and an int8 file, where they exist."""
        students = [one for one in self.models.values() if one.name.rpartition("/")[2] in (*ARMS, STUDENT)]
        best = max(reversed(students), key=lambda one: one.map50 or 0.0, default=None)
        found = [
            next((name for name in self.models if name.endswith("teacher")), None),
            best.name if best else None,
            next((name for name, one in self.models.items() if one.precision == "int8"), None),
        ]
        names = dict.fromkeys(name for name in [*found, *self.models] if name is not None)
        order = list(self.models)
        return sorted(list(names)[:SIDE_BY_SIDE], key=order.index)


def collect(given: Sequence[Path]) -> Shelf:
    """Load the models that the command line names.

    Args:
        given: run folders, folders of deployed files, single files, or `zoo:NAME`.

    Raises:
        InputError: a path is missing or not a detector, or a folder holds none that can be loaded here.
        ModuleNotFoundError: a named `.safetensors` file needs torch, which is not installed.
    """
    models: dict[str, Served] = {}
    runs: dict[str, Path] = {}
    left_out: list[str] = []
    for path in (located(one, DEPLOYED) for one in given):
        run = _unlike(path.resolve().name if path.is_dir() else path.resolve().parent.name, runs)
        found: list[Served] = []
        if path.is_dir():
            runs[run] = path
            files = detector_files(path)
            if not files:
                raise InputError(f"{path} holds no detector ({' '.join(_endings())}); name a finished run, or a file.")
            for file in files:
                try:
                    found.append(_load(file, run))
                except InputError as error:
                    left_out.append(f"{file.name} is left out: {error}")
                except ModuleNotFoundError as error:
                    left_out.append(f"{file.name} is left out: {error.name} is not installed.")
            if not found:
                raise InputError(left_out[-1])
        else:
            found.append(_load(path, run))
        for one in found:
            name = one.name if len(given) == 1 else f"{run}/{one.name}"
            name = _unlike(name, models)
            models[name] = replace(one, name=name)
    return Shelf(models, runs, tuple(left_out))


def detector_files(folder: Path) -> list[Path]:
    """A folder's detectors and those in its `deploy/`: stages in the order of the table, then the files that ship.

    Of a finished run's networks, those that its table names: others are of an earlier run with other arms.
    """
    trained = {path.stem: path for path in sorted(folder.glob(f"*{TRAINED}"))}
    earlier: set[str] = set()
    # It may be no run's folder, or an unfinished run's; and where only files are served, what reads runs is not there.
    with contextlib.suppress(InputError, ModuleNotFoundError):
        from qmimic.run.folder import NETWORKS, read_run

        earlier = {name.removesuffix(TRAINED) for name in NETWORKS} - {one.name for one in read_run(folder).results}
        trained = {name: path for name, path in trained.items() if name not in earlier}
    stages = [trained.pop(stage) for stage in order() if stage in trained]
    files = [path for own in (folder, folder / "deploy") for path in own.glob("*") if can_be_opened(path)]
    files = [path for path in files if path.stem.removesuffix("-int8") not in earlier]
    shipped = sorted(files, key=lambda path: (path.stem, path.suffix))  # a float file before its int8 version
    return [*stages, *trained.values(), *shipped]


@dataclass(frozen=True)
class Looked:
    """What a model finds in a picture.

    Attributes:
        size: (width, height) of the picture as displayed, pixels.
        milliseconds: from the resized pixels to the boxes.
        found: boxes in pixels of the picture.
    """

    size: tuple[int, int]
    milliseconds: float
    found: Detections


def look_at(model: Served, picture: BinaryIO) -> Looked:
    """Detections in an image file, down to the model's own threshold.

    Raises:
        InputError: as `read_image`.
    """
    pixels, placed = letterbox_file(picture, model.size)
    begin = time.perf_counter()
    found = model.look(pixels)
    milliseconds = 1000 * (time.perf_counter() - begin)
    return Looked((placed.width, placed.height), milliseconds, placed.restored(found))


def _unlike(name: str, taken: dict[str, Served] | dict[str, Path]) -> str:
    """The name, with a number appended if it is taken."""
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name}-{number}"
    return free


def _endings() -> list[str]:
    """Suffixes of detector files."""
    return [TRAINED, *suffixes()]


def _load(path: Path, run: str) -> Served:
    if path.suffix != TRAINED and not can_be_opened(path):
        raise InputError(
            f"{path} is neither a run folder nor a detector; name a folder that `qmimic train` wrote, or a file whose "
            f"name ends in {' or '.join(_endings())}."
        )
    loaded = _trained(path, run) if path.suffix == TRAINED else _deployed(path, run)
    loaded.look(np.zeros((*loaded.size, 3), np.uint8))  # the first call is slow; nobody should have to wait for it
    return loaded


def _trained(path: Path, run: str) -> Served:
    import torch

    from qmimic.detectors.build import parameter_count
    from qmimic.detectors.evaluation import unpad
    from qmimic.detectors.files import load_detector

    torch.set_num_threads(1)  # one thread per picture: tiny networks gain nothing from more
    detector, notes = load_detector(path)

    def look(pixels: NDArray[np.uint8]) -> Detections:
        return unpad(detector.detect(torch.from_numpy(pixels).permute(2, 0, 1)[None]), 0)

    return Served(
        path.stem,
        run,
        TORCH,
        "fp32",
        detector.spec.backbone,
        detector.spec.classes,
        detector.spec.size,
        parameter_count(detector),
        path.stat().st_size,
        _share(notes.get("map50")),
        detector.spec.score_threshold,
        look,
    )


def _deployed(path: Path, run: str) -> Served:
    from qmimic.runtime.detector import Detector

    detector = Detector(path)
    own = detector.metadata

    def look(pixels: NDArray[np.uint8]) -> Detections:
        boxes, scores, labels = (values[0] for values in detector.raw(pixels[None]))
        return Detections(boxes, scores, labels).keep(scores >= 0)

    score = None if own.changed else own.parity.get("map50", own.training.get("map50"))
    return Served(
        path.name,
        run,
        format_of(path).engine,
        own.precision,
        own.backbone,
        own.classes,
        own.size,
        own.parameters,
        bytes_of(path),
        _share(score),
        own.score_threshold,
        look,
    )


def _share(value: object) -> float | None:
    """A file's note, which may hold anything, as a number from 0 to 1, or None."""
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else None
