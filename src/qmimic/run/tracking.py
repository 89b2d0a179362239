"""The trackers of a stage; the main process tells them its numbers."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qmimic.run.folder import StageResult
from qmimic.run.prepare import Prepared
from qmimic.training.loop import Watcher
from qmimic.training.trackers import Subject, Trackers

SCORES = ("map50", "map07", "coco_map", "matching", "matching_nonzero", "map50_before", "parameters", "macs", "bytes")


def trackers_of(prepared: Prepared, name: str, key: str, folder: Path, watcher: Watcher) -> Trackers:
    """The trackers of a stage, not yet open; none in processes that do not write."""
    recipe = prepared.recipe
    names = recipe.run.trackers if prepared.accelerator.is_main_process else ()
    settings = dict(_dotted(recipe.model_dump(mode="json")))
    return Trackers(names, Subject(recipe.name, name, key, folder, recipe.folder, settings), watcher.say)


def scores_of(result: StageResult) -> dict[str, float]:
    """The numbers of a result that a tracker compares runs by."""
    return {name: float(getattr(result, name)) for name in SCORES if getattr(result, name) is not None}


def _dotted(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
