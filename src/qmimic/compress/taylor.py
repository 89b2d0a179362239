"""Channel pruning by Taylor expansion (Molchanov et al., ICLR 2017).

A channel z matters as much as the loss C would change without it, to first order |dC/dz * z| summed over its places:
the gradient to a gate that multiplies it. It is taken image by image, averaged, and normalised within a layer by its l2
norm; what it costs is subtracted, as a share of the network as it is by then, so that costly layers do not survive all
others. Channels that shortcuts add have one gate. Two departures from the paper: channels go in rounds instead of one
by one, and no layer falls below a share of what equal pruning would leave it, since a criterion that is compared
between layers can take nearly all of one (layer collapse; Tanaka et al., NeurIPS 2020).
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from qmimic.compress.cost import Cost, equal_share
from qmimic.config import PruningConfig, ScheduleConfig
from qmimic.contracts import ChannelGroup
from qmimic.data.loader import Batch
from qmimic.detectors.channels import channel_groups, keep_channels, widths
from qmimic.detectors.detector import Detector
from qmimic.training.optimizer import build_optimizer
from qmimic.training.step import DetectionObjective, StepGenerators

TOLERANCE = 0.02  # how far from the wanted cost pruning may end
FLOOR = 0.2  # least share that stays of the channels that equal pruning to the same cost would leave a layer


def prune_by_taylor(
    objective: DetectionObjective,
    macs: float,
    config: PruningConfig,
    batches: Iterator[Batch],
    chance: Callable[[int], StepGenerators],
    show: Callable[[int, float], None],
) -> Detector:
    """Prune a trained detector round by round, training it between the rounds.

    Args:
        objective: what the detector is trained for; the detector in it is pruned in place.
        macs: multiply-accumulates of one image that may be left.
        config: rounds, steps of a round, learning rate.
        batches: at least rounds times steps of them.
        chance: of a step.
        show: told of every step and its loss.

    Returns:
        The pruned detector in evaluation mode; its cost is within `TOLERANCE` of `macs` unless no channel fits the gap.

    Raises:
        InputError: its channels cannot be pruned.
    """
    detector = objective.detector
    whole = Cost(detector).of({})
    floor = {name: math.ceil(FLOOR * count) for name, count in equal_share(detector, macs).items()}
    schedule = ScheduleConfig(learning_rate=config.learning_rate)
    for done in range(config.rounds):
        criterion = {name: torch.zeros(count) for name, count in widths(detector, channel_groups(detector)).items()}
        optimizer = build_optimizer(objective.train(), schedule)
        for step in range(done * config.steps, (done + 1) * config.steps):
            loss = _learn(objective, optimizer, next(batches), chance(step), schedule.clip_norm, criterion)
            show(step + 1, loss)
        goal = whole * (macs / whole) ** ((done + 1) / config.rounds)
        keep_channels(detector, least(criterion, Cost(detector), goal, config.cost_weight, floor))
    return detector.eval()


def least(
    criterion: dict[str, Tensor], cost: Cost, goal: float, cost_weight: float, floor: Mapping[str, int]
) -> dict[str, Tensor]:
    """The channels that stay when those that matter least for their cost are removed.

    Args:
        criterion: by group, [channels], how much each matters; of any scale within a group.
        cost: of the network as it is.
        goal: multiply-accumulates to come to.
        cost_weight: of a channel's share of the present multiply-accumulates.
        floor: by group, how many stay at least, one or more.

    Returns:
        By group, the indices that stay, in order.
    """
    matters = {name: values / values.norm().clamp(min=1e-12) for name, values in criterion.items()}
    left = dict(cost.full)
    present = cost.of(left)
    open_groups = {name: values.argsort().tolist() for name, values in matters.items()}
    gone: dict[str, list[int]] = {name: [] for name in matters}
    while present > goal * (1 + TOLERANCE):
        best: tuple[float, str, float] | None = None
        for name, candidates in open_groups.items():
            if left[name] <= floor[name]:
                continue
            after = cost.of({**left, name: left[name] - 1})
            worth = float(matters[name][candidates[0]]) - cost_weight * (1 - after / present)
            if after >= goal * (1 - TOLERANCE) and (best is None or worth < best[0]):
                best = worth, name, after
        if best is None:
            break
        _, name, present = best
        left[name] -= 1
        gone[name].append(open_groups[name].pop(0))
    return {
        name: torch.tensor([c for c in range(count) if c not in set(gone[name])]) for name, count in cost.full.items()
    }


def _learn(
    objective: DetectionObjective,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    chance: StepGenerators,
    clip_norm: float,
    criterion: dict[str, Tensor],
) -> float:
    """One optimizer step; adds the criterion of its images. Returns the loss before it."""
    device = objective.detector.device
    images, targets = batch.images.to(device), batch.targets.to(device)
    with gated(objective.detector, len(images)) as gates:
        loss = sum(objective(images, targets, chance, 0.0).values(), torch.zeros((), device=device))
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
    """Gates of 1 on all channels as long as the body runs; their gradient is dC/dz * z summed over a channel's places.

    Args:
        detector: any that has `channel_groups`.
        batch: images that it will see.

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
    """The batch norms of a group where it has some: they come after the convolutions."""
    norms = [name for name in group.producers if isinstance(detector.get_submodule(name), nn.BatchNorm2d)]
    return tuple(norms) or group.producers
