"""Images fitted into the network's input, and boxes there and back."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qmimic.data.images import read_image
from qmimic.data.letterbox import FILL, fit, letterbox, letterbox_file

sides = st.integers(1, 5000)
inputs = st.tuples(st.integers(2, 40), st.integers(2, 40)).map(lambda s: (16 * s[0], 16 * s[1]))


@given(width=sides, height=sides, size=inputs, shares=st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_undo_is_the_inverse_of_the_scale(width: int, height: int, size: tuple[int, int], shares: list[float]) -> None:
    placed = fit(width, height, size)
    boxes = np.array([shares], np.float32) * np.array([width, height, width, height], np.float32)
    there = boxes * placed.scale
    assert np.allclose(placed.undo(there), boxes, rtol=1e-5, atol=1e-3)
    assert (there <= np.array([size[1], size[0], size[1], size[0]]) * (1 + 1e-6)).all()


@given(width=sides, height=sides, size=inputs)
def test_the_image_fills_one_side_and_keeps_its_shape(width: int, height: int, size: tuple[int, int]) -> None:
    inner_width, inner_height = fit(width, height, size).inner
    assert inner_width == size[1] or inner_height == size[0]
    assert 1 <= inner_width <= size[1]
    assert 1 <= inner_height <= size[0]
    # Rounding moves a side by half a pixel at most, unless it would vanish.
    scale = min(size[1] / width, size[0] / height)
    assert abs(inner_width - width * scale) <= 0.5 or inner_width == 1
    assert abs(inner_height - height * scale) <= 0.5 or inner_height == 1


def test_boxes_are_clipped_to_the_original() -> None:
    placed = fit(200, 100, (64, 64))
    assert placed.undo(np.array([[-5, -5, 70, 70]], np.float32)).tolist() == [[0, 0, 200, 100]]
    assert placed.undo(np.zeros((0, 4), np.float32)).shape == (0, 4)


def test_an_image_of_the_right_size_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)
    out, placed = letterbox(Image.fromarray(pixels), (32, 48))
    assert out.dtype == np.uint8
    assert np.array_equal(out, pixels)
    assert placed.scale.tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("size", [(400, 300), (300, 400), (7, 1000), (1, 1)])
def test_boxes_stay_on_their_pixels_and_the_rest_is_filled(size: tuple[int, int]) -> None:
    width, height = size
    pixels = np.zeros((height, width, 3), np.uint8)
    x1, y1, x2, y2 = box = (width // 4, height // 4, -(-3 * width // 4), -(-3 * height // 4))
    pixels[y1:y2, x1:x2] = 255
    out, placed = letterbox(Image.fromarray(pixels), (96, 128))
    assert out.shape == (96, 128, 3)
    inner_width, inner_height = placed.inner
    assert (out[inner_height:] == FILL).all()
    assert (out[:, inner_width:] == FILL).all()
    white = out[:inner_height, :inner_width, 0] > 127
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert np.abs(np.array(seen) - np.array(box) * placed.scale).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(32, 48), (64, 64), (96, 256)])
def test_a_file_is_fitted_as_its_picture_is(tmp_path: Path, orientation: int, size: tuple[int, int]) -> None:
    coarse = np.random.default_rng(orientation).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    photo = Image.fromarray(coarse).resize((643, 479), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo.save(tmp_path / "photo.jpg", quality=95, exif=exif)
    pixels, placed = letterbox_file(tmp_path / "photo.jpg", size)
    wanted, where = letterbox(read_image(tmp_path / "photo.jpg"), size)
    assert placed == where  # of the whole picture's size, however small it was read
    difference = np.abs(pixels.astype(int) - wanted)
    assert difference.mean() < 1  # grey levels


def test_only_jpegs_lose_anything(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 600, 3), dtype=np.uint8)
    for name, same in (("a.png", True), ("a.jpg", False)):
        Image.fromarray(noise).save(tmp_path / name)
        pixels, _ = letterbox_file(tmp_path / name, (64, 96))
        assert np.array_equal(pixels, letterbox(read_image(tmp_path / name), (64, 96))[0]) == same
