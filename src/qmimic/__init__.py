"""qmimic: very tiny object detectors by quantization mimic.

    import qmimic
    dataset = qmimic.load_dataset("photos/")
    run = qmimic.train(qmimic.load_recipe("recipes/bccd.yaml", ["data.root=photos/"]))
    detector, notes = qmimic.load_detector(run.best)
    scores = qmimic.evaluate(detector, dataset, "val")
    found = qmimic.predict(detector, "photo.jpg")

Names are imported when they are first used, so that using one part does not load the others.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qmimic.api import build_detector as build_detector
    from qmimic.api import evaluate as evaluate
    from qmimic.api import load_recipe as load_recipe
    from qmimic.api import train as train
    from qmimic.config import Recipe as Recipe
    from qmimic.data.formats import load_dataset as load_dataset
    from qmimic.data.sample import Dataset as Dataset
    from qmimic.data.sample import Sample as Sample
    from qmimic.detections import Detections as Detections
    from qmimic.detectors.files import load_detector as load_detector
    from qmimic.detectors.files import save_detector as save_detector
    from qmimic.detectors.prediction import predict as predict
    from qmimic.errors import InputError as InputError

_HOMES = {
    "build_detector": "qmimic.api",
    "evaluate": "qmimic.api",
    "train": "qmimic.api",
    "Recipe": "qmimic.config",
    "load_recipe": "qmimic.api",
    "load_dataset": "qmimic.data.formats",
    "Dataset": "qmimic.data.sample",
    "Sample": "qmimic.data.sample",
    "Detections": "qmimic.detections",
    "InputError": "qmimic.errors",
    "load_detector": "qmimic.detectors.files",
    "save_detector": "qmimic.detectors.files",
    "predict": "qmimic.detectors.prediction",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'qmimic' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
