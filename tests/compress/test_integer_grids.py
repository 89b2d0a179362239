"""Maps and weights lie on the grids that an int8 file has."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from qmimic.compress.integer_grids import (
    WEIGHT_LIMIT,
    Grid,
    calibrate,
    grid_names,
    keep_float,
    layers,
    map_grids,
    prepare_qat,
    round_to_grid,
)
from qmimic.config import QuantizerConfig
from qmimic.detectors.detector import Detector
from qmimic.detectors.quantize import Quantizer
from qmimic.errors import InputError
from tiny_detectors import as_targets, lively, some_images, some_truth, tiny_spec

KINDS = {
    "faster_rcnn": {},
    "rfcn": {"architecture": "rfcn", "roi_size": 3},
    "vgg": {"backbone": "vgg16/32"},
    "vgg, stride 8": {"backbone": "vgg16/32", "output_stride": 8},
    "vgg, separable": {"backbone": "vgg16_separable/16"},
    "separable": {"backbone": "resnet18_separable/16"},
    "grouped": {"backbone": "resnet18_grouped/16"},
    "resnet50": {"backbone": "resnet50/16"},
}


def gridded(detector: Detector, seed: int = 7) -> Detector:
    found = prepare_qat(detector)
    calibrate(found, [some_images(seed, 4, detector.spec.size)])
    return found


@given(
    st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=20),
    st.floats(0.03125, 4, width=32),
    st.sampled_from([(-128, 127), (0, 255), (0, 15), (-63, 63)]),
)
def test_rounding_is_the_equation(values: list[float], scale: float, limits: tuple[int, int]) -> None:
    exact = np.clip(np.rint(np.float64(values) / np.float64(scale)), *limits) * np.float64(scale)
    found = round_to_grid(torch.tensor(values), torch.tensor([scale]), *limits).numpy()
    # A value within rounding of a midpoint may go either way.
    ratio = np.float64(values) / np.float64(scale)
    tie = np.abs(np.abs(ratio - np.floor(ratio)) - 0.5) < 1e-4
    np.testing.assert_allclose(found[~tie], exact[~tie], rtol=1e-6)
    assert (np.abs(found - exact)[tie] <= scale * 1.001).all()


def test_the_gradient_passes_where_the_grid_does_not_cut() -> None:
    x = torch.tensor([-1.0, 0.3, 2.0, 300.0], requires_grad=True)
    round_to_grid(x, torch.tensor([1.0]), 0, 255).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_on_a_grid_it_is_the_detector(kind: str) -> None:
    detector = lively(tiny_spec(**KINDS[kind])).eval()
    found = gridded(detector)
    map_grids(found)[0].enabled = False
    found = keep_float(found, *grid_names(found))
    assert not grid_names(found)
    images = some_images(1, 3)
    torch.testing.assert_close(found.features(images).map, detector.features(images).map, rtol=1e-3, atol=1e-3)
    ours, theirs = found.detect(images), detector.detect(images)
    torch.testing.assert_close(ours.scores[:, :5], theirs.scores[:, :5], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_maps_and_weights_lie_on_their_grids(kind: str) -> None:
    detector = lively(tiny_spec(**KINDS[kind])).eval()
    found = gridded(detector)
    levels = found.features(some_images(1, 3)).map / map_grids(found)[0].scale
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    assert 0 <= levels.min() < levels.max() <= 255.01
    for name, layer in layers(found).items():
        assert parametrize.is_parametrized(layer), name
        original = layer.parametrizations["weight"].original.flatten(1)
        steps = layer.weight.flatten(1) / (original.abs().amax(1, keepdim=True) / WEIGHT_LIMIT)
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
        assert steps.abs().max() <= WEIGHT_LIMIT + 1e-3
    seen: dict[str, bool] = {}

    def look(name: str, layer: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0].flatten()
            seen[name] = len(values.unique()) <= 256

        layer.register_forward_pre_hook(hook)

    for name, layer in layers(found).items():
        look(name, layer)
    found.detect(some_images(1, 3))
    assert all(seen.values()), [name for name, on_grid in seen.items() if not on_grid]


def test_the_stride_of_training_is_the_scale() -> None:
    detector = lively(tiny_spec()).eval()
    detector.quantizer = Quantizer(QuantizerConfig(upper=9), torch.tensor([0.25]))
    found = gridded(detector)
    assert map_grids(found)[0].scale.item() == 0.25
    assert map_grids(found)[0].high == 9
    assert found.quantizer is None
    found = keep_float(found, *grid_names(found))
    images = some_images(3, 2)
    torch.testing.assert_close(found.features(images).map, detector.features(images).map)


@pytest.mark.parametrize(
    ("config", "stride"), [(QuantizerConfig(kind="power_of_two"), 1), (QuantizerConfig(per_channel=True), 32)]
)
def test_maps_without_one_scale_are_refused(config: QuantizerConfig, stride: int) -> None:
    detector = lively(tiny_spec()).eval()
    detector.quantizer = Quantizer(config, torch.full((stride,), 0.25))
    with pytest.raises(InputError, match="An integer map has one scale"):
        prepare_qat(detector)


def test_a_calibrated_scale_is_that_of_least_error() -> None:
    grid = Grid(signed=False)
    values = torch.randn(1, 4096, generator=torch.Generator().manual_seed(0)).abs()
    values[0, 0] = 40  # one outlier must not coarsen the grid of all others
    grid.observe()
    assert torch.equal(grid(values), values)
    grid.calibrate()

    def error(scale: float) -> float:
        return float((values.double() - (values.double() / scale).round().clamp(0, 255) * scale).square().sum())

    tried = np.geomspace(40 / 255 / 12, 40 / 255, 200)
    assert error(grid.scale.item()) <= 1.1 * min(map(error, tried))


def test_it_can_be_trained_on_its_grids() -> None:
    found = gridded(lively(tiny_spec()).eval()).train()
    images, targets = some_images(5), as_targets(some_truth())
    optimizer = torch.optim.SGD(found.parameters(), 1e-3)
    losses = []
    for _ in range(12):
        output = found.losses(found.features(images), targets, torch.Generator().manual_seed(0))
        loss = sum(output.losses.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(parameter.grad is not None for parameter in found.parameters())
