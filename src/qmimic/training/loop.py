"""The training loop: plain, deterministic, resumable at any step."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from qmimic.config import ScheduleConfig, fingerprint
from qmimic.data.loader import Batch, Loader
from qmimic.detectors.detector import Detector
from qmimic.errors import InputError
from qmimic.processes import mean_over
from qmimic.training.log import Log
from qmimic.training.optimizer import build_optimizer, learning_rate
from qmimic.training.state import load_checkpoint, save_checkpoint
from qmimic.training.step import DetectionObjective, DistillationObjective, StepGenerators
from qmimic.training.trackers import Trackers

LOG_EVERY = 10

Objective = DetectionObjective | DistillationObjective


class Watcher(Protocol):
    """Progress of a stage, for the user."""

    def start(self, stage: str, steps: int, done: int) -> None:
        """A stage begins, or continues after `done` steps."""

    def step(self, step: int, images: int, loss: float) -> None:
        """A step on `images` images is done."""

    def scored(self, step: int, map50: float) -> None:
        """mAP@0.5 on val was measured."""

    def say(self, text: str) -> None:
        """A sentence for the user."""


@dataclass(frozen=True)
class Job:
    """One network to train.

    Attributes:
        name: of the stage ("teacher", "scratch", ...).
        folder: for checkpoints and log.
        key: fingerprint of everything that decides the result.
        seed: of order, views and samples.
        schedule: how long and how fast.
        bf16: compute the network in bf16, in channels-last memory.
        device: where this process computes it.
        trackers: sent what the log is sent.
    """

    name: str
    folder: Path
    key: str
    seed: int
    schedule: ScheduleConfig
    bf16: bool
    device: torch.device
    trackers: Trackers


def train_network(
    job: Job,
    objective: Objective,
    loader: Loader,
    evaluate: Callable[[Detector], float],
    accelerator: Accelerator,
    watcher: Watcher,
) -> Detector:
    """Train an objective to the end of its schedule, from its last checkpoint if there is one.

    Args:
        job: what to train, and where.
        objective: on any device; it is moved to the job's.
        loader: of training images, with the schedule's batch size.
        evaluate: computes mAP@0.5 on val, 0..1, of a detector in evaluation mode.
        accelerator: the processes.
        watcher: notified of every step.

    Returns:
        The trained detector (its moving average, if the schedule keeps one), in evaluation mode.

    Raises:
        InputError: the loss is not finite, or the run folder cannot be written.
    """
    schedule = job.schedule
    objective.to(job.device)
    average = None
    if schedule.ema:
        average = AveragedModel(objective.detector, multi_avg_fn=get_ema_multi_avg_fn(schedule.ema), use_buffers=True)
    rows = slice(accelerator.process_index, None, accelerator.num_processes)  # of the global batch
    optimizer = build_optimizer(objective, schedule)
    done = load_checkpoint(job.folder / "checkpoints", job.key, objective, optimizer, average, schedule.steps)
    wrapped, optimizer = accelerator.prepare(objective, optimizer)
    final = objective.detector if average is None else average.module
    assert isinstance(final, Detector)

    watcher.start(job.name, schedule.steps, done)
    objective.train()
    # Only one process writes the log and the checkpoints: two would overwrite each other.
    log = Log(job.folder, done, job.trackers) if accelerator.is_main_process else None
    for step, batch in enumerate(loader.steps(job.seed, done, schedule.steps, rows), start=done):
        rate = learning_rate(schedule, step)
        losses = _advance(job, wrapped, optimizer, batch, rows, step, rate, accelerator)
        value = sum(losses.values())
        if average is not None:
            average.update_parameters(objective.detector)
        now = step + 1
        watcher.step(now, schedule.batch_size, value)
        last = now == schedule.steps
        if log and (now % LOG_EVERY == 0 or last):
            log.write({"step": now, "lr": rate, "loss": value, **losses, **objective.measured()})
        if now % schedule.evaluate_every == 0 or last:
            score = evaluate(final.eval())
            final.train()
            if log:
                log.write({"step": now, "map50": score})
            watcher.scored(now, score)
        if log and (now % schedule.checkpoint_every == 0 or last):
            save_checkpoint(job.folder / "checkpoints", now, job.key, objective, optimizer.optimizer, average)
    accelerator.free_memory()  # it would keep what it prepared, a teacher of each stage, until the run ends
    return final.eval()


def _advance(
    job: Job,
    objective: Objective,
    optimizer: AcceleratedOptimizer,
    batch: Batch,
    rows: slice,
    step: int,
    rate: float,
    accelerator: Accelerator,
) -> dict[str, float]:
    """One optimizer step on a process's rows of the global batch; gives the loss terms before it.

    Raises:
        InputError: the loss is not finite; nothing was changed.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    device = job.device
    images, targets, indices = batch.images.to(device), batch.targets.to(device), batch.indices.to(device)
    generators = step_generators(job.seed, step, device)
    if accelerator.num_processes > 1:
        generators = generators.of_rows(rows, job.schedule.batch_size)
    # Accelerate has one precision per process, but stages differ, so autocast is entered here.
    with torch.autocast(images.device.type, torch.bfloat16, enabled=job.bf16):
        terms: dict[str, Tensor] = objective(images, targets, generators, step / job.schedule.steps, indices)
    names, losses = list(terms), torch.stack(list(terms.values()))
    values: list[float] = mean_over(losses.detach()).tolist()  # waits for the device once; the same in all processes
    if not all(map(math.isfinite, values)):
        raise InputError(
            f"The loss of {job.name} became {sum(values)} at step {step}; the last good checkpoint is kept in "
            f"{job.folder / 'checkpoints'}; lower its learning_rate and run again."
        )
    optimizer.zero_grad()
    accelerator.backward(losses.sum())
    if job.schedule.clip_norm:
        accelerator.clip_grad_norm_(objective.parameters(), job.schedule.clip_norm)
    optimizer.step()
    return dict(zip(names, values, strict=True))


def step_generators(seed: int, step: int, device: torch.device) -> StepGenerators:
    """A step's generators: they depend on seed and step alone, so their state is never saved."""

    def generator(purpose: str) -> torch.Generator:
        return torch.Generator(device).manual_seed(int(fingerprint(seed, step, 0, purpose), 16))

    return StepGenerators(generator("views"), generator("samples"))
