"""The dose: it measures the ratio of the gradients, and holds the share that is asked for."""

import copy
import math

import pytest
import torch
from torch import Tensor

from qmimic.distill.dose import Dose


def losses_of(features: Tensor, ratio: float, angle: float) -> tuple[Tensor, Tensor]:
    """A detection loss of gradient (1, 0, ...) and a mimic loss of gradient ratio (cos, sin, 0, ...)."""
    flat = features.flatten()
    return flat[0], ratio * (math.cos(angle) * flat[0] + math.sin(angle) * flat[1])


@pytest.mark.parametrize(("ratio", "angle", "weight"), [(0.25, 0.0, 2.0), (40.0, 1.2, 0.3), (3.0, 2.5, 1.0)])
def test_share_and_cosine_are_those_of_the_gradients_at_the_map(ratio: float, angle: float, weight: float) -> None:
    features = torch.zeros(2, 3, 4, 4, requires_grad=True)
    dose = Dose(weight, 0.1)
    detection, mimic = losses_of(features, ratio, angle)
    weighed = dose.weighed([features], detection, mimic)
    (gradient,) = torch.autograd.grad(weighed, features)
    assert float(gradient.norm()) == pytest.approx(weight * ratio, rel=1e-5)
    assert dose.take() == pytest.approx(
        {"distillation_share": weight * ratio, "distillation_cosine": math.cos(angle)}, rel=1e-5
    )
    assert dose.take() == {}
    assert dose.overall()["distillation_share"] == pytest.approx(weight * ratio, rel=1e-5)


@pytest.mark.parametrize("share", [0.03, 0.3, 1.0])
def test_auto_holds_the_share_while_the_ratio_falls_as_in_training(share: float) -> None:
    # The ratio falls from 42 to 0.06 over a run, with noise: what was measured in a real one.
    dose, generator = Dose(None, share), torch.Generator().manual_seed(0)
    for step in range(600):
        features = torch.zeros(1, 2, 3, 3, requires_grad=True)
        noise = math.exp(0.3 * float(torch.randn((), generator=generator)))
        detection, mimic = losses_of(features, noise * (42 * math.exp(-step / 5) + 0.5 * math.exp(-step / 250)), 1.0)
        dose.weighed([features], detection, mimic)
    held = dose.overall()["distillation_share"]
    assert share / 1.2 < held < share * 1.2


# log(|dL_m| / |dL_det|) at every fifth step of two short trainings of 120 steps on drawn digits.
FALLS = {
    "one stage of three levels": "1.6 1.5 1 .4 -.4 -1 -1.1 -1.2 -1.6 -1.5 -1.6 -1.6 -1.8 -2 -1.9 -2",
    "two stages": "2.8 1.6 .2 -.4 -1.1 -1.6 -1.1 -1.4 -1.5 -1.2 -1.4 -1.5 -1.8 -2 -2.1 -2.1 -2.5 -2.5",
}


@pytest.mark.parametrize("fall", FALLS.values(), ids=FALLS)
def test_auto_holds_the_share_in_every_line_of_a_short_run_s_log(fall: str) -> None:
    dose, generator = Dose(None, 1.0), torch.Generator().manual_seed(0)
    places = [float(one) for one in fall.split()]
    lines = []
    for step in range(5 * (len(places) - 1)):
        features = torch.zeros(1, 2, 3, 3, requires_grad=True)
        place, part = divmod(step, 5)
        fallen = places[place] + part / 5 * (places[place + 1] - places[place])
        noise = 0.12 * float(torch.randn((), generator=generator))
        dose.weighed([features], *losses_of(features, math.exp(fallen + noise), 1.0))
        if step % 10 == 9:
            lines.append(dose.take()["distillation_share"])
    assert all(1 / 1.3 < line < 1.3 for line in lines), lines
    assert 1 / 1.1 < dose.overall()["distillation_share"] < 1.1


def test_a_loss_that_comes_late_is_measured_before_it_weighs() -> None:
    """As where the student finds no region with an object for some steps; between two measurements."""
    dose, reached = Dose(None, 1.0), []
    for step in range(60):
        features = torch.zeros(1, 2, 3, 3, requires_grad=True)
        detection, mimic = losses_of(features, 5000 * math.exp(-step / 100) if step >= 23 else 0.0, 1.0)
        weighed = dose.weighed([features], detection, mimic)
        (gradient,) = torch.autograd.grad(weighed, features)
        reached.append(float(gradient.norm()))
    assert not any(reached[:23])
    assert reached[23:] == pytest.approx([1.0] * 37, rel=0.2)


def test_a_resumed_dose_goes_on_as_if_it_had_never_stopped() -> None:
    def run(dose: Dose, steps: range) -> list[float]:
        weights = []
        for step in steps:
            features = torch.zeros(1, 1, 2, 2, requires_grad=True)
            dose.weighed([features], *losses_of(features, 1 / (1 + step), 0.5))
            weights.append(float(dose.weight()))
        return weights

    whole, killed = Dose(None, 0.2), Dose(None, 0.2)
    before = run(killed, range(33))
    resumed = Dose(None, 0.2)
    resumed.load_state_dict(copy.deepcopy(killed.state_dict()))
    assert before + run(resumed, range(33, 80)) == run(whole, range(80))
    assert all(value.isfinite().all() for value in whole.state_dict().values())


def test_a_mimic_loss_of_zero_changes_nothing() -> None:
    dose = Dose(None, 0.2)
    features = torch.ones(1, 1, 2, 2, requires_grad=True)
    assert float(dose.weighed([features], features.sum(), (features * 0).sum()).detach()) == 0
    assert dose.overall() == {}


def test_of_several_levels_the_gradients_are_taken_together() -> None:
    # Detection (3, 4) at the first level and (12) at the second; mimic (0, 5) and (0): norms 13 and 5, product 20.
    first, second = torch.zeros(1, 2, 1, 1, requires_grad=True), torch.zeros(1, 1, 1, 1, requires_grad=True)
    detection = 3 * first[0, 0].sum() + 4 * first[0, 1].sum() + 12 * second.sum()
    mimic = 5 * first[0, 1].sum()  # a level that a loss does not see has no gradient from it
    dose = Dose(2.0, 0.1)
    assert float(dose.weighed([first, second], detection, mimic).detach()) == 0
    assert dose.take() == pytest.approx({"distillation_share": 10 / 13, "distillation_cosine": 20 / (13 * 5)})
