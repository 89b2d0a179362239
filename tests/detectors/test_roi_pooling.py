"""RoIAlign against torchvision's; RoIPool against a loop over bins."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_align as torchvision_roi_align
from torchvision.ops import roi_pool as torchvision_roi_pool

from qmimic.detectors.roi_pooling import ROI_POOLINGS, RepeatableRoiPool, roi_align, roi_pool

Pool = Callable[[Tensor, Tensor, int, int], Tensor]

STRIDE = 16
MAP = (2, 3, 7, 9)  # of an image 112 pixels high and 144 wide


def random_map(seed: int, shape: tuple[int, ...] = MAP) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_rois(seed: int, count: int = 6, low: float = -40.0, high: float = 180.0) -> Tensor:
    """Boxes [2, count, 4], many of which reach over the border."""
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(2, count, 2, generator=generator) * (high - low) + low for _ in range(2))
    return torch.cat([torch.minimum(a, b), torch.maximum(a, b)], -1)


def reference_align(features: Tensor, rois: Tensor, size: int, stride: int) -> Tensor:
    flat = torchvision_roi_align(features, list(rois), size, 1 / stride, sampling_ratio=2, aligned=True)
    return flat.unflatten(0, rois.shape[:2])


def naive_pool(features: Tensor, rois: Tensor, size: int, stride: int) -> Tensor:
    """Max over the cells of each bin, as Girshick's Fast R-CNN has it; an empty bin is 0."""
    height, width = features.shape[2:]
    regions = []
    for image, boxes in zip(features, rois.tolist(), strict=True):
        for box in boxes:
            x1, y1, x2, y2 = (math.floor(side / stride + 0.5) for side in box)
            across, down = max(x2 - x1 + 1, 1) / size, max(y2 - y1 + 1, 1) / size
            bins = []
            for row in range(size):
                top, bottom = math.floor(row * down) + y1, math.ceil((row + 1) * down) + y1
                for column in range(size):
                    left, right = math.floor(column * across) + x1, math.ceil((column + 1) * across) + x1
                    ys, xs = range(max(top, 0), min(bottom, height)), range(max(left, 0), min(right, width))
                    cells = [image[:, y, x] for y in ys for x in xs]
                    bins.append(torch.stack(cells).amax(0) if cells else image.new_zeros(len(image)))
            regions.append(torch.stack(bins, -1).unflatten(-1, (size, size)))
    return torch.stack(regions).unflatten(0, rois.shape[:2])


@given(seed=st.integers(0, 10**6), size=st.integers(1, 7), stride=st.sampled_from([8, 16]))
@settings(max_examples=40, deadline=None)
def test_roi_align_equals_torchvision_also_over_the_border(seed: int, size: int, stride: int) -> None:
    features, rois = random_map(seed), random_rois(seed + 1)
    pooled = roi_align(features, rois, size, stride)
    torch.testing.assert_close(pooled, reference_align(features, rois, size, stride), atol=1e-5, rtol=1e-5)


def reference_pool(features: Tensor, rois: Tensor, size: int, stride: int) -> Tensor:
    return torchvision_roi_pool(features, list(rois), size, 1 / stride).unflatten(0, rois.shape[:2])


def repeatable_pool(features: Tensor, rois: Tensor, size: int, stride: int) -> Tensor:
    """As on a GPU."""
    index = torch.arange(len(rois)).repeat_interleave(rois.shape[1]).float()
    flat = torch.cat([index[:, None], rois.flatten(0, 1)], 1)
    return RepeatableRoiPool.apply(features, flat, size, 1 / stride)[0].unflatten(0, rois.shape[:2])


@pytest.mark.parametrize(
    "pools", [(roi_align, reference_align), (roi_pool, reference_pool), (repeatable_pool, reference_pool)]
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pooling_and_its_gradient_equal_torchvision_in_both_layouts(
    layout: torch.memory_format, pools: tuple[Pool, Pool]
) -> None:
    rois, weights = random_rois(1), random_map(2, (2, 6, 3, 5, 5))
    gradients, values = [], []
    for pool in pools:
        features = random_map(0).contiguous(memory_format=layout).requires_grad_()
        values.append(pool(features, rois, 5, STRIDE))
        (values[-1] * weights).sum().backward()
        gradients.append(features.grad)
    torch.testing.assert_close(values[0], values[1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)
    assert gradients[0].abs().sum() > 1


@pytest.mark.parametrize(
    "box",
    [
        (0.0, 0.0, 144.0, 112.0),
        (0.0, 0.0, 0.0, 0.0),
        (20.0, 30.0, 20.0, 30.0),
        (20.0, 30.0, 20.5, 30.25),
        (-500.0, -500.0, -400.0, -400.0),
        (500.0, 500.0, 600.0, 600.0),
        (-300.0, -300.0, 500.0, 500.0),
        (143.0, 111.0, 144.0, 112.0),
        (-24.0, -24.0, 8.0, 8.0),
    ],
)
def test_roi_align_of_special_boxes_equals_torchvision(box: tuple[float, ...]) -> None:
    features, rois = random_map(0), torch.tensor(box).expand(2, 1, 4)
    torch.testing.assert_close(
        roi_align(features, rois, 5, STRIDE), reference_align(features, rois, 5, STRIDE), atol=1e-5, rtol=1e-5
    )


def test_roi_align_of_a_map_of_one_entry_equals_torchvision() -> None:
    features, rois = random_map(0, (2, 3, 1, 1)), random_rois(1, low=-10, high=30)
    torch.testing.assert_close(
        roi_align(features, rois, 2, STRIDE), reference_align(features, rois, 2, STRIDE), atol=1e-5, rtol=1e-5
    )


def test_roi_align_reads_a_ramp_at_the_centres_of_its_bins() -> None:
    # An entry (x, y) of the map lies at pixel 16 x + 8; the map's value is that pixel.
    ramp = ((torch.arange(9) + 0.5) * STRIDE).expand(1, 1, 7, 9)
    pooled = roi_align(ramp, torch.tensor([[[32.0, 32.0, 96.0, 64.0]]]), 4, STRIDE)
    assert pooled[0, 0, 0].tolist() == [pytest.approx([40.0, 56.0, 72.0, 88.0])] * 4


@given(seed=st.integers(0, 10**6), size=st.integers(1, 6), stride=st.sampled_from([8, 16]))
@settings(max_examples=15, deadline=None)
def test_roi_pool_equals_a_loop_over_bins_also_over_the_border(seed: int, size: int, stride: int) -> None:
    features, rois = random_map(seed), random_rois(seed + 1, 3)
    assert torch.equal(roi_pool(features, rois, size, stride), naive_pool(features, rois, size, stride))


def test_gradient_of_roi_pool_equals_that_of_the_loop() -> None:
    rois, weights = random_rois(1, 4, 0, 140), random_map(2, (2, 4, 3, 5, 5))
    gradients = []
    for pool in (roi_pool, naive_pool):
        features = random_map(0).requires_grad_()
        (pool(features, rois, 5, STRIDE) * weights).sum().backward()
        gradients.append(features.grad)
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pooling", ROI_POOLINGS)
def test_regions_of_an_image_do_not_depend_on_the_rest_of_the_batch(pooling: str) -> None:
    features, rois = random_map(0), random_rois(1)
    together = ROI_POOLINGS[pooling](features, rois, 5, STRIDE)
    alone = ROI_POOLINGS[pooling](features[1:], rois[1:], 5, STRIDE)
    torch.testing.assert_close(together[1:], alone, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pooling", ROI_POOLINGS)
def test_pooled_regions_have_the_type_of_the_map_and_one_shape(pooling: str, dtype: torch.dtype) -> None:
    pooled = ROI_POOLINGS[pooling](random_map(0).to(dtype), random_rois(1), 5, STRIDE)
    assert pooled.dtype == dtype
    assert pooled.shape == (2, 6, 3, 5, 5)


@pytest.mark.parametrize("pooling", ROI_POOLINGS)
def test_boxes_get_no_gradient(pooling: str) -> None:
    rois = random_rois(1).requires_grad_()
    features = random_map(0).requires_grad_()
    ROI_POOLINGS[pooling](features, rois, 5, STRIDE).sum().backward()
    assert rois.grad is None
