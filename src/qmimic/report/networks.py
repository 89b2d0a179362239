"""The networks of a run on its val images: detections, what became of them, and their scores with intervals."""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from qmimic.bench.measure import files_of
from qmimic.data.chosen import dataset_fingerprint
from qmimic.data.loader import Loader
from qmimic.data.sample import Dataset, Sample
from qmimic.data.splits import VAL
from qmimic.detections import Detections
from qmimic.detectors.detector import Detector
from qmimic.detectors.evaluation import detect_all
from qmimic.detectors.files import load_detector
from qmimic.errors import InputError
from qmimic.files import LARGE, read_bytes
from qmimic.report.kept import FOLDER, kept_detections
from qmimic.run.folder import DEPLOY, FinishedRun, StageResult
from qmimic.run.keys import detections_key
from qmimic.runtime.detector import Detector as ShippedDetector
from qmimic.runtime.formats import bytes_of, format_of
from qmimic.runtime.metadata import Metadata
from qmimic.scores.bootstrap import Interval, draws, interval, mean_ap
from qmimic.scores.curves import best_threshold
from qmimic.scores.error_types import Errors, costs, find_errors
from qmimic.scores.matches import match
from qmimic.scores.voc import VocScore, voc_ap
from qmimic.ship.accuracy import detections_of_file

BATCH = 32
TWIN, LABELLED = "scratch", "labelled"
SAME = 1e-3  # mAP; differences by rounding on another machine are smaller


@dataclass(frozen=True)
class DeployedFile:
    """A file in the run's `deploy` folder, made from one of its networks.

    Attributes:
        path: of the file that a runtime opens.
        metadata: its own properties.
        bytes: size of all its files.
        sum: checksum of the file that a runtime opens, so that no two files are confused.
    """

    path: Path
    metadata: Metadata
    bytes: int
    sum: str

    @property
    def title(self) -> str:
        """Its name in tables."""
        return f"{self.metadata.precision}, {self.path.name}"


@dataclass(frozen=True)
class Judged:
    """A network on val.

    Attributes:
        scores: VOC scores by class.
        errors: what became of all its detections above the detector's own threshold.
        costs: mAP, 0..1, that each kind of error costs.
        threshold: the score threshold with the best F1.
        shown: what became of the detections of at least that score.
        gain: mAP@0.5 above the same network trained from scratch, 0..1; None for that network itself, or without one.
        found: its detections by image id.
    """

    scores: VocScore
    errors: Errors
    costs: Mapping[str, float]
    threshold: float
    shown: Errors
    gain: Interval | None
    found: Mapping[str, Detections]


@dataclass(frozen=True)
class Scored:
    """All networks of a run on its val images, by title.

    Attributes:
        samples: these images' labels.
        classes: names; the index is the label.
        networks: by title.
        brought: mAP@0.5 of the student above the same without unlabelled pictures, 0..1; None without that one.
    """

    samples: Sequence[Sample]
    classes: tuple[str, ...]
    networks: Mapping[str, Judged]
    brought: Interval | None = None


def detector_of(run: FinishedRun, result: StageResult) -> Detector:
    """A network of a run.

    Raises:
        InputError: its file is missing, damaged, or another run's.
    """
    path = run.folder / f"{result.name}.safetensors"
    detector, notes = load_detector(path)
    if notes.get("key") != result.key:
        raise InputError(f"{path} is not the network that {run.folder / 'results.json'} lists; run the recipe again.")
    return detector


def deployed_files(run: FinishedRun) -> tuple[tuple[DeployedFile, ...], tuple[str, ...]]:
    """Files in the run's `deploy` folder, and a sentence for each that is left out."""
    folder, keys = run.folder / DEPLOY, {result.key for result in run.results}
    if not folder.is_dir():
        return (), ()
    found, said = [], []
    try:
        paths = files_of([folder])
    except InputError:
        return (), ()
    for path in paths:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # reported below
                metadata = ShippedDetector(path).metadata
        except InputError as error:
            said.append(str(error))
            continue
        if metadata.training.get("key") not in keys:
            said.append(
                f"{path.name} was made from another network than this run's, an older one perhaps, and is left out."
            )
            continue
        if metadata.changed:
            said.append(f"{path.name} has changed since it was proved and is left out.")
            continue
        parts = format_of(path).files(path)
        digest = hashlib.sha256(b"".join(read_bytes(part, LARGE) for part in parts)).hexdigest()
        found.append(DeployedFile(path, metadata, bytes_of(path), digest[:16]))
    return tuple(found), tuple(said)


def judge(
    run: FinishedRun, dataset: Dataset, deployed: Sequence[DeployedFile], say: Callable[[str], None]
) -> tuple[Scored, tuple[str, ...]]:
    """Every network of a run, and every int8 file, on val.

    Args:
        run: finished.
        dataset: the recipe's.
        deployed: files of the run; float ones detect what their networks do and are skipped.
        say: told, in a sentence, what slow work comes next.

    Returns:
        The results, and sentences on what disagrees with the run's own table.

    Raises:
        InputError: a network's file or an image cannot be read.
    """
    if detector_of(run, run.results[0]).spec.classes != dataset.classes:
        raise InputError(f"The classes of {dataset.name} are no longer the classes of the run.")
    found = _found(run, dataset, deployed, say)
    count = len(dataset.classes)
    labels = list(dataset.splits[VAL])
    matched = {title: match(labels, own, count) for title, own in found.items()}
    weights = draws(len(labels))
    resampled = {title: mean_ap(own, weights) for title, own in matched.items()}
    scores = {title: voc_ap(labels, own, dataset.classes) for title, own in found.items()}

    def above(title: str, other: str) -> Interval:
        return interval(scores[title].map_area - scores[other].map_area, resampled[title] - resampled[other])

    twin = TWIN if TWIN in found else None
    networks = {}
    for title, own in found.items():
        errors, threshold = find_errors(matched[title]), best_threshold(matched[title])
        strong = {name: one.keep(one.scores >= threshold) for name, one in own.items()}
        gain = above(title, twin) if twin and title != twin else None
        shown = find_errors(match(labels, strong, count))
        networks[title] = Judged(scores[title], errors, costs(errors), threshold, shown, gain, own)
    said = tuple(
        f"{result.title} has {100 * networks[result.title].scores.map_area:.1f} mAP@0.5 on the data as they are now, "
        f"but {100 * result.map50:.1f} in the run's table: the data, the device or a version has changed since."
        for result in run.results
        if abs(networks[result.title].scores.map_area - result.map50) > SAME
    )
    brought = above(run.results[-1].title, LABELLED) if LABELLED in found else None
    return Scored(labels, dataset.classes, networks, brought), said


def _found(
    run: FinishedRun, dataset: Dataset, deployed: Sequence[DeployedFile], say: Callable[[str], None]
) -> dict[str, Mapping[str, Detections]]:
    """Detections on val by network title and image id, computed or kept from an earlier report."""
    samples = dataset.splits[VAL]
    data, loader = dataset_fingerprint(dataset), Loader(dataset, VAL, run.recipe.data.size, BATCH)

    def keep(name: str, key: str, compute: Callable[[], dict[str, Detections]]) -> Mapping[str, Detections]:
        path = run.folder / FOLDER / f"{name}-{detections_key(key, data)}.safetensors"

        def aloud() -> dict[str, Detections]:
            say(f"The report runs {name} on val.")
            return compute()

        return kept_detections(path, samples, len(dataset.classes), aloud)

    found: dict[str, Mapping[str, Detections]] = {}
    for result in run.results:
        detector = detector_of(run, result)
        own = loader if detector.spec.size == loader.size else Loader(dataset, VAL, detector.spec.size, BATCH)
        found[result.title] = keep(result.name, result.key, partial(detect_all, detector, own))
    for file in deployed:
        fits = (file.metadata.classes, file.metadata.size) == (dataset.classes, run.recipe.data.size)
        if file.metadata.precision != "fp32" and fits:
            shipped = ShippedDetector(file.path)
            name = file.path.name.replace(".", "-")
            found[file.title] = keep(name, file.sum, partial(detections_of_file, shipped, loader))
    return found
