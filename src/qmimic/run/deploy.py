"""From a trained detector's file to the files that ship: proved, timed on this machine, and one of them recommended."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from qmimic.bench.timing import alternate, is_busy
from qmimic.config import Recipe, load_recipe
from qmimic.config.reading import named_keys, refuse_keys
from qmimic.data.formats import load_dataset
from qmimic.detectors.build import with_settings
from qmimic.detectors.detector import Detector
from qmimic.detectors.files import load_detector
from qmimic.errors import InputError
from qmimic.files import check_writable, refuse_links
from qmimic.run.folder import DEPLOY, OURS, RECIPE, STAGES
from qmimic.run.int8 import Int8RefusedError, IntegerDetector, to_integers
from qmimic.run.lock import exclusive_lock
from qmimic.run.prepare import Prepared, prepare
from qmimic.runtime.detector import Detector as ShippedDetector
from qmimic.runtime.formats import FORMATS, bytes_of
from qmimic.ship.accuracy import Accuracy, map50_of_file
from qmimic.ship.onnx_file import Exported
from qmimic.ship.opset import OPSET
from qmimic.ship.parity import pictures, require
from qmimic.ship.write import Proof, describe, require_own_file, ship
from qmimic.training.loop import Watcher

# Settings of a trained detector that no weight depends on.
APPLIED = tuple(
    f"detector.{name}" for name in ("score_threshold", "nms_threshold", "max_detections", "pre_nms", "post_nms")
)
READ_IN_FLOAT = (*APPLIED, "data.root")
READ = (
    *READ_IN_FLOAT,
    *("seed", "augment", "int8", "data.train", "data.val", "data.fold", "data.drop_bad_boxes", "data.cache_mib"),
    *("run.threads", "run.trackers"),
)
WHY = {
    False: "for the detector is trained already (int8 and augment are used with --int8)",
    True: "for the detector is trained already",
}
FASTER = 1.05  # times, to be called faster


@dataclass(frozen=True)
class Deployed:
    """A file that ships.

    Attributes:
        path: that a runtime opens.
        target: its format, of `FORMATS`.
        precision: fp32 or int8.
        bytes: of all its files.
        milliseconds: median of a picture, one thread, in an alternating run with the others; of a page, by
            an engine that stands in for a browser's.
        proof: of fp32 the parity, of int8 the accuracy.
    """

    path: Path
    target: str
    precision: str
    bytes: int
    milliseconds: float
    proof: Mapping[str, Any]


def deploy(
    path: Path,
    out: Path | None,
    data: str | None,
    overrides: Sequence[str],
    batch: int | None,
    suppression: bool,
    targets: Sequence[str],
    int8: bool,
    watcher: Watcher,
    opset: int = OPSET,
) -> list[Deployed]:
    """Write a detector in several formats, after proof.

    Args:
        path: the detector's file.
        out: folder; None: `deploy` beside the detector.
        data: dataset that the proof looks at; None: that of the `recipe.yaml` beside the detector.
        overrides: changes to that recipe, such as `int8.steps=1000`. Those of thresholds and counts (`APPLIED`) change
            the detector, trained and deployed, before they are compared.
        batch: images that the graph takes at once; None: any number.
        suppression: whether detections are suppressed in the graph, where the format can.
        targets: names of formats.
        int8: also on integers, where the format can and the loss is allowed; else the watcher is told why not.
        watcher: told of progress.
        opset: of ONNX files.

    Raises:
        InputError: the detector or the data cannot be read, a float file differs from the trained model, or the disk
            is full. What failed was not written.
    """
    refuse_keys(overrides, READ if int8 else READ_IN_FLOAT, "export", WHY[int8])
    refuse_links(path.parent, OURS)
    detector, notes = load_detector(path)
    exported = Exported(detector, batch, suppression, opset)
    for target in targets:  # before the first file is written
        FORMATS[target].require_detector(exported)
    recipe = _recipe(path, data, overrides, detector)
    applied = [key.rpartition(".")[2] for key in named_keys(overrides) if key in APPLIED]
    if applied:
        detector = with_settings(detector, {name: getattr(recipe.detector, name) for name in applied})
    folder = out or path.parent / DEPLOY
    check_writable(folder / path.stem)
    _require_own_files(folder / path.stem, targets, int8)
    dataset = load_dataset(recipe.data.root)
    if not any(len(samples) for samples in dataset.splits.values()):
        raise InputError(f"{dataset.name} has no images to compare on; name another dataset with --data.")
    images = pictures(dataset, detector.spec.size)

    def parity(shipped: ShippedDetector, name: str) -> Mapping[str, Any]:
        return asdict(require(detector, shipped, images, name))

    exported = exported.changed(detector=detector)
    written = _write(exported, notes, folder / path.stem, targets, parity)
    able = [target for target in targets if FORMATS[target].integers]
    if int8 and len(able) < len(targets):
        others = (FORMATS[target].engine for target in targets if target not in able)
        watcher.say(f"There is no int8 here for {', '.join(others)}.")
    if int8 and able:
        written |= _on_integers(exported, _prepared(recipe, detector), notes, path, folder, able, watcher)
    return _timed(written)


def _require_own_files(path: Path, targets: Sequence[str], int8: bool) -> None:
    """`require_own_file` for all that would be written; `path` is without suffix."""
    for kind in map(FORMATS.__getitem__, targets):
        require_own_file(kind, path)
        if int8 and kind.integers:
            require_own_file(kind, path.with_name(f"{path.name}-int8"))


def advice(files: Sequence[Deployed]) -> str:
    """Which of the files to take on a machine like this one, and why."""
    timed = [one for one in files if not FORMATS[one.target].elsewhere]
    said = []
    if timed:
        least = min(one.milliseconds for one in timed)
        best = min((one for one in timed if one.milliseconds <= FASTER * least), key=lambda one: one.bytes)
        said.append(f"Take {best.path.name} on a machine like this one.")
    pages = sorted((one for one in files if one not in timed), key=lambda one: one.milliseconds)
    said += [f"Open {one.path.name} in a browser; {one.proof['engine']} proved it." for one in pages[:1]]
    for target in dict.fromkeys(one.target for one in timed):
        times = {one.precision: one.milliseconds for one in timed if one.target == target}
        if "int8" in times and times["fp32"] < FASTER * times["int8"]:
            said.append(
                f"With {target}, int8 is not faster here ({times['int8']:.2f} against {times['fp32']:.2f} ms): "
                "it saves space only."
            )
    if timed and is_busy():
        said.append("Other programs keep this machine busy, so its times say little: `qmimic bench` takes them anew.")
    return " ".join(said)


def _recipe(path: Path, data: str | None, overrides: Sequence[str], detector: Detector) -> Recipe:
    """The recipe of a detector's run, or one for the data that were named."""
    own = path.parent / RECIPE
    if data is None and not own.is_file():
        raise InputError(
            f"No recipe.yaml beside {path} says what it was trained on; name the dataset with --data FOLDER."
        )
    recipe = load_recipe(own if own.is_file() else None, list(overrides))
    # Grids are found on labelled pictures alone: others may be gone by now.
    data_of = {"data.root": recipe.data.root if data is None else data, "data.unlabelled": None}
    named = {**data_of, "data.size": detector.spec.size}
    return recipe.changed({**named, "run.dir": str(path.parent), "run.device": "cpu", "data.allow_capped": True})


def _prepared(recipe: Recipe, detector: Detector) -> Prepared:
    prepared = prepare(recipe)
    if prepared.dataset.classes != detector.spec.classes:
        raise InputError(
            f"{prepared.dataset.name} has the classes {', '.join(prepared.dataset.classes)}, the detector "
            f"{', '.join(detector.spec.classes)}; name the dataset that it was trained on with --data."
        )
    return prepared


def _accuracy(prepared: Prepared, found: IntegerDetector, shipped: ShippedDetector, name: str) -> Mapping[str, Any]:
    map50 = map50_of_file(shipped, prepared.val)
    accuracy = Accuracy(len(prepared.val.samples), map50, found.map50_float, found.trained, found.in_float)
    allowed = prepared.recipe.int8.max_loss
    if accuracy.lost > allowed:
        raise Int8RefusedError(
            f"{name} was not written: it has {100 * map50:.1f} mAP@0.5 on val, {100 * accuracy.lost:.1f} less than the "
            f"trained model; int8.max_loss allows {100 * allowed:.1f}. Its engine rounds in its own way."
        )
    return asdict(accuracy)


def _write(
    exported: Exported, notes: dict[str, object], path: Path, targets: Sequence[str], proof: Proof
) -> dict[Path, str]:
    """Files and their formats."""
    metadata = describe(exported.detector, notes)
    return {ship(exported, metadata, FORMATS[target], path, proof): target for target in targets}


def _on_integers(
    exported: Exported,
    prepared: Prepared,
    notes: dict[str, object],
    path: Path,
    folder: Path,
    targets: Sequence[str],
    watcher: Watcher,
) -> dict[Path, str]:
    """The files on integers and their formats; the watcher is told why those that lose too much were not written."""
    try:
        with exclusive_lock(path.parent):
            found = to_integers(prepared, exported.detector, path.parent / STAGES, watcher)
    except Int8RefusedError as error:
        watcher.say(str(error))
        return {}
    own, proof = exported.changed(detector=found.detector), partial(_accuracy, prepared, found)
    written: dict[Path, str] = {}
    for target in targets:  # each by itself: one engine's roundings may cost too much and another's not
        try:
            written |= _write(own, notes, folder / f"{path.stem}-int8", [target], proof)
        except Int8RefusedError as error:
            watcher.say(str(error))
    return written


def _timed(written: Mapping[Path, str]) -> list[Deployed]:
    loaded = {path: ShippedDetector(path) for path in written}

    def run(shipped: ShippedDetector) -> Callable[[], object]:
        height, width = shipped.metadata.size
        return partial(shipped.raw, np.zeros((shipped.batch or 1, height, width, 3), np.uint8))

    seconds = alternate({str(path): run(shipped) for path, shipped in loaded.items()})
    return [
        Deployed(
            path,
            target,
            loaded[path].metadata.precision,
            bytes_of(path),
            1000 * float(np.median(seconds[str(path)])) / (loaded[path].batch or 1),
            loaded[path].metadata.parity,
        )
        for path, target in written.items()
    ]
