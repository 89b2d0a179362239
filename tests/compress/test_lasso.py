"""LASSO pruning against cases whose answer is known, and scikit-learn's own regression on the products themselves."""

import copy

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso
from timm.layers import Conv2dSame
from torch import nn

from qmimic.compress.cost import equal_share
from qmimic.compress.lasso import Evidence, _sample, choose, prune_by_lasso, refit
from qmimic.config import PruningConfig
from qmimic.data.loader import Batch
from qmimic.detectors.channels import channel_groups, keep_channels, layer, widths
from qmimic.detectors.convolution import Conv2d
from tiny_detectors import as_targets, lively, some_images, some_truth, tiny_spec


def drawn(channels: int, places: int, outputs: int, samples: int = 60, seed: int = 0) -> Evidence:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(samples, channels * places, generator=generator, dtype=torch.float64)
    weights = torch.randn(outputs, channels * places, generator=generator, dtype=torch.float64)
    return Evidence(inputs, inputs @ weights.T, weights)


def test_the_choice_is_that_of_the_regression_written_out() -> None:
    own = drawn(channels=8, places=9, outputs=5)
    x = own.inputs.view(60, 8, 9)
    products = torch.einsum("ncp,ocp->noc", x, own.weights.view(5, 8, 9)).reshape(-1, 8).numpy()
    target = own.outputs.reshape(-1).numpy()
    for count in (2, 4, 6):
        kept = choose([own], 8, count).tolist()
        # The largest lambda that leaves so many, found by raising it as the paper does.
        low, high = 1e-6, float(np.abs(products.T @ target).max())
        for _ in range(60):
            middle = (low * high) ** 0.5
            beta = Lasso(alpha=middle, fit_intercept=False, max_iter=100_000, tol=1e-10).fit(products, target).coef_
            low, high = (middle, high) if (np.abs(beta) > 1e-9).sum() >= count else (low, middle)
        beta = Lasso(alpha=low, fit_intercept=False, max_iter=100_000, tol=1e-10).fit(products, target).coef_
        assert kept == sorted(np.argsort(np.abs(beta))[-count:].tolist())


def test_channels_that_say_nothing_go_first_and_twins_are_mended() -> None:
    own = drawn(channels=6, places=4, outputs=3)
    inputs = own.inputs.view(60, 6, 4).clone()
    inputs[:, 1] = 0  # dead
    weights = own.weights.view(3, 6, 4).clone()
    inputs[:, 4], weights[:, 4] = inputs[:, 2], weights[:, 2]  # twins
    own = Evidence(inputs.flatten(1), inputs.flatten(1) @ weights.flatten(1).T, weights.flatten(1))
    kept = choose([own], 6, 4)
    assert 1 not in kept.tolist()
    assert {0, 3, 5} <= set(kept.tolist())
    found = refit(own, 6, kept)
    rebuilt = own.inputs.view(60, 6, 4)[:, kept].flatten(1) @ found.T
    assert float((rebuilt - own.outputs).abs().max()) < 1e-2 * float(own.outputs.abs().max())


def test_layers_that_share_channels_decide_together() -> None:
    one, other = drawn(4, 1, 2, seed=1), drawn(4, 1, 2, seed=2)
    quiet = Evidence(one.inputs, torch.zeros_like(one.outputs), torch.zeros_like(one.weights))
    assert choose([one, quiet], 4, 2).tolist() == choose([one], 4, 2).tolist()
    loud = Evidence(other.inputs, 1000 * other.outputs, 1000 * other.weights)
    assert choose([one, other], 4, 2).tolist() == choose([one, loud], 4, 2).tolist()  # errors are relative


def two_batches() -> list[Batch]:
    targets = as_targets(some_truth())
    return [Batch(some_images(seed), targets, (), (), torch.arange(2)) for seed in (1, 2)]


@torch.no_grad()
def test_a_pruned_detector_resembles_the_whole_one_more_than_one_cut_anyhow() -> None:
    for settings in ({}, {"backbone": "vgg16/16", "architecture": "rfcn", "roi_size": 3}):
        detector = lively(tiny_spec(**settings)).eval()
        left = {name: max(1, count * 3 // 4) for name, count in widths(detector, channel_groups(detector)).items()}
        config = PruningConfig(method="lasso", images=4, places=60)
        done: list[int] = []
        pruned = prune_by_lasso(detector, left, config, two_batches(), 0, done.append)
        assert widths(pruned, channel_groups(pruned)) == left
        assert done == list(range(1, len(left) + 1))
        images = some_images(1)
        whole, fitted = detector.rpn(detector.features(images).map)[0], pruned.rpn(pruned.features(images).map)[0]
        anyhow = copy.deepcopy(detector)
        keep_channels(anyhow, {name: torch.arange(count) for name, count in left.items()})
        cut = anyhow.rpn(anyhow.features(images).map)[0]
        assert float((fitted - whole).norm()) < 0.7 * float((cut - whole).norm())


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet18/16", "resnet18_separable/16", "timm:mobilenetv3_small_050"])
def test_keeping_every_channel_keeps_the_function(backbone: str) -> None:
    detector = lively(tiny_spec(backbone=backbone)).eval()
    full = widths(detector, channel_groups(detector))
    assert equal_share(detector, 1e18) == full
    config = PruningConfig(method="lasso", images=4, places=20)
    same = prune_by_lasso(detector, full, config, two_batches(), 0, lambda _: None)
    images = some_images(3)
    found, wanted = same.rpn(same.features(images).map), detector.rpn(detector.features(images).map)
    for own, other in zip(found, wanted, strict=True):
        assert float((own - other).norm()) < 1e-3 * float(other.norm())
    assert layer(same, "head.fc1").weight.shape == layer(detector, "head.fc1").weight.shape


@pytest.mark.parametrize("size", [(16, 20), (15, 17)])
@pytest.mark.parametrize(
    "conv",
    [Conv2d(3, 5, 3, 2, 2, 2), Conv2d(3, 5, 7, 2, 3), Conv2dSame(3, 5, 3, stride=2), Conv2dSame(3, 5, 5, stride=2)],
    ids=repr,
)
def test_samples_are_what_a_convolution_reads(conv: nn.Conv2d, size: tuple[int, int]) -> None:
    conv = conv.eval()
    images = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    inputs, outputs = _sample(conv, images, conv(images), 3, 40, torch.Generator().manual_seed(1))
    weights = conv.weight.double().flatten(1)
    assert conv.bias is not None
    torch.testing.assert_close(inputs @ weights.T + conv.bias.double(), outputs, rtol=1e-5, atol=1e-5)
