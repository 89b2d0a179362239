"""Drawn pictures: where the pixels of a frame lie, and sizes."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageColor

from qmimic.detections import Detections
from qmimic.draw import CELL, COLOURS, contact_sheet, draw
from qmimic.errors import notices_said

GROUND = (7, 8, 9)


def picture(width: int = 200, height: int = 160) -> Image.Image:
    return Image.new("RGB", (width, height), GROUND)


def found(*rows: tuple[tuple[float, float, float, float], float, int]) -> Detections:
    return Detections(
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.int64),
    )


def coloured(image: Image.Image, label: int) -> NDArray[np.bool_]:
    """Pixels in the colour of a label, [H, W]."""
    return (np.asarray(image) == ImageColor.getrgb(COLOURS[label])).all(-1)


def test_a_frame_covers_the_outermost_pixels_of_its_box() -> None:
    # 0-based, the far sides exclusive: the box covers columns 50 to 119 and rows 60 to 99.
    drawn = draw(picture(), found(((50, 60, 120, 100), 0.9, 1)), ["cat", "dog"], 0.5)
    frame = coloured(drawn, 1)
    assert frame[60:100, 50].all()
    assert frame[60:100, 119].all()
    assert frame[60, 50:120].all()
    assert frame[99, 50:120].all()
    # Inside and outside, beside and below, the picture is untouched; above is the name.
    ground = (np.asarray(drawn) == GROUND).all(-1)
    assert ground[61:99, 51:119].all()
    assert ground[60:, :50].all()
    assert ground[60:, 120:].all()
    assert ground[100:].all()
    assert not ground[:60].all()


def test_a_box_as_large_as_the_picture_is_seen_on_all_sides() -> None:
    frame = coloured(draw(picture(), found(((0, 0, 200, 160), 0.9, 0)), ["cat"], 0.5), 0)
    assert frame[-1].all()
    assert frame[:, -1].all()
    assert frame[:, 0].all()


def test_large_pictures_have_thicker_frames() -> None:
    drawn = draw(picture(1280, 640), found(((100, 200, 600, 500), 0.9, 0)), ["cat"], 0.5)
    frame = coloured(drawn, 0)
    assert frame[200:500, 100:104].all()
    assert not frame[300, 104]
    assert frame[200:500, 596:600].all()
    assert not frame[300, 600]


def test_size_mode_and_original_are_kept() -> None:
    image = picture(97, 33)
    drawn = draw(image, found(((5, 5, 30, 30), 0.9, 0)), ["cat"], 0.5)
    assert (drawn.size, drawn.mode) == ((97, 33), "RGB")
    assert (np.asarray(image) == GROUND).all()
    assert not (np.asarray(drawn) == GROUND).all()


def test_weak_detections_are_left_out() -> None:
    rows = found(((10, 80, 60, 120), 0.5, 0), ((100, 80, 150, 120), 0.49, 1))
    drawn = draw(picture(), rows, ["cat", "dog"], 0.5)
    assert coloured(drawn, 0).any()
    assert not coloured(drawn, 1).any()
    assert draw(picture(), found(), ["cat"], 0.5).tobytes() == picture().tobytes()


def test_the_best_lies_on_top() -> None:
    box = (50, 60, 120, 100)
    for scores, top in (((0.9, 0.6), 0), ((0.6, 0.9), 1)):
        drawn = draw(picture(), found((box, scores[0], 0), (box, scores[1], 1)), ["cat", "cat"], 0.5)
        assert coloured(drawn, top)[60:100, 50].all()


def test_colours_come_round() -> None:
    classes = [f"class{index}" for index in range(len(COLOURS) + 1)]
    drawn = draw(picture(), found(((50, 60, 120, 100), 0.9, len(COLOURS))), classes, 0.5)
    assert coloured(drawn, 0)[60:100, 50].all()


@pytest.mark.parametrize(
    "box", [(50, 60, 50, 60), (50, 60, 50.5, 60.2), (-20, -20, 400, 400), (0, 0, 1, 1), (199, 159, 200, 160)]
)
def test_odd_boxes_are_drawn_without_complaint(box: tuple[float, float, float, float]) -> None:
    drawn = draw(picture(), found((box, 0.9, 0)), ["naïve 猫"], 0.5)
    assert drawn.size == (200, 160)
    assert drawn.tobytes() != picture().tobytes()


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (3, 1), (4, 2), (7, 3)])
def test_a_sheet_has_a_cell_for_each_picture(count: int, rows: int) -> None:
    sheet = contact_sheet([picture()] * count, 3)
    assert sheet.size == (3 * CELL, rows * CELL)
    pixels = np.asarray(sheet).reshape(rows, CELL, 3, CELL, 3).transpose(0, 2, 1, 3, 4).reshape(-1, CELL, CELL, 3)
    used = (pixels == GROUND).all(-1).any((1, 2))
    assert used.tolist() == [True] * count + [False] * (3 * rows - count)
    assert (pixels[count:] == 255).all()


@pytest.mark.parametrize("size", [(200, 160), (30, 900), (1000, 1), (5, 5)])
def test_pictures_keep_their_shape_and_lie_in_the_middle(size: tuple[int, int]) -> None:
    sheet = np.asarray(contact_sheet([picture(*size)], 1))
    rows, columns = np.nonzero((sheet != 255).all(-1))
    height, width = int(np.ptp(rows)) + 1, int(np.ptp(columns)) + 1
    assert max(width, height) == CELL - 8
    scale = (CELL - 8) / max(size)
    assert (width, height) == pytest.approx((max(1, size[0] * scale), max(1, size[1] * scale)), abs=1)
    assert abs(int(rows.min()) - (CELL - 1 - int(rows.max()))) <= 1
    assert abs(int(columns.min()) - (CELL - 1 - int(columns.max()))) <= 1


def changed(drawn: Image.Image) -> NDArray[np.bool_]:
    return (np.asarray(drawn) != GROUND).any(-1)


@given(
    st.integers(20, 400), st.integers(16, 300), st.floats(-0.1, 1), st.floats(-0.1, 1), st.sampled_from(["a", "x" * 40])
)
def test_a_label_is_whole_inside_the_picture(width: int, height: int, x: float, y: float, name: str) -> None:
    """It is as many pixels of its colour as in the middle of a picture where there is room on all sides, or shrunk."""
    corner = (x * width, y * height)
    drawn = draw(picture(width, height), found(((*corner, corner[0] + 1, corner[1] + 1), 0.9, 0)), [name], 0.5)
    ys, xs = np.nonzero(changed(drawn))
    if name == "a" and width > 60 and height > 30:
        room = draw(
            picture(width * 3, height * 3), found(((width, height, width + 1, height + 1), 0.9, 0)), [name], 0.5
        )
        if max(width * 3, height * 3) < 480:  # letters of one size
            wanted_y, wanted_x = np.nonzero(changed(room))
            assert np.ptp(xs) >= np.ptp(wanted_x) - 1
            assert np.ptp(ys) >= np.ptp(wanted_y) - 2  # the frame, which lies below the label there
    assert drawn.size == (width, height)


@pytest.mark.parametrize("name", ["café ñ ß", "собака", "σκύλος", "قطة"])
def test_letters_that_a_library_s_font_has_are_drawn(name: str) -> None:
    pytest.importorskip("matplotlib")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn, number = (
            draw(picture(), found(((50, 60, 120, 100), 0.9, 0)), [own], 0.5) for own in (name, "\u25a1" * len(name))
        )
    assert (np.asarray(drawn) != np.asarray(number)).any()


def test_letters_that_no_font_has_become_the_class_s_number(capsys: pytest.CaptureFixture[str]) -> None:
    classes = ["cat", "浣熊"]
    rows = found(((50, 60, 120, 100), 0.9, 1), ((10, 120, 60, 150), 0.8, 1))
    with notices_said():
        drawn = draw(picture(), rows, classes, 0.5)
    said = capsys.readouterr().err
    assert said == "qmimic: No available font has the letters of the class 浣熊; it is drawn as #1.\n"
    wanted = draw(picture(), rows, ["cat", "#1"], 0.5)
    np.testing.assert_array_equal(np.asarray(drawn), np.asarray(wanted))
