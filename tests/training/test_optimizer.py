"""Learning rates worked out by hand, and which weights decay."""

import math

import pytest
import torch
from torch import nn

from qmimic.config import ScheduleConfig
from qmimic.training.optimizer import build_optimizer, learning_rate


def schedule(**keys: object) -> ScheduleConfig:
    return ScheduleConfig.model_validate({"learning_rate": 0.8, "warmup_steps": 3, "steps": 11} | keys)


@pytest.mark.parametrize("decay", ["cosine", "step", "constant"])
def test_warm_up_climbs_in_equal_parts_to_the_peak(decay: str) -> None:
    rates = [learning_rate(schedule(decay=decay, steps=50), step) for step in range(4)]
    assert rates == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_cosine() -> None:
    # Eight steps from the peak on: cosines of 0, 45, 90, 135 degrees at 3, 5, 7, 9.
    rates = [learning_rate(schedule(), step) for step in (3, 5, 7, 9)]
    root = math.sqrt(0.5)
    assert rates == pytest.approx([0.8, 0.4 * (1 + root), 0.4, 0.4 * (1 - root)])
    falling = [learning_rate(schedule(), step) for step in range(3, 11)]
    assert falling == sorted(falling, reverse=True)
    assert 0 < falling[-1] < 0.8 * 0.05  # every step counts, the last one little


def test_steps() -> None:
    config = schedule(decay="step", warmup_steps=0, steps=100)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates == pytest.approx([0.8] * 67 + [0.08] * 22 + [0.008] * 11)


def test_constant_and_no_warm_up() -> None:
    config = schedule(decay="constant", warmup_steps=0)
    assert [learning_rate(config, step) for step in (0, 5, 10)] == [0.8, 0.8, 0.8]
    assert learning_rate(schedule(warmup_steps=0), 0) == 0.8


def test_a_warm_up_longer_than_the_training_only_climbs() -> None:
    rates = [learning_rate(schedule(warmup_steps=50, steps=3), step) for step in range(3)]
    assert rates == pytest.approx([0.8 / 51, 1.6 / 51, 2.4 / 51])
    assert learning_rate(schedule(warmup_steps=3, steps=3), 2) == pytest.approx(0.6)


def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_only_weights_of_convolutions_and_linear_layers_decay(name: str) -> None:
    module = network()
    optimizer = build_optimizer(module, schedule(optimizer=name, weight_decay=0.25, learning_rate=0.5))
    for group in optimizer.param_groups:
        group["lr"] = 0.5
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    # Without a gradient, decay is all that moves a weight: by a factor of 1 - lr * decay.
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for key, value in module.named_parameters():
        factor = 1 - 0.5 * 0.25 if key in ("0.weight", "3.weight") else 1.0
        torch.testing.assert_close(value.detach(), before[key] * factor)


def test_frozen_weights_have_no_part() -> None:
    module = network()
    module[0].requires_grad_(False)
    optimizer = build_optimizer(module, schedule())
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for name, parameter in module.named_parameters() if not name.startswith("0.")}


def test_sgd_by_hand() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    optimizer = build_optimizer(module, schedule(optimizer="sgd", weight_decay=0.1, learning_rate=0.1))
    for _ in range(2):
        module.weight.grad = torch.ones(1, 1)
        optimizer.step()
    # Velocity 1 + 0.1 * 1 = 1.1, weight 0.89; velocity 0.9 * 1.1 + 1 + 0.089 = 2.079, weight 0.6821.
    assert float(module.weight.detach()) == pytest.approx(0.6821)


def test_adamw_by_hand() -> None:
    module = nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    optimizer = build_optimizer(module, schedule(weight_decay=0.1, learning_rate=0.1))
    module.weight.grad = torch.full((1, 1), 7.0)
    optimizer.step()
    # The first step is one learning rate long, whatever the gradient; the decay is apart from it.
    assert float(module.weight.detach()) == pytest.approx(1 - 0.1 * 0.1 - 0.1)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_both_are_fused(name: str) -> None:
    assert all(group["fused"] for group in build_optimizer(network(), schedule(optimizer=name)).param_groups)
