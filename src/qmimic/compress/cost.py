"""What a detector would cost with fewer channels, without building it."""

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn

from qmimic.detectors.build import evaluating
from qmimic.detectors.channels import channel_groups, layer, widths
from qmimic.detectors.detector import Detector


class Cost:
    """Multiply-accumulates for one image as a function of the numbers of channels; agrees with `mac_count`.

    A layer costs its weights times the positions where it is applied, which do not depend on channels.

    Args:
        detector: with its present channels.

    Raises:
        InputError: its channels cannot be pruned.
    """

    def __init__(self, detector: Detector) -> None:
        groups = channel_groups(detector)
        self.full = widths(detector, groups)
        self._producers = {name: group.name for group in groups.values() for name in group.producers}
        self._consumers = {name: group.name for group in groups.values() for name in group.consumers}
        self._macs = {name: places * layer(detector, name).weight.numel() for name, places in _places(detector).items()}

    def of(self, left: Mapping[str, int]) -> float:
        """Multiply-accumulates if this many channels are left; groups that are not named keep all of theirs.

        Args:
            left: number of channels, by group name.
        """
        share = {name: left.get(name, count) / count for name, count in self.full.items()}
        return sum(
            macs * share.get(self._producers.get(name, ""), 1.0) * share.get(self._consumers.get(name, ""), 1.0)
            for name, macs in self._macs.items()
        )


def equal_share(detector: Detector, macs: float) -> dict[str, int]:
    """Channels of each group if all keep the same share, rounded up, such that the cost is nearest to `macs`.

    Raises:
        InputError: its channels cannot be pruned.
    """
    cost = Cost(detector)

    def left(share: float) -> dict[str, int]:
        return {name: max(1, math.ceil(count * share - 1e-9)) for name, count in cost.full.items()}

    # Between two neighbours among these shares, no group's width changes.
    shares = sorted({n / count for count in cost.full.values() for n in range(1, count + 1)})
    return min(map(left, shares), key=lambda widths: abs(cost.of(widths) - macs))


def _places(detector: Detector) -> dict[str, int]:
    """At how many positions of one image each convolution and linear layer is applied."""
    found: dict[str, int] = {}

    def count(name: str, module: nn.Module, _: tuple[Tensor], output: Tensor) -> None:
        own = output.numel() // len(layer(detector, name).weight)
        found[name] = found.get(name, 0) + own  # a head that levels share is applied to each of them

    layers = [(name, m) for name, m in detector.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    handles = [module.register_forward_hook(partial(count, name)) for name, module in layers]
    try:
        with evaluating(detector):
            detector.detect(torch.zeros(1, 3, *detector.spec.size, device=detector.device))
    finally:
        for handle in handles:
            handle.remove()
    return found
