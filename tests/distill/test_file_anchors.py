"""Boxes that are measured from anchors, against torchvision's own anchors and coder, and a plain loop over cells."""

import math
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.image_list import ImageList

from qmimic.config import TeacherConfig, TeacherFileConfig
from qmimic.config.teacher_file import check_outputs
from qmimic.distill.file_boxes import detections
from qmimic.distill.file_grids import by_cells, decoded, grids_of
from qmimic.distill.file_outputs import found_in
from qmimic.errors import InputError

SIZE = (64, 96)
STRIDES = (16, 32)
ANCHORS = (((10.0, 13.0), (16.0, 30.0), (33.0, 23.0)), ((30.0, 61.0), (62.0, 45.0), (59.0, 119.0)))


def config_of(box_format: str, anchors: Any = ANCHORS, point: float | None = None, **others: Any) -> TeacherConfig:
    said = {"box_format": box_format, "grid_strides": STRIDES, "anchors": anchors, "grid_point": point}
    return TeacherConfig(kind="onnx", suppress=1, **{**said, **others})


def maps() -> tuple[ImageList, list[Tensor]]:
    """What torchvision's generators ask for: pictures and maps, of which they take the sizes."""
    pictures = torch.zeros(1, 3, *SIZE)
    return ImageList(pictures, [SIZE]), [torch.zeros(1, 1, SIZE[0] // one, SIZE[1] // one) for one in STRIDES]


def random_deltas(count: int) -> Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(0))


def test_deltas_as_retinanet_has_them() -> None:
    generator = AnchorGenerator(((20, 32), (40, 64)), ((0.5, 1.0, 2.0),) * 2)
    ours = tuple(
        tuple((x2 - x1, y2 - y1) for x1, y1, x2, y2 in cell.round().tolist()) for cell in generator.cell_anchors
    )
    (theirs,) = generator(*maps())
    deltas = random_deltas(len(theirs))
    config = config_of("deltas", ours, 0)
    wanted = BoxCoder((1, 1, 1, 1)).decode_single(deltas, theirs)
    torch.testing.assert_close(decoded(deltas, config, SIZE), wanted, atol=1e-3, rtol=1e-5)


def test_deltas_as_ssd_has_them() -> None:
    generator = DefaultBoxGenerator([[2], [2, 3]], 0.2, 0.9, steps=list(STRIDES))
    shares = [pairs.clamp(0, 1) for pairs in generator._wh_pairs]
    ours = tuple(tuple((w * SIZE[1], h * SIZE[0]) for w, h in pairs.tolist()) for pairs in shares)
    (theirs,) = generator(*maps())
    deltas = random_deltas(len(theirs))
    assert [len(one) for one in ours] == [4, 6]  # levels may have different numbers of anchors
    config = config_of("deltas", ours, 0.5, variances=(0.1, 0.1, 0.2, 0.2))
    wanted = BoxCoder((10, 10, 5, 5)).decode_single(deltas, theirs)
    torch.testing.assert_close(decoded(deltas, config, SIZE), wanted, atol=1e-3, rtol=1e-5)


def test_deltas_that_begin_with_y() -> None:
    """As TensorFlow's detectors have them: dy, dx, dh, dw, divided by 10, 10, 5, 5."""
    numbers = random_deltas(sum(grid.boxes for grid in grids_of(config_of("deltas", point=0.5), SIZE)))
    others = {"point": 0.5, "variances": (0.1, 0.1, 0.2, 0.2)}
    wanted = decoded(numbers, config_of("deltas", **others), SIZE)
    turned = torch.stack([numbers[:, 1], numbers[:, 0], numbers[:, 3], numbers[:, 2]], 1)
    assert torch.equal(decoded(turned, config_of("yx_deltas", **others), SIZE), wanted)


def test_strides_that_are_no_whole_numbers() -> None:
    """SSD's anchors stand in the middles of equal cells: 19 and 10 of them on 300 pixels, 3 on 320."""
    for side, cells, strides in ((300, (19, 10), (15.789, 30)), (320, (10, 3), (32, 106.67))):
        generator = DefaultBoxGenerator([[2]] * 2, 0.2, 0.9)
        ours = tuple(tuple((w * side, h * side) for w, h in one.clamp(0, 1).tolist()) for one in generator._wh_pairs)
        pictures = ImageList(torch.zeros(1, 3, side, side), [(side, side)])
        (theirs,) = generator(pictures, [torch.zeros(1, 1, count, count) for count in cells])
        config = config_of("deltas", ours, 0.5, grid_strides=strides, variances=(0.1, 0.1, 0.2, 0.2))
        assert [grid.shape for grid in grids_of(config, (side, side))] == [(count, count) for count in cells]
        deltas = random_deltas(len(theirs))
        wanted = BoxCoder((10, 10, 5, 5)).decode_single(deltas, theirs)
        torch.testing.assert_close(decoded(deltas, config, (side, side)), wanted, atol=0.05, rtol=1e-5)


@given(st.integers(16, 4096), st.integers(1, 256))
def test_a_stride_of_three_decimals_says_how_many_cells_there_are(side: int, cells: int) -> None:
    stride = round(side / cells, 3)
    assume(1 <= stride <= 1024)
    config = config_of("offsets", (), 0.5, grid_strides=(stride,), box_unit="strides")
    assert grids_of(config, (side, side))[0].shape == (cells, cells)


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def by_loop(box_format: str, numbers: Tensor, scales: tuple[float, ...] = (1, 1)) -> list[list[float]]:
    """xyxy of each cell and anchor, in float64, by the formulas of the papers and repositories."""
    boxes = []
    rows = iter(numbers.double().tolist())
    for stride, anchors, scale in zip(STRIDES, ANCHORS, scales, strict=True):
        for row in range(SIZE[0] // stride):
            for column in range(SIZE[1] // stride):
                for width, height in anchors:
                    tx, ty, tw, th = next(rows)
                    if box_format == "yolov3":
                        x = (scale * sigmoid(tx) - (scale - 1) / 2 + column) * stride
                        y = (scale * sigmoid(ty) - (scale - 1) / 2 + row) * stride
                        w, h = width * math.exp(tw), height * math.exp(th)
                    else:
                        x, y = (2 * sigmoid(tx) - 0.5 + column) * stride, (2 * sigmoid(ty) - 0.5 + row) * stride
                        w, h = width * (2 * sigmoid(tw)) ** 2, height * (2 * sigmoid(th)) ** 2
                    boxes.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    assert next(rows, None) is None
    return boxes


@pytest.mark.parametrize("box_format", ["yolov3", "yolov5"])
def test_yolo_as_a_plain_loop_decodes_it(box_format: str) -> None:
    config = config_of(box_format)
    numbers = random_deltas(sum(grid.boxes for grid in grids_of(config, SIZE)))
    np.testing.assert_allclose(decoded(numbers, config, SIZE), by_loop(box_format, numbers), rtol=1e-4, atol=1e-3)


def test_yolov4_stretches_centres_about_the_middles_of_their_cells() -> None:
    config = config_of("yolov3", centre_scales=(1.2, 1.05))
    numbers = random_deltas(sum(grid.boxes for grid in grids_of(config, SIZE)))
    wanted = by_loop("yolov3", numbers, (1.2, 1.05))
    np.testing.assert_allclose(decoded(numbers, config, SIZE), wanted, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("box_format", "scales", "said"),
    [
        ("yolov5", (1.2, 1.1), "those of YOLOv4's boxes: set teacher.box_format=yolov3"),
        ("yolov3", (1.2,), "centre_scales has 1, and teacher.grid_strides 2; name one for each grid"),
        ("yolov3", (1.2, 0.5), "centre_scales"),
    ],
)
def test_scales_that_do_not_fit_are_refused(box_format: str, scales: tuple[float, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_outputs(config_of(box_format, centre_scales=scales, rows=("a", "b"), row_layout=("box", "scores")))


GRIDS = {"grid_strides": STRIDES, "grid_point": 0.5}
OF_OTHERS = {  # what each format needs, as far as it is not that of all
    **{key: {} for key in ("xyxy", "yxyx", "cxcywh", "xywh")},
    **{key: {**GRIDS, "box_unit": "strides"} for key in ("distances", "offsets", "centres")},
    **{key: {**GRIDS, "anchors": ANCHORS} for key in ("deltas", "yx_deltas")},
    "yolov3": {"grid_strides": STRIDES, "anchors": ANCHORS},
    "yolov5": {"grid_strides": STRIDES, "anchors": ANCHORS},
}
OF_SOME = {  # settings of some formats alone
    "centre_scales": ((1.2, 1.1), {"yolov3"}),
    "cell_boxes": (2, {"distances", "offsets", "centres"}),
    "sizes": ("z", {"offsets", "centres"}),
    "peaks": (True, {"distances", "offsets", "centres"}),
    "anchors_first": (True, {"deltas", "yx_deltas", "yolov3", "yolov5"}),
    "variances": ((0.1, 0.1, 0.2, 0.2), {"deltas", "yx_deltas"}),
    "bins": (8, {"distances"}),
    "anchors": (ANCHORS, {"deltas", "yx_deltas", "yolov3", "yolov5"}),
}


@pytest.mark.parametrize("setting", OF_SOME)
@pytest.mark.parametrize("box_format", OF_OTHERS)
def test_a_setting_of_some_formats_is_refused_with_all_others(box_format: str, setting: str) -> None:
    value, formats = OF_SOME[setting]
    said = {"kind": "onnx", "boxes": "b", "scores": "s", "box_format": box_format, **OF_OTHERS[box_format]}
    check_outputs(TeacherConfig(**said))
    if box_format in formats:
        check_outputs(TeacherConfig(**{**said, setting: value}))
    else:
        with pytest.raises(ValueError, match=f"teacher.{setting}"):
            check_outputs(TeacherConfig(**{**said, setting: value}))


def test_the_formats_here_are_all() -> None:
    assert set(OF_OTHERS) == set(get_args(get_type_hints(TeacherFileConfig)["box_format"]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1), st.integers(1, 2), st.integers(1, 4), st.integers(0, 5))
def test_every_layout_of_a_level_is_the_same_boxes(level: int, batch: int, width: int, layout: int) -> None:
    """Cells row by row, on each cell its anchors, whether a map has them first, last, or among its channels."""
    config = config_of("yolov5")
    grid = grids_of(config, SIZE)[level]
    (height, across), anchors = grid.shape, 3
    wanted = torch.arange(batch * grid.boxes * width, dtype=torch.float32).reshape(batch, grid.boxes, width)
    cells = wanted.reshape(batch, height, across, anchors, width)
    laid, transposed = [
        (cells, False),
        (cells.flatten(3), False),
        (cells.permute(0, 3, 1, 2, 4), False),
        (cells.permute(0, 3, 4, 1, 2), True),
        (cells.permute(0, 3, 4, 1, 2).flatten(1, 2), True),
        (wanted.transpose(1, 2), True),
    ][layout]
    assert torch.equal(by_cells("o", laid, [grid], transposed, batch), wanted)


def test_objectness_of_each_anchor_needs_no_side_of_its_own() -> None:
    grid = grids_of(config_of("yolov5"), SIZE)[0]
    wanted = torch.arange(72.0).reshape(1, 72, 1)
    cells = wanted.reshape(1, 4, 6, 3)
    for laid, transposed in ((cells, False), (cells.permute(0, 3, 1, 2), False), (cells.permute(0, 3, 1, 2), True)):
        assert torch.equal(by_cells("o", laid, [grid], transposed, 1), wanted)


@pytest.mark.parametrize(
    ("shape", "transposed", "said"),
    [
        ((1, 3, 4, 6, 7), True, r"it is \[B, C, N\] with N = 72, \[B, A C, h, w\] or .* with h, w = 4, 6 and A = 3;"),
        (
            (1, 4, 6, 20),
            False,
            r"it is \[B, N, C\] with N = 72, \[B, h, w, A C\], .* and A = 3; check teacher.grid_s",
        ),
        ((1, 4, 6, 2, 7), False, "check teacher.grid_strides"),
        ((1, 4, 6, 3, 7, 1), False, "check teacher.grid_strides"),
        ((1, 3, 7, 1, 4, 6), True, "check teacher.grid_strides"),
        ((1, 21, 4, 6), False, "set teacher.transposed=true"),
    ],
)
def test_another_shape_is_refused(shape: tuple[int, ...], transposed: bool, said: str) -> None:
    grid = grids_of(config_of("yolov5"), SIZE)[0]
    with pytest.raises(InputError, match=said):
        by_cells("o", torch.zeros(shape), [grid], transposed, shape[0])


def test_a_map_that_may_lie_in_two_ways_is_refused() -> None:
    config = TeacherConfig(
        kind="onnx", box_format="yolov5", grid_strides=(32,), anchors=(ANCHORS[0],), boxes="o", scores="s"
    )  # fmt: skip
    (grid,) = grids_of(config, (96, 96))
    for shape in ((1, 3, 3, 3, 5), (1, 3, 3, 3)):
        with pytest.raises(
            InputError, match=r"on the grid of stride 32 .* as many rows and columns as anchors it may lie in two ways"
        ):
            by_cells("o", torch.zeros(shape), [grid], False, 1)
    assert by_cells("o", torch.zeros(1, 3, 5, 3, 3), [grid], True, 1).shape == (1, 27, 5)


def test_maps_of_yolov7_become_detections() -> None:
    """[1, 3, h, w, 5 + K] of each stride, with an objectness: class, score and box of the cells that find something."""
    config = config_of(
        "yolov5", rows=("a", "b"), row_layout=("box", "objectness", "scores"), activation="sigmoid", classes=("x", "y")
    )
    outputs = {
        name: torch.full((1, 3, SIZE[0] // stride, SIZE[1] // stride, 7), -20.0)
        for name, stride in zip("ab", STRIDES, strict=True)
    }
    outputs["a"][0, 1, 2, 3] = torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0, -1.0, 1.0])
    outputs["b"][0, 0, 1, 1] = torch.tensor([0.0, 0.0, 0.0, 0.0, 3.0, 2.0, -1.0])
    (found,) = detections(found_in(config, outputs, 1, SIZE), config, (0, 1), SIZE)
    assert found.labels.tolist() == [0, 1]
    np.testing.assert_allclose(found.scores, [sigmoid(3) * sigmoid(2), sigmoid(2) * sigmoid(1)], rtol=1e-5)
    # The middle of the cell; as wide and high as the anchor; cut at the picture.
    np.testing.assert_allclose(found.boxes, [[33, 17.5, 63, 64], [48, 25, 64, 55]], atol=1e-3)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_list_may_begin_with_the_first_anchor_of_all_cells(transposed: bool) -> None:
    """As maps [B, A, h, w, C] become lists without a change of order."""
    config = config_of("yolov5", ANCHORS, rows="r", row_layout=("box", "scores"), transposed=transposed)
    grids = grids_of(config, SIZE)
    wanted, anchors_first = [], []
    for number, grid in enumerate(grids):
        height, width = grid.shape
        own = torch.randn(2, 3, height, width, 6, generator=torch.Generator().manual_seed(number))
        anchors_first.append(own.flatten(1, 3))
        wanted.append(torch.stack([own[:, a, y, x] for y in range(height) for x in range(width) for a in range(3)], 1))
    given_one = torch.cat(anchors_first, 1).transpose(1, 2) if transposed else torch.cat(anchors_first, 1)
    found = found_in(config.model_copy(update={"anchors_first": True}), {"r": given_one}, 2, SIZE)
    assert torch.equal(found.boxes, torch.cat(wanted, 1)[..., :4])
    assert found.scores is not None
    assert torch.equal(found.scores, torch.cat(wanted, 1)[..., 4:])
    one_each = by_cells("s", given_one[:, 0] if transposed else given_one[..., 0], grids, transposed, 2, True)
    assert torch.equal(one_each[..., 0], torch.cat(wanted, 1)[..., 0])
