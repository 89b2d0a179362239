"""R-FCN's pooling and head against torchvision's position-sensitive pooling."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import ps_roi_align, ps_roi_pool

from qmimic.detectors.position_sensitive_head import vote
from qmimic.detectors.roi_pooling import ROI_POOLINGS
from tiny_detectors import lively, some_images, tiny_spec

STRIDE = 16
HEIGHT, WIDTH = 7, 9  # of the map; the image is 112 pixels high and 144 wide


def random_maps(seed: int, outputs: int, bins: int) -> Tensor:
    return torch.randn(2, outputs * bins**2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(seed))


def random_rois(seed: int, count: int = 6) -> Tensor:
    """Boxes [2, count, 4] within the image, as proposals are."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(2, count, 2, generator=generator) * torch.tensor([144.0, 112.0]) for _ in range(2))
    return torch.cat([torch.minimum(a, b), torch.maximum(a, b)], -1)


def ours(maps: Tensor, rois: Tensor, bins: int, pooling: str) -> Tensor:
    return vote(maps, *ROI_POOLINGS[pooling].bins(rois, bins, STRIDE, (HEIGHT, WIDTH)))


def torchvisions_bins(maps: Tensor, rois: Tensor, bins: int, pooling: str) -> Tensor:
    """Pooled bins [2, P, n, k, k]."""
    if pooling == "align":
        pooled = ps_roi_align(maps, list(rois), bins, 1 / STRIDE, sampling_ratio=2)
    else:
        # torchvision never reads the last row and column, which R-FCN's authors do: give it one more of each.
        pooled = ps_roi_pool(F.pad(maps, (0, 1, 0, 1)), list(rois), bins, 1 / STRIDE)
    return pooled.unflatten(0, rois.shape[:2])


@given(seed=st.integers(0, 10**6), bins=st.integers(1, 7), pooling=st.sampled_from(["align", "pool"]))
@settings(max_examples=60, deadline=None)
def test_the_vote_equals_the_mean_of_torchvisions_bins(seed: int, bins: int, pooling: str) -> None:
    maps, rois = random_maps(seed, 3, bins), random_rois(seed + 1)
    expected = torchvisions_bins(maps, rois, bins, pooling).mean((3, 4))
    torch.testing.assert_close(ours(maps, rois, bins, pooling), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ROI_POOLINGS)
def test_every_bin_reads_its_own_maps(pooling: str) -> None:
    maps, rois, bins = random_maps(0, 2, 3), random_rois(1), 3
    expected = torchvisions_bins(maps, rois, bins, pooling)
    for row in range(bins):
        for column in range(bins):
            alone = torch.zeros_like(maps)
            own = slice(row * bins + column, None, bins**2)
            alone[:, own] = maps[:, own]
            voted = ours(alone, rois, bins, pooling) * bins**2
            torch.testing.assert_close(voted, expected[..., row, column], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ROI_POOLINGS)
def test_the_gradient_equals_torchvisions(pooling: str) -> None:
    rois, weights = random_rois(1), torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(2))
    gradients = []
    for voted in (ours, lambda *args: torchvisions_bins(*args).mean((3, 4))):
        maps = random_maps(0, 3, 4).requires_grad_()
        (voted(maps, rois, 4, pooling) * weights).sum().backward()
        gradients.append(maps.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-6, rtol=1e-5)
    assert gradients[0].abs().sum() > 1


@pytest.mark.parametrize("pooling", ROI_POOLINGS)
@pytest.mark.parametrize(
    "box",
    [
        (0.0, 0.0, 144.0, 112.0),
        (0.0, 0.0, 0.0, 0.0),
        (20.0, 30.0, 20.5, 30.25),
        (143.0, 111.0, 144.0, 112.0),
        (24.0, 24.0, 40.0, 56.0),
    ],
)
def test_special_boxes_equal_torchvision(box: tuple[float, ...], pooling: str) -> None:
    maps, rois = random_maps(0, 3, 5), torch.tensor(box).expand(2, 1, 4)
    expected = torchvisions_bins(maps, rois, 5, pooling).mean((3, 4))
    torch.testing.assert_close(ours(maps, rois, 5, pooling), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("pooling", ROI_POOLINGS)
@pytest.mark.parametrize("classes", [("face",), ("a", "b", "c")])
def test_the_head_is_convolutions_pooling_and_a_mean(classes: tuple[str, ...], pooling: str) -> None:
    spec = tiny_spec(architecture="rfcn", classes=classes, roi_pooling=pooling, roi_size=3, size=(112, 144))
    detector = lively(spec).eval()
    features, rois, head = detector.features(some_images(1, 2, spec.size)).map, random_rois(3), detector.head
    logits, deltas = head(features, rois)
    hidden = torch.relu(head.conv(features))
    assert logits.shape == (2, 6, len(classes) + 1)
    assert deltas.shape == (2, 6, 1, 4)
    for found, layer in ((logits, head.scores), (deltas[:, :, 0], head.deltas)):
        expected = torchvisions_bins(layer(hidden), rois, 3, pooling).mean((3, 4))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
