"""Channel pruning by Taylor expansion (Molchanov et al., ICLR 2017).

A channel z matters as much as the loss C would change without it. To first order, that is |dC/dz * z| summed over
positions: the gradient with respect to a gate that multiplies z. The criterion is computed for each image, averaged,
and normalised within a layer by its l2 norm; a channel's cost, as a share of the network's present cost, is subtracted,
so that costly layers do not outlive all others. Channels that shortcuts add share one gate. Three departures from the
paper: channels are removed in rounds instead of one by one; no layer falls below a share of what equal pruning would
leave it, since a criterion compared between layers can remove nearly all of one (layer collapse; Tanaka et al., NeurIPS
2020); and they go several at a time, so that a layer keeps a multiple of what a vector of the engines holds.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qmimic.compress.cost import Cost, equal_share
from qmimic.config import PruningConfig, ScheduleConfig
from qmimic.contracts import ChannelGroup
from qmimic.data.loader import Batch
from qmimic.detectors.channels import channel_groups, keep_channels, widths
from qmimic.detectors.detector import Detector
from qmimic.errors import InputError
from qmimic.training.optimizer import build_optimizer
from qmimic.training.step import DetectionObjective, StepGenerators

TOLERANCE = 0.02  # how far from the target cost pruning may end, as a share
FLOOR = 0.2  # smallest share of a layer's channels to keep, relative to equal pruning to the same cost


def prune_by_taylor(
    objective: DetectionObjective,
    macs: float,
    config: PruningConfig,
    batches: Iterator[Batch],
    generators: Callable[[int], StepGenerators],
    show: Callable[[int, float], None],
) -> Detector:
    """Prune a trained detector round by round, training it between the rounds.

    Args:
        objective: that the detector is trained on; its detector is pruned in place.
        macs: target cost, multiply-accumulates for one image.
        config: rounds, steps of a round, learning rate.
        batches: at least rounds * steps of them.
        generators: of a step.
        show: called with every step and its loss.

    Returns:
        The pruned detector in evaluation mode; its cost is within `TOLERANCE` of `macs`, if single channels are small
        enough for that.

    Raises:
        InputError: its channels cannot be pruned, or the loss is no longer a finite number.
    """
    detector = objective.detector
    whole = Cost(detector).of({})
    equal = equal_share(detector, macs)
    floor = {name: math.ceil(FLOOR * count) for name, count in equal.items()}
    units = halvings({name: unit(config.multiple, count) for name, count in equal.items()})
    schedule = ScheduleConfig(learning_rate=config.learning_rate)
    for done in range(config.rounds):
        criterion = {name: torch.zeros(count) for name, count in widths(detector, channel_groups(detector)).items()}
        optimizer = build_optimizer(objective.train(), schedule)
        for step in range(done * config.steps, (done + 1) * config.steps):
            loss = _learn(objective, optimizer, next(batches), generators(step), schedule.clip_norm, criterion)
            if not math.isfinite(loss):
                raise InputError(
                    f"The loss of the teacher became {loss} at step {step} of its pruning; lower pruning.learning_rate "
                    "and run again."
                )
            show(step + 1, loss)
        goal = whole * (macs / whole) ** ((done + 1) / config.rounds)
        last = done == config.rounds - 1  # only then do a few layers leave their multiples, to meet the cost
        steps = units if last else units[:1]
        keep_channels(detector, least(criterion, Cost(detector), goal, macs, config.cost_weight, floor, steps))
    return detector.eval()


def unit(multiple: int, equal: int) -> int:
    """How many channels of a group go at a time: `multiple`, halved while equal pruning would leave fewer."""
    while multiple > equal:
        multiple //= 2
    return max(1, multiple)


def halvings(units: Mapping[str, int]) -> list[Mapping[str, int]]:
    """These units, half of each, a quarter, and so on, down to single channels."""
    found = [units]
    while max(found[-1].values()) > 1:
        found.append({name: max(1, count // 2) for name, count in found[-1].items()})
    return found


def least(
    criterion: dict[str, Tensor],
    cost: Cost,
    goal: float,
    end: float,
    cost_weight: float,
    floor: Mapping[str, int],
    units: Sequence[Mapping[str, int]],
) -> dict[str, Tensor]:
    """The channels that stay after those that matter least for their cost are removed.

    Args:
        criterion: by group, [channels], how much each matters, on any scale per group.
        cost: of the network as it is now.
        goal: multiply-accumulates to come down to.
        end: multiply-accumulates that no removal may go below. It may go below `goal`, though: a group of expensive
            channels may take more than a round's share, and if it could not be removed, all others would be instead.
        cost_weight: weight of a channel's share of the present multiply-accumulates.
        floor: by group, how many must stay, at least one.
        units: by group, what the number of channels becomes a multiple of, where any are removed; the next of these
            holds when no such removal fits any more.

    Returns:
        By group, the indices that stay, ascending.
    """
    matters = {name: values / values.norm().clamp(min=1e-12) for name, values in criterion.items()}
    left = dict(cost.full)
    present = cost.of(left)
    open_groups = {name: values.argsort().tolist() for name, values in matters.items()}
    gone: dict[str, list[int]] = {name: [] for name in matters}
    now, *finer = units
    while present > goal * (1 + TOLERANCE):
        choices = []
        for name, candidates in open_groups.items():
            count = left[name] % now[name] or now[name]
            after = cost.of({**left, name: left[name] - count})
            if left[name] - count >= floor[name] and after >= end * (1 - TOLERANCE):
                matter = float(matters[name][candidates[:count]].mean())
                choices.append(_Choice(name, count, after, matter - cost_weight * (1 - after / present) / count))
        if not choices and not finer:
            break
        if not choices:
            now, *finer = finer
            continue
        best = min(choices, key=lambda one: one.worth)
        present = best.after
        left[best.name] -= best.count
        gone[best.name] += open_groups[best.name][: best.count]
        del open_groups[best.name][: best.count]
    return {
        name: torch.tensor([c for c in range(count) if c not in set(gone[name])]) for name, count in cost.full.items()
    }


@dataclass(frozen=True)
class _Choice:
    """Some channels of a group that could go: how many, the cost without them, and the worth of one of them."""

    name: str
    count: int
    after: float
    worth: float


def _learn(
    objective: DetectionObjective,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    generators: StepGenerators,
    clip_norm: float,
    criterion: dict[str, Tensor],
) -> float:
    """One optimizer step; adds its images' criterion to the totals. Returns the loss before the step."""
    device = objective.detector.device
    images, targets = batch.images.to(device), batch.targets.to(device)
    with gated(objective.detector, len(images)) as gates:
        loss = sum(objective(images, targets, generators, 0.0).values(), torch.zeros((), device=device))
        optimizer.zero_grad()
        loss.backward()
    for name, gate in gates.items():
        if gate.grad is not None:
            criterion[name] += gate.grad.abs().mean(0).cpu()
    nn.utils.clip_grad_norm_(objective.parameters(), clip_norm)
    optimizer.step()
    return float(loss.detach())


@contextmanager
def gated(detector: Detector, batch: int) -> Iterator[dict[str, Tensor]]:
    """Gates of 1 on all channels within the `with` body; their gradient is dC/dz * z summed over positions.

    Args:
        detector: any that has `channel_groups`.
        batch: number of images it will see at once.

    Yields:
        By group, float32 [batch, channels].
    """
    groups = channel_groups(detector)
    gates = {
        name: torch.ones(batch, count, device=detector.device, requires_grad=True)
        for name, count in widths(detector, groups).items()
    }

    def gate(name: str) -> Callable[[nn.Module, tuple[Tensor], Tensor], Tensor]:
        def hook(_: nn.Module, __: tuple[Tensor], output: Tensor) -> Tensor:
            # Features are [batch, channels, height, width], a head's units [batch, regions, units].
            return output * (gates[name][:, :, None, None] if output.dim() == 4 else gates[name][:, None])

        return hook

    handles = [
        detector.get_submodule(producer).register_forward_hook(gate(name))
        for name, group in groups.items()
        for producer in _last_producers(detector, group)
    ]
    try:
        yield gates
    finally:
        for handle in handles:
            handle.remove()


def _last_producers(detector: Detector, group: ChannelGroup) -> tuple[str, ...]:
    """A group's batch norms, if it has any (they come after the convolutions), else its convolutions."""
    norms = [name for name in group.producers if isinstance(detector.get_submodule(name), nn.BatchNorm2d)]
    return tuple(norms) or group.producers
