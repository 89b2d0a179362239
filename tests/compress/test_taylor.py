"""The Taylor criterion against differences of the loss, and the choice by hand."""

import math
from collections.abc import Iterable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmimic.compress.cost import Cost
from qmimic.compress.taylor import TOLERANCE, gated, halvings, least, unit
from qmimic.config import AugmentConfig
from qmimic.detectors.build import build
from qmimic.detectors.channels import channel_groups, widths
from qmimic.training.step import DetectionObjective, StepGenerators
from tiny_detectors import as_targets, lively, some_images, some_truth, tiny_spec

STILL = AugmentConfig(flip=0, scale=(1, 1), shift=0, colour=0)


@pytest.mark.parametrize("settings", [{}, {"backbone": "vgg16/16", "architecture": "rfcn", "roi_size": 3}])
def test_a_gate_s_gradient_is_the_loss_s_change_when_the_channel_fades(settings: dict[str, object]) -> None:
    detector = lively(tiny_spec(**settings)).eval()
    objective = DetectionObjective(detector, STILL).eval()
    images, targets = some_images(1), as_targets(some_truth())

    def loss(fade: dict[str, tuple[int, float]]) -> torch.Tensor:
        chance = StepGenerators(torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
        with gated(detector, len(images)) as gates:
            for name, (channel, factor) in fade.items():
                with torch.no_grad():
                    gates[name][:, channel] = factor
            total = sum(objective(images, targets, chance, 0.0).values())
            total.backward()
        seen.update({name: gate.grad.sum(0) for name, gate in gates.items() if gate.grad is not None})
        return total.detach()

    seen: dict[str, torch.Tensor] = {}
    loss({})
    gradients = dict(seen)
    # The loss has kinks (proposals are chosen anew), so only where the network is smooth: the head's own units.
    for name in [name for name in channel_groups(detector) if name.startswith("head")]:
        for channel in (0, 3):
            step = 1e-2
            slope = (loss({name: (channel, 1 + step)}) - loss({name: (channel, 1 - step)})) / (2 * step)
            assert float(gradients[name][channel]) == pytest.approx(float(slope), rel=3e-2, abs=1e-4)


# Shortcuts; depthwise convolutions before and behind others; squeeze-and-excitation.
@pytest.mark.parametrize(
    "backbone", ["resnet18/16", "resnet18_separable/16", "yunet/16", "repvgg/16", "timm:mobilenetv3_small_050"]
)
def test_a_gate_s_gradient_is_a_difference_in_the_backbone_too(backbone: str) -> None:
    detector = lively(tiny_spec(backbone=backbone)).eval().double()
    images = some_images(1).double()
    weights = torch.randn(detector.features(images).map.shape, generator=torch.Generator().manual_seed(0)).double()
    chosen: dict[str, int] = {}
    slopes: dict[str, float] = {}

    def loss(fading: str, factor: float) -> float:
        with gated(detector, len(images)) as gates:
            with torch.no_grad():
                for name in gates:
                    gates[name].data = gates[name].double()
                if fading:
                    gates[fading][:, chosen[fading]] = factor
            total = (detector.features(images).map * weights).sum()
            total.backward()
        if not fading:
            for name, gate in gates.items():
                if gate.grad is not None:
                    chosen[name] = int(gate.grad.sum(0).abs().argmax())
                    slopes[name] = float(gate.grad.sum(0)[chosen[name]])
        return float(total.detach())

    loss("", 1)
    groups = [name for name in channel_groups(detector) if name.startswith("backbone")]
    assert set(groups) <= set(slopes)
    for name in groups:
        difference = (loss(name, 1 + 1e-5) - loss(name, 1 - 1e-5)) / 2e-5
        assert slopes[name] == pytest.approx(difference, rel=2e-2), name


def test_gates_leave_the_function_alone_and_go_away() -> None:
    detector = lively(tiny_spec()).eval()
    images = some_images(2)
    plain = detector.features(images).map
    with gated(detector, len(images)) as gates:
        torch.testing.assert_close(detector.features(images).map, plain)
        assert {name: gate.shape[1] for name, gate in gates.items()} == widths(detector, channel_groups(detector))
        with torch.no_grad():
            gates["backbone.conv1"].zero_()  # the shortcut's channels are gone everywhere
        assert not torch.allclose(detector.features(images).map, plain)
    torch.testing.assert_close(detector.features(images).map, plain)


def ones(groups: Iterable[str]) -> dict[str, int]:
    return dict.fromkeys(groups, 1)


def test_those_that_matter_least_for_their_cost_go_until_the_cost_is_met() -> None:
    cost = Cost(lively(tiny_spec()))
    generator = torch.Generator().manual_seed(0)
    criterion = {name: torch.rand(count, generator=generator) + 0.1 for name, count in cost.full.items()}
    goal = 0.5 * cost.of({})
    floor = ones(criterion)
    kept = least(criterion, cost, goal, goal, 3.0, floor, [ones(criterion)])
    assert abs(cost.of({name: len(index) for name, index in kept.items()}) / goal - 1) <= TOLERANCE
    for name, index in kept.items():
        values = criterion[name]
        gone = [c for c in range(len(values)) if c not in index.tolist()]
        assert len(index) >= 1
        assert not gone or float(values[gone].max()) <= float(values[index].min())
    # Scale within a group says nothing: groups are normalised.
    scaled = {name: values * (1 + 7 * place) for place, (name, values) in enumerate(criterion.items())}
    assert all(
        torch.equal(index, kept[name])
        for name, index in least(scaled, cost, goal, goal, 3.0, floor, [ones(criterion)]).items()
    )


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(["resnet18/4", "resnet18/16", "vgg16_separable/16", "yunet/32"]),
    st.integers(1, 16),
    st.floats(0.2, 0.9),
    st.integers(0, 99),
)
def test_what_is_pruned_keeps_a_multiple_and_meets_the_cost(
    backbone: str, multiple: int, share: float, seed: int
) -> None:
    cost = Cost(build(tiny_spec(backbone=backbone)))
    generator = torch.Generator().manual_seed(seed)
    criterion = {name: torch.rand(count, generator=generator) for name, count in cost.full.items()}
    units = {name: unit(multiple, math.ceil(share**0.5 * count)) for name, count in cost.full.items()}
    goal = share * cost.of({})
    rough = least(criterion, cost, goal, goal, 3.0, ones(criterion), [units])
    exact = least(criterion, cost, goal, goal, 3.0, ones(criterion), halvings(units))
    for name, index in rough.items():
        assert len(index) in (cost.full[name], len(index) // units[name] * units[name])
        assert set(exact[name].tolist()) <= set(index.tolist())  # it goes on from there
        gone = [c for c in range(cost.full[name]) if c not in exact[name].tolist()]
        assert not gone or float(criterion[name][gone].max()) <= float(criterion[name][exact[name]].min())
    single = least(criterion, cost, goal, goal, 3.0, ones(criterion), [ones(criterion)])
    reached, possible = (cost.of({name: len(i) for name, i in one.items()}) / goal for one in (exact, single))
    assert 1 - TOLERANCE <= reached <= max(1 + TOLERANCE, 1.05 * possible)


def test_a_narrow_layer_keeps_a_multiple_of_less() -> None:
    assert [unit(8, equal) for equal in (64, 8, 7, 4, 3, 1)] == [8, 8, 4, 4, 2, 1]
    assert [unit(multiple, 5) for multiple in (1, 6, 12)] == [1, 3, 3]


def test_no_layer_falls_below_its_floor_and_a_floor_below_all_changes_nothing() -> None:
    cost = Cost(lively(tiny_spec()))
    generator = torch.Generator().manual_seed(0)
    criterion = {name: torch.rand(count, generator=generator) + 0.1 for name, count in cost.full.items()}
    criterion["head.fc1"][2:] = 0  # all but two of its units are worth nothing
    goal = 0.5 * cost.of({})
    free = least(criterion, cost, goal, goal, 0.0, ones(criterion), [ones(criterion)])
    assert len(free["head.fc1"]) == 2
    widths_of = {name: len(index) for name, index in free.items()}
    again = least(criterion, cost, goal, goal, 0.0, widths_of, [ones(criterion)])
    assert all(torch.equal(index, free[name]) for name, index in again.items())
    held = least(criterion, cost, goal, goal, 0.0, {**ones(criterion), "head.fc1": 5}, [ones(criterion)])
    assert len(held["head.fc1"]) == 5
    assert {0, 1} <= set(held["head.fc1"].tolist())
    assert abs(cost.of({name: len(index) for name, index in held.items()}) / goal - 1) <= TOLERANCE
