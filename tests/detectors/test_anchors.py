"""The grid of anchors by hand, and anchors fitted to clear clusters."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qmimic.detectors.anchors import anchor_grid
from qmimic.detectors.fitted import MOST_BOXES, fit_anchors

CENTRES = np.array([[10, 10], [40, 20], [20, 80], [100, 90]])


def clusters(seed: int, each: int = 60) -> NDArray[np.float32]:
    """Widths and heights within a tenth of one of the centres, shuffled."""
    random = np.random.default_rng(seed)
    boxes = np.repeat(CENTRES, each, 0) * random.uniform(0.9, 1.1, (each * len(CENTRES), 2))
    return random.permutation(boxes).astype(np.float32)


def test_grid_of_two_anchors_over_two_rows_and_three_columns() -> None:
    grid = anchor_grid(((4.0, 8.0), (16.0, 2.0)), (32, 48), 16)
    assert grid.dtype == torch.float32
    assert grid.tolist() == [
        *([6, 4, 10, 12], [22, 4, 26, 12], [38, 4, 42, 12]),
        *([6, 20, 10, 28], [22, 20, 26, 28], [38, 20, 42, 28]),
        *([0, 7, 16, 9], [16, 7, 32, 9], [32, 7, 48, 9]),
        *([0, 23, 16, 25], [16, 23, 32, 25], [32, 23, 48, 25]),
    ]


@given(
    sizes=st.lists(st.tuples(st.floats(1, 200), st.floats(1, 200)), min_size=1, max_size=4),
    rows=st.integers(1, 6),
    columns=st.integers(1, 6),
    stride=st.sampled_from([8, 16]),
)
@settings(max_examples=25, deadline=None)
def test_anchors_are_centred_in_their_cells_and_keep_their_sizes(
    sizes: list[tuple[float, float]], rows: int, columns: int, stride: int
) -> None:
    grid = anchor_grid(tuple(sizes), (rows * stride, columns * stride), stride).double().numpy()
    for place, (x1, y1, x2, y2) in enumerate(grid):
        anchor, cell = divmod(place, rows * columns)
        row, column = divmod(cell, columns)
        assert (x2 - x1, y2 - y1) == pytest.approx(sizes[anchor], abs=1e-3)
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx(
            ((column + 0.5) * stride, (row + 0.5) * stride), abs=1e-3
        )


@pytest.mark.parametrize("seed", range(5))
def test_clear_clusters_are_found_in_growing_order_of_area(seed: int) -> None:
    fitted = np.array(fit_anchors(clusters(seed), len(CENTRES), seed))
    np.testing.assert_allclose(fitted, CENTRES, rtol=0.06)


def test_of_many_boxes_a_sample_will_do() -> None:
    fitted = np.array(fit_anchors(clusters(0, MOST_BOXES // 3), len(CENTRES)))
    np.testing.assert_allclose(fitted, CENTRES, rtol=0.06)


def test_one_anchor_is_the_median_box() -> None:
    boxes = np.array([[10, 30], [20, 10], [90, 20]], np.float32)
    assert fit_anchors(boxes, 1) == ((20.0, 20.0),)


def test_the_seed_decides() -> None:
    boxes = np.random.default_rng(0).uniform(5, 100, (80, 2)).astype(np.float32)
    assert fit_anchors(boxes, 6, 3) == fit_anchors(boxes, 6, 3)
    assert fit_anchors(boxes.copy(), 6) == fit_anchors(boxes, 6, 0)


def test_boxes_of_few_sizes_give_no_more_anchors_than_sizes() -> None:
    boxes = np.array([[10, 10]] * 5 + [[50, 20]] * 3, np.float32)
    assert fit_anchors(boxes, 9) == ((10.0, 10.0), (50.0, 20.0))
    assert fit_anchors(boxes[:1], 9) == ((10.0, 10.0),)


@given(st.integers(0, 10**6), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_fitted_anchors_lie_within_the_range_of_the_boxes(seed: int, count: int) -> None:
    boxes = np.random.default_rng(seed).uniform(2, 120, (30, 2)).astype(np.float32)
    fitted = np.array(fit_anchors(boxes, count, seed))
    assert len(fitted) == count
    assert (fitted >= boxes.min(0) - 0.01).all()
    assert (fitted <= boxes.max(0) + 0.01).all()
    assert (np.diff(fitted.prod(1)) >= -1).all()
