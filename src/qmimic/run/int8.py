"""From a trained detector to one on integers: calibrated, measured, then trained or partly kept float, or refused."""

import math
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch

from qmimic.compress.integer_grids import calibrate, grid_names, keep_float, prepare_qat
from qmimic.detectors.detector import Detector
from qmimic.errors import InputError
from qmimic.run.keys import int8_key
from qmimic.run.prepare import Prepared
from qmimic.run.tracking import trackers_of
from qmimic.run.validation import Validation
from qmimic.training.loop import Job, Watcher, step_generators, train_network
from qmimic.training.step import DetectionObjective

SENSITIVITY_BATCHES = 4
SHARE_IN_FLOAT = 0.5  # of the parts, at most


class Int8RefusedError(InputError):
    """A detector loses too much on integers."""


@dataclass(frozen=True)
class IntegerDetector:
    """A detector on grids, and what it cost.

    Attributes:
        detector: on grids.
        map50: VOC mAP@0.5 on val, 0..1, as the grids are simulated here.
        map50_float: of the detector that it was made from.
        trained: steps of training on the grids.
        in_float: parts that are not on a grid.
    """

    detector: Detector
    map50: float
    map50_float: float
    trained: int
    in_float: tuple[str, ...]


def to_integers(prepared: Prepared, detector: Detector, folder: Path, watcher: Watcher) -> IntegerDetector:
    """Put a detector on grids without losing more than `int8.max_loss`.

    What is calibrated is measured first. If it lost more, it is trained on its grids for `int8.steps`; if that does not
    do, the parts that the loss is most sensitive to stay float, one after the other, up to a half of them.

    Args:
        prepared: the data and the settings.
        detector: trained, in evaluation mode.
        folder: for checkpoints of the training.
        watcher: told of progress.

    Raises:
        Int8RefusedError: it loses too much in any case.
        InputError: it cannot be put on integers, or its training failed.
    """
    config = prepared.recipe.int8
    before = Validation(prepared)(detector)
    allowed = before - config.max_loss
    found = prepare_qat(detector)
    loader = prepared.train.with_batch_size(min(config.images, prepared.train.batch_size))
    calibrate(found, (batch.images for batch in islice(loader.once(), math.ceil(config.images / loader.batch_size))))
    after, trained = Validation(prepared)(found), 0
    watcher.say(f"With int8 it has {100 * after:.1f} mAP@0.5, in float {100 * before:.1f}.")
    if allowed <= 0:
        watcher.say(
            f"In float it has no more mAP@0.5 than int8 may lose (int8.max_loss={config.max_loss:g}), so no loss is "
            "refused and the comparison proves nothing; train longer, or name pictures on which it finds something "
            "with --data."
        )
    if after < allowed and config.steps:
        key = int8_key(prepared.recipe, prepared.key, _sum(detector))
        found, after = _trained(prepared, found, before, key, folder / f"int8-{key}", watcher)
        trained = config.steps
        watcher.say(f"After {trained} steps of training on the grids it has {100 * after:.1f}.")
    in_float: tuple[str, ...] = ()
    if after < allowed:
        ranked = sensitivities(prepared, found)
        for name in ranked[: int(SHARE_IN_FLOAT * len(ranked))]:
            found, in_float = keep_float(found, name), (*in_float, name)
            after = Validation(prepared)(found)
            if after >= allowed:
                watcher.say(f"With {', '.join(in_float)} kept in float it has {100 * after:.1f}.")
                break
    if after < allowed:
        raise Int8RefusedError(
            f"With int8 the detector has {100 * after:.1f} mAP@0.5 on val, {100 * (before - after):.1f} less than in "
            f"float, even with {len(in_float)} of its parts kept in float; int8.max_loss allows "
            f"{100 * config.max_loss:.1f}. Try --set int8.steps=1000, or ship it in float."
        )
    return IntegerDetector(found, after, before, trained, in_float)


def _trained(
    prepared: Prepared, detector: Detector, before: float, key: str, folder: Path, watcher: Watcher
) -> tuple[Detector, float]:
    """A detector after its training on the grids, and its mAP@0.5 on val; `before` is that in float."""
    config, validation = prepared.recipe.int8, Validation(prepared)
    objective = DetectionObjective(detector, prepared.recipe.augment)
    loader = prepared.train.with_batch_size(config.batch_size)
    with trackers_of(prepared, "int8", key, folder, watcher) as trackers:
        job = Job("int8", folder, key, prepared.recipe.seed, config.schedule, False, prepared.device, trackers)
        found = train_network(job, objective, loader, validation, prepared.accelerator, watcher)
        after = validation.map50(found)
        trackers.end({"map50": after, "map50_float": before})
    return found, after


@torch.no_grad()
def sensitivities(prepared: Prepared, detector: Detector) -> list[str]:
    """The parts of a detector on grids, that first which alone on its grid changes the detection loss most."""
    config, seed = prepared.recipe.int8, prepared.recipe.seed
    loader = prepared.train.with_batch_size(config.batch_size)
    batches = list(loader.steps(seed, 0, SENSITIVITY_BATCHES))

    def loss(one: Detector) -> float:
        total = 0.0
        for step, batch in enumerate(batches):
            generators = step_generators(seed, step, one.device)
            images, targets = batch.images.to(one.device), batch.targets.to(one.device)
            output = one.losses(one.features(images), targets, generators.samples)
            total += sum(float(term) for term in output.losses.values())
        return total

    names = grid_names(detector)
    before = loss(keep_float(detector, *names))
    alone = {name: keep_float(detector, *(other for other in names if other != name)) for name in names}
    costs = {name: abs(loss(one) - before) for name, one in alone.items()}
    return sorted(names, key=lambda name: -costs[name])


def _sum(detector: Detector) -> list[float]:
    """What tells one detector's weights from another's."""
    return [float(value.double().sum()) for value in detector.state_dict().values()]
