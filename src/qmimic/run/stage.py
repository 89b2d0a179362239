"""How a stage of a run is done: once, resumed where it was interrupted, and kept under its fingerprint.

A stage's folder is named by all that decides its result, so that equal recipes share it and different ones never
overwrite each other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qmimic import processes
from qmimic.config import ScheduleConfig
from qmimic.detectors.build import mac_count, parameter_count
from qmimic.detectors.detector import Detector
from qmimic.detectors.files import load_detector, save_detector
from qmimic.errors import InputError
from qmimic.files import MissingError
from qmimic.run.folder import RECIPE, StageResult, read_stage, stage_folder, stage_result, write_stage
from qmimic.run.prepare import Prepared
from qmimic.run.tracking import scores_of, trackers_of
from qmimic.run.validation import Validation
from qmimic.scores.summary import Scores
from qmimic.training.loop import Job, Objective, Watcher, train_network

DETECTOR = "detector.safetensors"


@dataclass(frozen=True)
class Stage:
    """A finished stage: its result, and the folder with `detector.safetensors`, log and checkpoints."""

    result: StageResult
    folder: Path

    @property
    def file(self) -> Path:
        """The trained detector."""
        return self.folder / DETECTOR


def run_stage(
    prepared: Prepared,
    name: str,
    key: str,
    schedule: ScheduleConfig,
    backbone: str,
    make: Callable[[], Objective],
    watcher: Watcher,
    extra: Callable[[Objective, Detector], dict[str, Any]] = lambda *_: {},
) -> Stage:
    """Run a stage, or find it finished; resume from its last checkpoint if it was interrupted.

    Args:
        prepared: the run.
        name: of the stage.
        key: its fingerprint.
        schedule: of its training.
        backbone: of its network.
        make: what is trained, before its first step.
        watcher: told of every step.
        extra: further values of its result, from what was trained and the network that is kept, which may be a moving
            average of the trained one.
    """
    folder = stage_folder(prepared.recipe.folder, name, key)

    def work() -> None:
        objective = make()
        with trackers_of(prepared, name, key, folder, watcher) as trackers:
            bf16, device = prepared.bf16(backbone), prepared.device
            job = Job(name, folder, key, prepared.recipe.seed, schedule, bf16, device, trackers)
            trained, validation = objective.detector.eval(), Validation(prepared)
            if schedule.steps:
                loader = prepared.train.with_batch_size(schedule.batch_size)
                trained = train_network(job, objective, loader, validation, prepared.accelerator, watcher)
            objective.eval()
            if prepared.accelerator.is_main_process:
                with processes.apart():
                    scores = validation.scores(trained)
                    trackers.end(
                        scores_of(
                            write_detector(prepared, name, key, trained, scores, folder, extra(objective, trained))
                        )
                    )

    return once(prepared, folder, watcher, work)


def once(prepared: Prepared, folder: Path, watcher: Watcher, work: Callable[[], None]) -> Stage:
    """A stage that is found finished, or is run by `work`, which all processes call; the main one writes."""
    done = _finished(folder, watcher.say)
    # All processes have looked before one of them writes: they must take the same way.
    prepared.accelerator.wait_for_everyone()
    if done:
        watcher.say(f"{done.name} was trained before; it is reused from {folder}.")
        return Stage(done, folder)
    _say_again(folder, watcher)
    work()
    prepared.accelerator.wait_for_everyone()
    result = _finished(folder, watcher.say)
    if result is None:
        raise InputError(f"{folder} lacks what the main process wrote; put run.dir on a disk that all processes share.")
    return Stage(result, folder)


def _say_again(folder: Path, watcher: Watcher) -> None:
    """Say that a stage is trained again if it was finished before with other settings, data or another version."""
    name, _, key = folder.name.rpartition("-")
    others = [one for one in folder.parent.glob(f"{name}-*") if one.name.rpartition("-")[0] == name and one != folder]
    # In a study's folder, stages of many recipes lie side by side.
    if (folder.parents[1] / RECIPE).is_file() and any(read_stage(one) for one in others):
        watcher.say(
            f"{name} is trained again: the one from before had other settings, other data or another version of "
            f"qmimic (its key is now {key})."
        )


def write_detector(
    prepared: Prepared, name: str, key: str, trained: Detector, scores: Scores, folder: Path, extra: dict[str, Any]
) -> StageResult:
    """Write a detector with its result, the mark of a finished stage."""
    file = folder / DETECTOR
    notes = {"stage": name, "key": key, "map50": scores.voc_map50, "seed": prepared.recipe.seed}
    save_detector(trained, file, notes)
    result = StageResult(
        name=name,
        key=key,
        backbone=f"{trained.spec.backbone} pruned" if trained.spec.channels else trained.spec.backbone,
        map50=scores.voc_map50,
        map07=scores.voc07_map50,
        coco_map=scores.coco_map,
        parameters=parameter_count(trained),
        macs=mac_count(trained),
        bytes=file.stat().st_size,
        **extra,
    )
    write_stage(folder, result)  # last: its presence means done
    return result


def _finished(folder: Path, say: Callable[[str], None]) -> StageResult | None:
    """The result of a stage that is done and whole. One that was damaged since is done again, from its checkpoints."""
    try:
        result = stage_result(folder)
        load_detector(folder / DETECTOR)
    except MissingError:
        return None
    except InputError as error:
        say(f"{folder.name} was done before and cannot be used, so it is done again: {error}")
        return None
    return result
