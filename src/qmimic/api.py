"""The Python interface: each task in a call or two, on the same functions as the command line."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from accelerate import PartialState
from pydantic import ValidationError

from qmimic.config import DetectorConfig, Recipe, explain
from qmimic.data.loader import Loader
from qmimic.data.sample import Dataset
from qmimic.data.splits import samples_of, with_classes
from qmimic.detections import Detections
from qmimic.detectors.architectures import fitted_to, spec_for
from qmimic.detectors.build import at_size, build
from qmimic.detectors.detector import Detector
from qmimic.detectors.evaluation import detect_all, merge
from qmimic.detectors.files import load_detector
from qmimic.detectors.fitted import COARSE
from qmimic.errors import InputError
from qmimic.run.effects import recipe_to_train
from qmimic.run.train import RunResult
from qmimic.run.train import train as run_recipe
from qmimic.runtime.detector import Detector as ShippedDetector
from qmimic.runtime.formats import is_deployed
from qmimic.scores.summary import Scores, score
from qmimic.ship.accuracy import detections_of_file
from qmimic.training.loop import Watcher
from qmimic.training.progress import Silent

BATCH = 32
DEFAULT_ANCHORS = tuple((side * ratio, side / ratio) for side in (24.0, 48.0, 96.0) for ratio in (0.71, 1.0, 1.41))


def build_detector(
    name: str,
    classes: tuple[str, ...],
    size: tuple[int, int] = (256, 256),
    anchors: tuple[tuple[float, float], ...] = DEFAULT_ANCHORS,
    config: DetectorConfig | None = None,
    seed: int = 0,
) -> Detector:
    """A detector with fresh weights, a Faster R-CNN unless `config.architecture` says otherwise.

    Args:
        name: backbone and width divisor, such as `resnet18/16`.
        classes: class names; the index is the label.
        size: height and width that images are fitted into, pixels, multiples of 16.
        anchors: widths and heights in pixels; fit them to your boxes with `qmimic.detectors.fitted.fit_anchors`.
            A one-stage detector has levels for boxes of these sizes, unless `config.levels` names others.
        config: all other settings; the output stride is 16 unless it says 8.
        seed: of the weights.

    Raises:
        InputError: the backbone's name is unknown, or the architecture refuses a setting.
    """
    settings = config or DetectorConfig()
    settings = settings.model_copy(update={"anchors": anchors, "output_stride": settings.output_stride or COARSE})
    fitted = fitted_to(settings, None, np.array(anchors, np.float32), size)
    try:
        return build(spec_for(fitted, name, classes, size), seed)
    except ValidationError as error:
        raise InputError(explain(error)) from error


load_recipe = recipe_to_train


def train(recipe: Recipe, watcher: Watcher | None = None) -> RunResult:
    """Run a recipe: teacher, quantized teacher, baselines, student. Finished stages are not repeated.

    Args:
        recipe: from `load_recipe`, or `Recipe(...)`.
        watcher: notified of progress; None: silent.

    Raises:
        InputError: bad data, a weak teacher, a loss that is not finite, or a folder that cannot be written.
    """
    watcher = watcher or Silent()
    result = run_recipe(recipe, watcher)
    return replace(result, report=write_report_of(result, recipe, watcher))


def write_report_of(result: RunResult, recipe: Recipe, watcher: Watcher) -> Path | None:
    """Write the report of a run that has just ended; None if the recipe wants none or it failed (which is said)."""
    if not recipe.run.report or not PartialState().is_main_process:
        return None
    from qmimic.report.page import report_of  # here: matplotlib is slow to import

    return report_of(result.folder, True, watcher.say)


def open_detector(path: Path | str) -> Detector | ShippedDetector:
    """Open a detector file, trained or deployed. Raises: as `load_detector` or `qmimic.runtime.Detector`."""
    path = Path(path)
    return ShippedDetector(path) if is_deployed(path) else load_detector(path)[0]


def classes_of(detector: Detector | ShippedDetector) -> tuple[str, ...]:
    """Class names of a detector, trained or deployed; the index is the label."""
    return detector.classes if isinstance(detector, ShippedDetector) else detector.spec.classes


def evaluate(detector: Detector | ShippedDetector | Path | str, dataset: Dataset, split: str = "val") -> Scores:
    """Scores of a detector (or of its file) on a split. Raises: as `detect`."""
    samples_of(dataset, split)  # report a wrong split first
    opened = open_detector(detector) if isinstance(detector, Path | str) else detector
    return score(with_classes(dataset, classes_of(opened)), split, detect(opened, dataset, split))


def detect(
    detector: Detector | ShippedDetector | Path | str,
    dataset: Dataset,
    split: str = "val",
    sizes: Sequence[tuple[int, int]] = (),
    flip: bool = False,
) -> dict[str, Detections]:
    """Detections in every image of a split, by image id.

    Args:
        detector: trained or deployed, or its file.
        dataset: with the detector's classes, or some of them; detections are labelled by the detector's indices.
        split: name of the split, or several joined by +.
        sizes: heights and widths at which the images are seen, one after another; none: the detector's own.
        flip: run on the mirrored images too.

    Raises:
        InputError: the split is missing, the dataset's classes are not the detector's, or a size is not possible.
    """
    samples_of(dataset, split)  # before any network is built
    opened = open_detector(detector) if isinstance(detector, Path | str) else detector
    dataset = with_classes(dataset, classes_of(opened))
    if isinstance(opened, ShippedDetector):
        if sizes or flip:
            raise InputError("A deployed detector looks at one size, as it is; name a .safetensors file.")
        return detections_of_file(opened, Loader(dataset, split, opened.metadata.size, BATCH))
    views = []
    for own in [at_size(opened, size) for size in sizes] or [opened.eval()]:
        loader = Loader(dataset, split, own.spec.size, BATCH)
        views += [detect_all(own, loader, mirrored) for mirrored in ((False, True) if flip else (False,))]
    return views[0] if len(views) == 1 else merge(views, opened.spec)
