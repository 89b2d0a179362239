"""Boxes on grids: each layout of raw outputs says the same as boxes written down plainly, cell by cell."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from qmimic.config import TeacherConfig, TeacherFileConfig, recipe_from
from qmimic.config.teacher_file import OF_CENTRES, check_outputs
from qmimic.detections import Detections
from qmimic.distill.file_boxes import LEAST_SCORE, MOST_BOXES, detections, regions
from qmimic.distill.file_grids import Grid, by_cells, decoded
from qmimic.distill.file_outputs import Found, found_in
from qmimic.distill.file_scores import class_places
from qmimic.distill.onnx_teacher import OnnxTeacher
from qmimic.errors import InputError
from qmimic.runtime.onnx_engine import open_file

SIZE = (64, 88)  # height and width; 88 is no multiple of 16 or 32, so that the last cells are cut
HEIGHT, WIDTH = SIZE
STRIDES = (16, 32, 8)  # not in order, as some files have them
CLASSES = ("a", "b", "c")
BINS = 7
YUNET = {"boxes": "bbox", "scores": "cls", "objectness": "obj"}

Thing = tuple[int, int, int, tuple[float, float, float, float], tuple[float, ...]]


def side(stride: int) -> tuple[int, int]:
    """Rows and columns of a grid."""
    return math.ceil(HEIGHT / stride), math.ceil(WIDTH / stride)


@st.composite
def things(draw: st.DrawFn) -> list[Thing]:
    """Some cells (grid, row, column), a box around each one's centre in pixels, and its scores, which all differ."""
    count = draw(st.integers(1, 5))
    ranks = draw(st.permutations(range(count * len(CLASSES))))
    found: dict[tuple[int, int, int], Thing] = {}
    for place in range(count):
        grid = draw(st.integers(0, 2))
        stride = STRIDES[grid]
        row, column = draw(st.integers(0, HEIGHT // stride - 1)), draw(st.integers(0, WIDTH // stride - 1))
        sides = [draw(st.floats(0.25, BINS - 1.25, width=32)) * stride for _ in range(4)]
        x, y = (column + 0.5) * stride, (row + 0.5) * stride
        own = ranks[place * len(CLASSES) : (place + 1) * len(CLASSES)]
        scores = tuple((rank + 3) / (count * len(CLASSES) + 4) for rank in own)
        found[(grid, row, column)] = (
            grid,
            row,
            column,
            (x - sides[0], y - sides[1], x + sides[2], y + sides[3]),
            scores,
        )
    return list(found.values())


def numbers_of(thing: Thing, config: TeacherFileConfig) -> list[float]:
    """A box as its cell says it."""
    grid, row, column, (x1, y1, x2, y2), _ = thing
    stride = STRIDES[grid]
    assert config.grid_point is not None
    x, y = (column + config.grid_point) * stride, (row + config.grid_point) * stride
    if config.box_format in OF_CENTRES:
        centre = [((x1 + x2) / 2 - x) / stride, ((y1 + y2) / 2 - y) / stride]
        sizes = [(x2 - x1) / stride, (y2 - y1) / stride]
        return [*centre, *(sizes if config.box_format == "centres" else map(math.log, sizes))]
    unit = stride if config.box_unit == "strides" else 1
    sides = [(x - x1) / unit, (y - y1) / unit, (x2 - x) / unit, (y2 - y) / unit]
    if config.bins == 1:
        return sides
    logits = []
    for one in sides:  # a mean of two neighbours, and hardly anything of all others
        weights = [max(0.0, 1 - abs(one - own)) for own in range(config.bins)]
        logits += [math.log(weight + 1e-12) + 2 for weight in weights]
    return logits


def levels(own: list[Thing], config: TeacherFileConfig, kind: str) -> list[np.ndarray[Any, Any]]:
    """One map [h, w, C] a grid: of boxes, scores or objectness, where nothing is found 0 or a score near 0."""
    wide = {"boxes": 4 * config.bins, "scores": len(CLASSES), "objectness": 1}[kind]
    found = [np.full((*side(stride), wide), 0.0 if kind == "boxes" else 1e-4) for stride in STRIDES]
    for thing in own:
        values = {"boxes": numbers_of(thing, config), "scores": [one / 0.9 for one in thing[4]], "objectness": [0.9]}
        found[thing[0]][thing[1], thing[2]] = values[kind]
    return found


def laid(maps: list[np.ndarray[Any, Any]], config: TeacherFileConfig, as_map: bool) -> list[Tensor]:
    """As a file of one picture gives them."""
    values = []
    for own in maps:
        laid_out = own if as_map else own.reshape(-1, own.shape[-1])
        values.append(torch.from_numpy(np.moveaxis(laid_out, -1, 0) if config.transposed else laid_out)[None].float())
    return values


def plain(own: list[Thing]) -> list[tuple[int, float, list[float]]]:
    """Class, score and box, cut at the picture, the best first."""
    rows = []
    for *_, (x1, y1, x2, y2), scores in own:
        best = max(range(len(scores)), key=scores.__getitem__)
        rows.append((best, scores[best], [max(x1, 0), max(y1, 0), min(x2, WIDTH), min(y2, HEIGHT)]))
    return sorted(rows, key=lambda row: -row[1])


def same(found: Found, config: TeacherFileConfig, own: list[Thing]) -> None:
    (one,) = detections(found, config, class_places(config, found.columns, CLASSES), SIZE)
    compare(one, plain(own))


def compare(found: Detections, wanted: list[tuple[int, float, list[float]]]) -> None:
    assert found.labels.tolist() == [row[0] for row in wanted]
    np.testing.assert_allclose(found.scores, [row[1] for row in wanted], rtol=1e-3)
    np.testing.assert_allclose(found.boxes, np.array([row[2] for row in wanted]).reshape(-1, 4), atol=1e-2)


FORMATS = st.sampled_from(
    [
        ("offsets", "strides", 1),
        ("centres", "strides", 1),
        ("distances", "strides", 1),
        ("distances", "pixels", 1),
        ("distances", "strides", BINS),
    ]
)


def config_of(said: tuple[str, str, int], point: float, transposed: bool, **names: Any) -> TeacherConfig:
    return TeacherConfig(
        kind="onnx", box_format=said[0], box_unit=said[1], bins=said[2], grid_strides=STRIDES, grid_point=point,
        transposed=transposed, suppress=1, classes=CLASSES, **names,
    )  # fmt: skip


@settings(max_examples=80, deadline=None)
@given(things(), FORMATS, st.booleans(), st.booleans())
def test_outputs_of_each_level(own: list[Thing], said: tuple[str, str, int], transposed: bool, as_map: bool) -> None:
    """YuNet's and PicoDet's: boxes, scores and objectness apart, as lists of cells or as maps."""
    kinds = ("boxes", "scores", "objectness")
    config = config_of(said, 0.5, transposed, **{kind: tuple(f"{kind}{place}" for place in range(3)) for kind in kinds})
    outputs = {
        f"{kind}{place}": values
        for kind in kinds
        for place, values in enumerate(laid(levels(own, config, kind), config, as_map))
    }
    same(found_in(config, outputs, 1, SIZE), config, own)


@settings(max_examples=80, deadline=None)
@given(things(), FORMATS, st.booleans(), st.booleans())
def test_rows_of_all_levels(own: list[Thing], said: tuple[str, str, int], transposed: bool, apart: bool) -> None:
    """YOLOX's [1, N, 5 + K] and NanoDet's: everything of a cell in one row, of all grids or of each."""
    names = ("r0", "r1", "r2") if apart else "rows"
    config = config_of(said, 0.5, transposed, rows=names, row_layout=("scores", "objectness", "box"))
    kinds = [levels(own, config, kind) for kind in ("scores", "objectness", "boxes")]
    rows = laid([np.concatenate(level, -1) for level in zip(*kinds, strict=True)], config, as_map=False)
    outputs = dict(zip(names, rows, strict=True)) if apart else {"rows": torch.cat(rows, 2 if transposed else 1)}
    same(found_in(config, outputs, 1, SIZE), config, own)


@settings(max_examples=30, deadline=None)
@given(things(), st.sampled_from([0.0, 0.25, 1.0]))
def test_the_point_of_a_cell(own: list[Thing], point: float) -> None:
    config = config_of(("offsets", "strides", 1), point, False, boxes=("a", "b", "c"), scores=("d", "e", "f"))
    outputs = dict(zip("abc", laid(levels(own, config, "boxes"), config, False), strict=True))
    halves = [values * 0.9 for values in levels(own, config, "scores")]
    outputs |= dict(zip("def", laid(halves, config, False), strict=True))
    same(found_in(config, outputs, 1, SIZE), config, own)


@settings(max_examples=40, deadline=None)
@given(things(), st.sampled_from(OF_CENTRES), st.booleans(), st.booleans())
def test_sizes_apart_from_their_centres(own: list[Thing], box_format: str, transposed: bool, as_map: bool) -> None:
    names = {"boxes": ("a", "b", "c"), "sizes": ("d", "e", "f"), "scores": ("g", "h", "i")}
    config = config_of((box_format, "strides", 1), 0.5, transposed, **names)
    both, scores = levels(own, config, "boxes"), [values * 0.9 for values in levels(own, config, "scores")]
    parts = [values[..., :2] for values in both], [values[..., 2:] for values in both], scores
    outputs = {
        name: values
        for kind, part in zip(names.values(), parts, strict=True)
        for name, values in zip(kind, laid(part, config, as_map), strict=True)
    }
    same(found_in(config, outputs, 1, SIZE), config, own)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
@example(52980)  # a plateau whose cells differ after a sigmoid
def test_centernet_as_a_plain_loop_reads_it(seed: int) -> None:
    """Heat of each class, widths and heights, and the rest of a centre, all as maps of stride 4: a box at each peak."""
    random = np.random.default_rng(seed)
    heat = random.integers(-5, 4, (2, len(CLASSES), 6, 9)).astype(np.float32)  # whole numbers: some peaks are plateaus
    heat += np.arange(len(CLASSES), dtype=np.float32).reshape(1, -1, 1, 1) / 8  # no ties of classes
    rest, sizes = random.random((2, 2, 6, 9)), random.random((2, 2, 6, 9)) * 3 + 0.5
    config = TeacherConfig(
        kind="onnx", boxes="reg", sizes="wh", scores="hm", box_format="centres", box_unit="strides", grid_strides=(4,),
        grid_point=0, transposed=True, peaks=True, activation="sigmoid", suppress=1, classes=CLASSES,
    )  # fmt: skip
    outputs = {name: torch.from_numpy(own).float() for name, own in (("hm", heat), ("reg", rest), ("wh", sizes))}
    found = detections(found_in(config, outputs, 2, (24, 36)), config, range(len(CLASSES)), (24, 36))
    for picture, one in enumerate(found):
        wanted = []
        for y in range(6):
            for x in range(9):
                peaks = []
                for kind in range(len(CLASSES)):
                    around = heat[picture, kind, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                    if heat[picture, kind, y, x] == around.max():
                        peaks.append((1 / (1 + math.exp(-heat[picture, kind, y, x])), kind))
                if not peaks:
                    continue
                score, kind = max(peaks)
                cx, cy = 4 * (x + rest[picture, 0, y, x]), 4 * (y + rest[picture, 1, y, x])
                w, h = 4 * sizes[picture, :, y, x]
                box = [max(cx - w / 2, 0), max(cy - h / 2, 0), min(cx + w / 2, 36), min(cy + h / 2, 24)]
                if score >= LEAST_SCORE and box[2] > box[0] and box[3] > box[1]:
                    wanted.append((kind, score, box))
        compare(one, sorted(wanted, key=lambda row: -row[1]))
        regions_found = regions(found_in(config, outputs, 2, (24, 36)), config, (24, 36))
        best = regions_found.boxes[picture][regions_found.valid[picture]][: len(wanted)]
        np.testing.assert_allclose(best, [row[2] for row in sorted(wanted, key=lambda row: -row[1])], atol=1e-3)


GRIDS: dict[str, Any] = {"box_format": "distances", "box_unit": "strides", "grid_strides": (8, 16), "grid_point": 0.5}
YOLO: dict[str, Any] = {
    "box_format": "yolov5",
    "box_unit": "pixels",
    "grid_point": None,
    "anchors": (((8, 8), (9, 3)), ((16, 16), (9, 30))),
}
NAMED: dict[str, Any] = {**GRIDS, "boxes": ("a", "b"), "scores": ("c", "d")}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grid_strides": ()}, "box_format=distances measures boxes from the cells of grids: set teacher.grid_strides"),
        ({"box_format": "cxcywh"}, "grid_strides are for boxes that the file does not decode: set teacher.box_format"),
        (
            {"grid_point": None},
            "grid_point, the point of a cell from which its box is measured, is missing: set it to 0.5",
        ),
        ({"grid_strides": (8, 8)}, "grid_strides has 8 twice"),
        ({"grid_strides": (8, 16, 32)}, "grid_strides has 3 strides, and 2 outputs are named; name one for each grid"),
        ({"box_format": "offsets", "box_unit": "pixels"}, "box_format=offsets is in strides: set teacher.box_unit"),
        ({"box_unit": "shares"}, "box_format=distances is in strides or pixels: set teacher.box_unit"),
        ({"box_format": "centres", "box_unit": "pixels"}, "box_format=centres is in strides: set teacher.box_unit"),
        ({"sizes": ("e", "f")}, "sizes are those of centres on grids: name the centres in teacher.boxes, and set"),
        ({"box_format": "centres", "sizes": "e"}, "outputs differ, 2 for boxes and 1 for sizes and 2 for scores"),
        ({**YOLO, "peaks": True}, "peaks compares a score with those on the cells around, one box a cell"),
        ({"cell_boxes": 2, "peaks": True}, "peaks compares a score with those on the cells around, one box a cell"),
        (
            {"scores": None, "peaks": True},
            "peaks is for scores: name their output in teacher.scores, or in teacher.rows",
        ),
        ({"scores": None, "activation": "sigmoid"}, "activation is for scores: name their output in teacher.scores"),
        ({"anchors_first": True}, "anchors_first is the order of several boxes on a cell: set teacher.anchors or"),
        ({"box_format": "offsets", "bins": 4}, "bins are those of distances"),
        ({"box_unit": "pixels", "bins": 4}, "distances with teacher.bins is in strides: set teacher.box_unit=strides"),
        ({"boxes": ()}, "teacher.boxes names no output; name one, or leave it out"),
        ({"objectness_activation": "none"}, "needs an objectness: name its output, or its column"),
        ({"grid_strides": tuple(range(1, 18))}, "has 17 strides; name 16 at most"),
        ({"scores": "c"}, "outputs differ, 2 for boxes and 1 for scores; name as many for each"),
        ({"scores": ("c", "a")}, "names the output 'a' twice"),
        ({"anchors": (((8, 8),), ((16, 16),))}, "box_format=distances has no anchors: leave out teacher.anchors, or"),
        ({"variances": (0.1, 0.1, 0.2, 0.2)}, "variances are those of deltas"),
        ({"box_format": "deltas", "box_unit": "pixels"}, r"a list of \[width, height\] for each of the 2 grids"),
        ({**YOLO, "anchors": (((8, 8),),)}, r"for each of the 2 grids of teacher.grid_strides; it has 1"),
        ({**YOLO, "anchors": (((8, 8),), ())}, "each list of teacher.anchors has 1 to 64 anchors"),
        ({**YOLO, "grid_point": 0}, "yolov5 measures from the corner of a cell: leave out teacher.grid_point"),
        ({**YOLO, "box_unit": "strides"}, "box_format=yolov5 is in pixels: set teacher.box_unit=pixels"),
    ],
)
def test_what_contradicts_itself_is_refused(changes: dict[str, Any], said: str) -> None:
    TeacherConfig(kind="onnx", **NAMED)
    with pytest.raises(ValueError, match=said):
        TeacherConfig(kind="onnx", **{**NAMED, **changes})
    plain_ones = {"boxes": "a", "grid_point": 0.5}
    with pytest.raises(ValueError, match=r"grid_point is that of the cells of teacher.grid_strides"):
        TeacherConfig(kind="onnx", **plain_ones)


RIGHT = {"a": (1, 88, 4), "b": (1, 24, 4), "c": (1, 88, 2), "d": (1, 24, 2)}


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"b": (1, 25, 4)}, r"'b' has shape \[1, 25, 4\]; on the grid of stride 16 it is \[B, N, C\] with N = 24, or"),
        ({"a": (1, 4, 88)}, r"\[B, h, w, C\] with h, w = 8, 11; set teacher.transposed=true"),
        ({"c": (1, 2, 8, 11)}, r"'c' has shape \[1, 2, 8, 11\]; .*set teacher.transposed=true"),
        ({"a": (1, 24, 4), "b": (1, 88, 4)}, "check teacher.grid_strides, and that they stand in the outputs' order"),
        ({"a": (1, 22, 4)}, r"'a' has shape \[1, 22, 4\]; on the grid .*, and that they stand in the outputs' order"),
        ({"a": (1, 88, 32)}, r"'a' has shape \[1, 88, 32\]; it has 32 numbers for each box: set teacher.bins=8"),
        ({"a": (1, 88, 10)}, r"teacher.boxes has 4 numbers for each cell, and this one 10; name another output"),
        ({"a": (2, 88, 4)}, "it is of 2 pictures, not of 1: export it for one picture, or for any number"),
        ({"a": (1, 8, 11, 3, 4)}, "it has 5 dimensions, so its boxes may be measured from anchors"),
        ({"d": (1, 24, 3)}, "levels have scores of 2, 3 classes"),
        (
            {"b": (1, 20, 4)},
            "no cells where the picture's border cuts them, so take pictures whose sides are multiples",
        ),
    ],
)
def test_another_shape_than_declared_is_refused(shapes: dict[str, tuple[int, ...]], said: str) -> None:
    config = TeacherConfig(kind="onnx", **NAMED)
    assert found_in(config, {name: torch.zeros(*one) for name, one in RIGHT.items()}, 1, SIZE).boxes.shape[1] == 112
    outputs = {name: torch.zeros(*shape) for name, shape in {**RIGHT, **shapes}.items()}
    with pytest.raises(InputError, match=said):
        found_in(config, outputs, 1, SIZE)


def test_an_output_of_one_grid_where_all_are_meant() -> None:
    config = TeacherConfig(kind="onnx", **{**GRIDS, "boxes": "a"})
    with pytest.raises(InputError, match=r"on the grids of strides 8, 16 .* one grid alone, so name a list of"):
        found_in(config, {"a": torch.zeros(1, 88, 4)}, 1, SIZE)


@pytest.mark.parametrize(("bins", "columns"), [(8, 35), (4, 35), (1, 35), (1, 67)])
def test_rows_say_how_many_bins_are_left(bins: int, columns: int) -> None:
    config = TeacherConfig(
        kind="onnx", **GRIDS, rows="r", row_layout=("scores", "box"), bins=bins, classes=("a", "b", "c")
    )
    outputs = {"r": torch.zeros(1, 112, columns)}
    if columns == 3 + 4 * bins:
        assert found_in(config, outputs, 1, SIZE).columns == 3
        return
    with pytest.raises(InputError, match=rf"{columns - 3} columns are left .*set teacher.bins={columns // 4},"):
        found_in(config, outputs, 1, SIZE)


def test_no_box_that_is_a_number_is_refused() -> None:
    config = TeacherConfig(kind="onnx", **NAMED)
    outputs = {name: torch.full(shape, math.nan) for name, shape in RIGHT.items()}
    with pytest.raises(InputError, match=r"boxes are all NaN \(not a number\); check teacher.mean and"):
        found_in(config, outputs, 1, SIZE)


def test_names_that_are_numbers_are_names() -> None:
    """PyTorch numbers the values that it does not name, and YAML reads numbers."""
    config = recipe_from({"teacher": {"kind": "onnx", "boxes": [792, "814"], "maps": [291]}}, "the test").teacher
    assert (config.boxes, config.maps) == (("792", "814"), ("291",))


def test_yunet_as_a_plain_loop_reads_it(real_data: Path) -> None:
    """A real file that decodes nothing, against OpenCV's rule for it (`FaceDetectorYN`), one cell after another."""
    path = real_data / "peers" / "yunet_n.onnx"
    names = {kind: tuple(f"{own}_{stride}" for stride in (8, 16, 32)) for kind, own in YUNET.items()}
    config = TeacherConfig(
        kind="onnx", file=str(path), box_format="offsets", box_unit="strides", grid_strides=(8, 16, 32), grid_point=0,
        std=(1, 1, 1), bgr=True, classes=("face",), suppress=1, **names,
    )  # fmt: skip
    files = sorted((real_data / "raccoon" / "JPEGImages").iterdir())[:6]
    opened = [np.array(Image.open(one).convert("RGB").resize((320, 320))) for one in files]
    pictures = torch.from_numpy(np.stack(opened)).permute(0, 3, 1, 2)
    teacher = OnnxTeacher(config, (320, 320))
    session = open_file(path, 1, spin=False)
    count = 0
    for picture, found in zip(pictures, teacher.labeller(["face"])(pictures), strict=True):
        fed = picture.flip(0)[None].float().numpy()
        seen = session.run({next(iter(session.inputs)): fed})
        wanted = []
        for stride in (8, 16, 32):
            columns = 320 // stride
            for place in range(columns * columns):
                score = float(seen[f"cls_{stride}"][0, place, 0] * seen[f"obj_{stride}"][0, place, 0])
                x, y, width, height = (float(one) for one in seen[f"bbox_{stride}"][0, place])
                x, y = (place % columns + x) * stride, (place // columns + y) * stride
                width, height = math.exp(width) * stride, math.exp(height) * stride
                box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
                box = [min(max(one, 0), 320) for one in box]
                if score >= LEAST_SCORE and box[2] > box[0] and box[3] > box[1]:
                    wanted.append((0, score, box))
        count += len(wanted)
        compare(found, sorted(wanted, key=lambda row: -row[1])[:MOST_BOXES])
    assert count >= 6


def test_several_boxes_may_stand_on_a_cell() -> None:
    """As SCRFD has them: [N, C] with two boxes a cell, one after another, distances from its corner in strides."""
    config = TeacherConfig(
        kind="onnx", boxes=("b8", "b16"), scores=("s8", "s16"), grid_strides=(8, 16), grid_point=0, cell_boxes=2,
        box_format="distances", box_unit="strides", suppress=1,
    )  # fmt: skip
    numbers = {stride: np.random.default_rng(stride).random((2, 4, 2, 4)) for stride in (8, 16)}
    outputs, wanted = {}, []
    for stride, own in numbers.items():
        rows, columns = 32 // stride, 64 // stride
        own = np.resize(own, (rows, columns, 2, 4))
        outputs[f"b{stride}"] = torch.from_numpy(own.reshape(-1, 4)).float()
        outputs[f"s{stride}"] = torch.full((rows * columns * 2, 1), 0.5)
        for row in range(rows):
            for column in range(columns):
                for left, top, right, bottom in own[row, column]:
                    x, y = column, row
                    wanted.append(
                        [(x - left) * stride, (y - top) * stride, (x + right) * stride, (y + bottom) * stride]
                    )
    found = found_in(config, outputs, 1, (32, 64))
    np.testing.assert_allclose(decoded(found.boxes, config, (32, 64))[0], wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"b": (1, 88, 3)}, r"'b' has shape \[1, 88, 3\]; centres are two numbers for each cell, where teacher.sizes"),
        ({"w": (1, 88, 4)}, r"'w' has shape \[1, 88, 4\]; widths and heights are two numbers for each cell"),
    ],
)
def test_sizes_of_another_shape_are_refused(shapes: dict[str, tuple[int, ...]], said: str) -> None:
    own = {**GRIDS, "box_format": "centres", "grid_strides": (8,), "boxes": "b", "scores": "s"}
    outputs = {"b": (1, 88, 2), "w": (1, 88, 2), "s": (1, 88, 3)}
    given_ones = {name: torch.zeros(*shape) for name, shape in outputs.items()}
    found_in(TeacherConfig(kind="onnx", sizes="w", **own), given_ones, 1, SIZE)
    with pytest.raises(InputError, match=r"the two numbers of a centre: name the output of .* in teacher\.sizes"):
        found_in(TeacherConfig(kind="onnx", **own), given_ones, 1, SIZE)
    wrong = {name: torch.zeros(*shape) for name, shape in {**outputs, **shapes}.items()}
    with pytest.raises(InputError, match=said):
        found_in(TeacherConfig(kind="onnx", sizes="w", **own), wrong, 1, SIZE)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"cell_boxes": 2, "box_format": "xyxy", "grid_strides": ()},
            "cell_boxes are those of distances, offsets, centres",
        ),
        ({"cell_boxes": 65}, "cell_boxes"),
    ],
)
def test_boxes_of_a_cell_that_do_not_fit_are_refused(changes: dict[str, Any], said: str) -> None:
    own = {"kind": "onnx", "boxes": "b", "scores": "s", "grid_strides": (8,), "box_format": "distances"} | changes
    with pytest.raises(ValueError, match=said):
        check_outputs(TeacherConfig(**own))


@pytest.mark.parametrize("shape", [(1, 64, 4), (64, 4)])
def test_more_boxes_than_cells_are_advised(shape: tuple[int, ...]) -> None:
    grid = (Grid((32, 64), 8),)
    with pytest.raises(InputError, match=r"it has 2 boxes for each cell: set teacher\.cell_boxes=2"):
        by_cells("b", torch.zeros(shape), grid, False, 1)
