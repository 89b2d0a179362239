"""How much a distillation loss weighs against detection: the dose, measured at the map that both losses share.

    share  = lambda |dL_m/df_s| / |dL_det/df_s|        f_s: the student's map
    cosine = <dL_m/df_s, dL_det/df_s> / (|dL_m/df_s| |dL_det/df_s|)

Both gradients are taken with respect to the student's map alone (all of its levels together), so a measurement costs a
pass through the heads and none through the backbone. A weight means little across networks, normalisations and stages
of training (with `mimic.normalize=entry` the share of a weight of 1 falls from 40 to 0.06 within a run); a share means
the same everywhere. `mimic.weight=auto` therefore holds a share and lets lambda follow.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from qmimic.processes import mean_over

# The logarithm of the ratio falls by 0.1 a step at first and by 0.02 after some 50 steps, and varies by 0.15 from batch
# to batch. So the estimate follows more than it smooths: what it lags behind is missing from the share.
FIRST, EVERY = 50, 5  # measured in each of the first steps, then every few
FAST, SLOW = 0.8, 0.7  # how far one measurement moves the estimate, among the first and later


class Dose(nn.Module):
    """Measures the share of the distillation gradient, and holds one if it is asked to.

    All that it knows lies in buffers, so that a checkpoint keeps it and a resumed run goes on alike.

    Args:
        weight: lambda; None to choose it so that the share is held.
        share: to hold, above 0.

    Attributes:
        steps: float32 scalar, steps so far in which both losses were present.
        log_ratio: float32 scalar, the estimate of log(|dL_m| / |dL_det|) for a lambda of 1.
        recent, total: float32 [3], steps that were measured or stood for, sum of shares, sum of cosines: since `take`,
            and in all.
    """

    steps: Tensor
    log_ratio: Tensor
    recent: Tensor
    total: Tensor

    def __init__(self, weight: float | None, share: float) -> None:
        super().__init__()
        self._fixed, self._share = weight, share
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("log_ratio", torch.zeros(()))
        self.register_buffer("recent", torch.zeros(3))
        self.register_buffer("total", torch.zeros(3))
        # The same as `steps` and `total[0]` without asking the device; read from them after a resume.
        self._done, self._measured = -1, 0

    def weighed(self, maps: Sequence[Tensor], detection: Tensor, distillation: Tensor) -> Tensor:
        """lambda L_m, scalar; measures in some of the steps.

        Args:
            maps: the student's map f_s of each level, [B, C, H, W], part of the graph of both losses.
            detection: the sum of the detection losses, scalar.
            distillation: L_m, not yet weighed, scalar.
        """
        if self._done < 0:
            self._done, self._measured = int(self.steps), int(self.total[0])
        # Counted from the first that can be measured: regions may be empty until then, and no weight is known.
        due = self._measured < FIRST or self._done % EVERY == 0
        if due and distillation.requires_grad and any(one.requires_grad for one in maps):
            self._measure([one for one in maps if one.requires_grad], detection, distillation)
        self._done += 1
        self.steps += 1
        return self.weight() * distillation

    def weight(self) -> Tensor | float:
        """lambda as it is now; 1 before anything was measured."""
        if self._fixed is not None:
            return self._fixed
        return torch.where(self.total[0] > 0, self._share / self.log_ratio.exp(), 1.0)

    def take(self) -> dict[str, float]:
        """Means since the last call, `distillation_share` and `distillation_cosine`; empty if nothing was measured."""
        found = self._means(self.recent)
        self.recent.zero_()
        return found

    def overall(self) -> dict[str, float]:
        """Means over the whole training, as `take`."""
        return self._means(self.total)

    def _measure(self, maps: Sequence[Tensor], detection: Tensor, distillation: Tensor) -> None:
        ours, theirs = (
            torch.autograd.grad(loss, maps, retain_graph=True, materialize_grads=True)
            for loss in (distillation, detection)
        )
        pairs = [(own.double(), other.double()) for own, other in zip(ours, theirs, strict=True)]
        products = [
            torch.stack([own.square().sum(), other.square().sum(), (own * other).sum()]) for own, other in pairs
        ]
        sums = mean_over(torch.stack(products).sum(0))
        own, other, product = (float(value) for value in sums)
        if not (own > 0 and other > 0 and math.isfinite(own) and math.isfinite(other)):
            return  # nothing to compare: a loss of 0, or one that training is about to refuse
        logarithm = math.log(own / other) / 2
        early, before = self._measured < FIRST, float(self.log_ratio)
        if self._measured:
            self.log_ratio += (FAST if early else SLOW) * (logarithm - before)
        else:
            self.log_ratio.fill_(logarithm)
        # The log says what was reached and not what was asked. A measurement ends the steps that were weighed by the
        # estimate before it and begins those that the new one weighs: of these the mean (the trapezoidal rule).
        estimates = (float(self.log_ratio),) if early else (before, float(self.log_ratio))
        weights = [self._share * math.exp(-one) if self._fixed is None else self._fixed for one in estimates]
        weight = sum(weights) / len(weights)
        count = 1 if early else EVERY
        self._measured += count
        measured = count * torch.tensor([1.0, weight * math.exp(logarithm), product / math.sqrt(own * other)])
        self.recent += measured.to(self.recent.device)
        self.total += measured.to(self.total.device)

    @staticmethod
    def _means(sums: Tensor) -> dict[str, float]:
        count, share, cosine = sums.tolist()
        return {"distillation_share": share / count, "distillation_cosine": cosine / count} if count else {}
