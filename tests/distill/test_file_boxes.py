"""Boxes of foreign detectors: each common layout says the same as boxes written down plainly."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from qmimic.config import TeacherConfig, TeacherFileConfig
from qmimic.detections import Detections
from qmimic.distill.file_boxes import corners, detections, regions, suspicion
from qmimic.distill.file_outputs import Found, found_in
from qmimic.distill.file_scores import class_places
from qmimic.errors import InputError

SIZE = (64, 96)  # height and width
HEIGHT, WIDTH = SIZE
KINDS = 3


def places(count: int) -> st.SearchStrategy[Any]:
    """Where boxes may begin and how large they may be, as shares of what there is: [count, 4]."""
    return arrays(np.float64, (count, 4), elements=st.floats(0, 1, width=32))


@st.composite
def things(draw: st.DrawFn) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Boxes xyxy in pixels [N, 4] and scores of classes [N, K] that differ, as a person would write them down."""
    count = draw(st.integers(1, 6))
    shares = draw(places(count))
    x1, y1 = shares[:, 0] * (WIDTH - 12), shares[:, 1] * (HEIGHT - 12)
    wide, high = 2 + shares[:, 2] * (WIDTH - 2 - x1), 2 + shares[:, 3] * (HEIGHT - 2 - y1)
    boxes = np.stack([x1, y1, np.minimum(x1 + wide, WIDTH), np.minimum(y1 + high, HEIGHT)], 1)
    order = draw(st.permutations(range(count * KINDS)))
    scores = (np.array(order).reshape(count, KINDS) + 1) / (count * KINDS + 2)
    return boxes, scores


def as_format(boxes: np.ndarray[Any, Any], kind: str, unit: str) -> np.ndarray[Any, Any]:
    """Boxes xyxy in pixels, rewritten one by one."""
    rows = []
    for x1, y1, x2, y2 in boxes:
        row = {
            "xyxy": [x1, y1, x2, y2],
            "xywh": [x1, y1, x2 - x1, y2 - y1],
            "yxyx": [y1, x1, y2, x2],
            "cxcywh": [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1],
        }[kind]
        across = (HEIGHT, WIDTH) * 2 if kind == "yxyx" else (WIDTH, HEIGHT) * 2
        rows.append([side / whole for side, whole in zip(row, across, strict=True)] if unit == "shares" else row)
    return np.array(rows)


def tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float32))


def plain(boxes: np.ndarray[Any, Any], scores: np.ndarray[Any, Any]) -> list[tuple[int, float, list[float]]]:
    """What has to come out: one class a box, the best first."""
    rows = [(int(own.argmax()), float(own.max()), box.tolist()) for own, box in zip(scores, boxes, strict=True)]
    return sorted(rows, key=lambda row: -row[1])


def same(config: TeacherFileConfig, outputs: dict[str, Tensor], wanted: list[tuple[int, float, list[float]]]) -> None:
    (found,) = detections(found_in(config, outputs, 1, SIZE), config, range(KINDS), SIZE)
    assert found.labels.tolist() == [row[0] for row in wanted]
    np.testing.assert_allclose(found.scores, [row[1] for row in wanted], rtol=1e-4)
    np.testing.assert_allclose(found.boxes, [row[2] for row in wanted], atol=1e-3)


FORMATS = st.sampled_from(["xyxy", "yxyx", "xywh", "cxcywh"])
UNITS = st.sampled_from(["pixels", "shares"])


@settings(max_examples=60, deadline=None)
@given(things(), FORMATS, UNITS, st.booleans(), st.booleans())
def test_rows_with_scores_of_classes(own: Any, kind: str, unit: str, transposed: bool, batched: bool) -> None:
    """YOLO's [1, 4 + K, N], and the same lying the other way."""
    boxes, scores = own
    rows = np.concatenate([as_format(boxes, kind, unit), scores], 1)
    rows = rows.T if transposed else rows
    config = TeacherFileConfig(
        rows="all", row_layout=("box", "scores"), transposed=transposed, box_format=kind, box_unit=unit, suppress=1
    )
    same(config, {"all": tensor(rows[None] if batched else rows)}, plain(boxes, scores))


@settings(max_examples=40, deadline=None)
@given(things(), FORMATS, UNITS, st.data())
def test_rows_with_an_objectness(own: Any, kind: str, unit: str, data: st.DataObject) -> None:
    """YOLOv5's [1, N, 5 + K]: a class has the product of both."""
    boxes, scores = own
    objectness = 0.5 + 0.4 * (np.array(data.draw(st.permutations(range(len(boxes))))) + 1) / (len(boxes) + 1)
    rows = np.concatenate([as_format(boxes, kind, unit), objectness[:, None], scores / objectness[:, None]], 1)
    if (scores / objectness[:, None] > 1).any():
        rows[:, 5:] = scores
        scores = scores * objectness[:, None]
    if len({round(float(one), 5) for one in scores.max(1)}) < len(scores):
        return  # of equals any may be the first
    config = TeacherFileConfig(
        rows="all", row_layout=("box", "objectness", "scores"), box_format=kind, box_unit=unit, suppress=1
    )
    same(config, {"all": tensor(rows[None])}, plain(boxes, scores))


@settings(max_examples=40, deadline=None)
@given(things(), FORMATS, UNITS)
def test_rows_with_a_score_and_a_class(own: Any, kind: str, unit: str) -> None:
    """End to end: [1, N, 6], filled up with rows of nothing."""
    boxes, scores = own
    numbers = scores.argmax(1)[:, None]
    rows = np.concatenate([as_format(boxes, kind, unit), scores.max(1)[:, None], numbers], 1)
    rows = np.concatenate([rows, np.array([[0, 0, 0, 0, -1, -1], [1, 1, 2, 2, 0, 99]])])
    config = TeacherFileConfig(
        rows="all", row_layout=("box", "score", "label"), box_format=kind, box_unit=unit, suppress=1
    )
    same(config, {"all": tensor(rows[None])}, plain(boxes, scores))


@settings(max_examples=20, deadline=None)
@given(things(), FORMATS, UNITS)
def test_rows_with_a_score_and_classes_beside_them(own: Any, kind: str, unit: str) -> None:
    """MMDetection's `dets` and `labels`, filled up with rows of nothing."""
    boxes, scores = own
    rows = np.concatenate([as_format(boxes, kind, unit), scores.max(1)[:, None]], 1)
    rows = np.concatenate([rows, np.zeros((2, 5))])
    numbers = np.concatenate([scores.argmax(1), [-1, -1]])
    config = TeacherFileConfig(
        rows="dets", row_layout=("box", "score"), labels="labels", box_format=kind, box_unit=unit, suppress=1
    )
    same(config, {"dets": tensor(rows[None]), "labels": tensor(numbers[None])}, plain(boxes, scores))
    with pytest.raises(InputError, match=r"'labels' has shape \[1, 1\]; class numbers of \d+ boxes are \[B, N\]"):
        found_in(config, {"dets": tensor(rows[None]), "labels": tensor([[0]])}, 1, SIZE)


@settings(max_examples=30, deadline=None)
@given(things(), things(), st.sampled_from(["flat", "column"]))
def test_what_stands_behind_the_count_of_a_picture_is_never_read(own: Any, junk: Any, lying: str) -> None:
    """EfficientNMS has `num_dets` [B, 1] and leaves in its buffers what stood there before."""
    boxes, scores = own
    config = TeacherFileConfig(boxes="b", scores="s", labels="n", counts="num_dets", suppress=1)
    both = {
        "b": tensor(np.concatenate([boxes, junk[0]])[None]),
        "s": tensor(np.concatenate([scores.max(1), junk[1].max(1)])[None]),
        "n": tensor(np.concatenate([scores.argmax(1), junk[1].argmax(1)])[None]),
    }
    count = tensor([len(boxes)])
    outputs = both | {"num_dets": count if lying == "flat" else count[None]}
    same(config, outputs, plain(boxes, scores))
    seen = regions(found_in(config, outputs, 1, SIZE), config, SIZE)
    assert int(seen.valid.sum()) == len(boxes)
    assert not detections(found_in(config, both | {"num_dets": tensor([0])}, 1, SIZE), config, range(KINDS), SIZE)[0]
    # Not even to find that everything is broken.
    spoilt = {name: values.clone() for name, values in both.items()}
    spoilt["b"][:, len(boxes) :], spoilt["s"][:, len(boxes) :] = torch.nan, torch.inf
    same(config, spoilt | {"num_dets": count}, plain(boxes, scores))
    none = {name: torch.full_like(values, torch.nan) for name, values in both.items()}
    assert not detections(found_in(config, none | {"num_dets": tensor([0])}, 1, SIZE), config, range(KINDS), SIZE)[0]
    broken = both | {"b": both["b"].clone(), "num_dets": count}
    broken["b"][:, : len(boxes)] = torch.nan
    with pytest.raises(InputError, match="boxes are all NaN"):
        found_in(config, broken, 1, SIZE)
    for wrong, said in (
        ([len(boxes) + len(junk[0]) + 1], "where a picture has 0 to"),
        ([-1], r"says -1, where"),
        ([0.5], r"says 0\.5, where"),
        ([1, 1], r"has shape \[2\]; numbers of boxes are \[B\] or \[B, 1\]"),
    ):
        with pytest.raises(InputError, match=said):
            found_in(config, both | {"num_dets": tensor(wrong)}, 1, SIZE)


@pytest.mark.parametrize(
    "own",
    [
        {"counts": "n"},
        {"counts": "", "rows": "r", "row_layout": ("box", "scores")},
        {"counts": "n", "rows": ("r", "q"), "row_layout": ("box", "scores")},
        {
            "counts": "n",
            "boxes": "b",
            "scores": "s",
            "grid_strides": (8,),
            "grid_point": 0.5,
            "box_format": "distances",
        },
    ],
)
def test_counts_are_of_one_list(own: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"teacher\.counts"):
        TeacherConfig(kind="onnx", file="a.onnx", **own)


def test_what_is_no_score_is_told_by_what_it_is() -> None:
    boxes = [[1, 1, 9, 9], [20, 20, 40, 40]]
    rows = tensor([[*box, *number, 0.8] for box, number in zip(boxes, ([1], [2]), strict=True)])[None]
    for settings_, outputs, said in (
        (
            {"rows": "all", "row_layout": ("box", "score", "label")},
            {"all": rows},
            r"scores go from 1 to 2, .*whole numbers, as pixels, class .* are: check teacher\.row_layout",
        ),
        (
            {"boxes": "b", "scores": "s", "activation": "softmax"},
            {"b": tensor([boxes]), "s": tensor([[[3.0], [-2.0]]])},
            r"one score a box, whose softmax is always 1; set teacher\.activation=sigmoid",
        ),
        (
            {"boxes": "b", "scores": "s", "labels": "n"},
            {"b": tensor([boxes]), "s": tensor([[0.9, 0.8]]), "n": tensor([[0.95, 1]])},
            r"the class number 0\.95, which is not whole; check teacher\.labels",
        ),
    ):
        config = TeacherFileConfig(**settings_)
        with pytest.raises(InputError, match=said):
            detections(found_in(config, outputs, 1, SIZE), config, (0, 1, 2), SIZE)


@settings(max_examples=40, deadline=None)
@given(things(), FORMATS, UNITS, st.sampled_from(["none", "sigmoid", "softmax"]))
def test_boxes_and_scores_apart(own: Any, kind: str, unit: str, activation: str) -> None:
    """DETR's shares and logits, with a last column for no object where they go through softmax."""
    boxes, scores = own
    known = scores / (1.1 * scores.sum(1, keepdims=True)) if activation == "softmax" else scores
    raw = known
    if activation == "sigmoid":
        raw = np.log(known / (1 - known))
    if activation == "softmax":
        raw = np.log(np.concatenate([known, 1 - known.sum(1, keepdims=True)], 1)) + 3
    if len({round(float(one), 5) for one in known.max(1)}) < len(known):
        return
    config = TeacherFileConfig(
        boxes="b", scores="s", box_format=kind, box_unit=unit, suppress=1, activation=activation,
        classes=("a", "b", "c") + ((None,) if activation == "softmax" else ()),
    )  # fmt: skip
    outputs = {"b": tensor(as_format(boxes, kind, unit)[None]), "s": tensor(raw[None])}
    found = found_in(config, outputs, 1, SIZE)
    (one,) = detections(found, config, class_places(config, found.columns, ("a", "b", "c")), SIZE)
    assert one.labels.tolist() == [row[0] for row in plain(boxes, known)]
    np.testing.assert_allclose(one.boxes, [row[2] for row in plain(boxes, known)], atol=1e-3)


def test_columns_stand_in_the_order_that_the_recipe_says() -> None:
    """YOLOv7 end to end: [N, 7], the number of the picture first and the score last."""
    config = TeacherFileConfig(rows="r", row_layout=("skip", "box", "label", "score"))
    (found,) = detections(
        found_in(config, {"r": tensor([[0, 1, 2, 20, 30, 2, 0.75]])}, 1, SIZE), config, range(KINDS), SIZE
    )
    assert (found.boxes.tolist(), found.labels.tolist(), found.scores.tolist()) == ([[1, 2, 20, 30]], [2], [0.75])


def test_scores_and_class_numbers_apart_and_padding_between_pictures() -> None:
    config = TeacherFileConfig(boxes="b", scores="s", labels="l", suppress=1)
    first = found_in(config, {"b": tensor([[1, 2, 20, 30]]), "s": tensor([0.5]), "l": tensor([2])}, 1, SIZE)
    none = found_in(config, {"b": torch.zeros(0, 4), "s": torch.zeros(0), "l": torch.zeros(0)}, 1, SIZE)
    joined = Found.joined([none, first])
    empty, full = detections(joined, config, range(KINDS), SIZE)
    assert len(empty) == 0
    assert (full.boxes.tolist(), full.labels.tolist()) == ([[1, 2, 20, 30]], [2])


def test_what_overlaps_is_suppressed_within_a_class_alone() -> None:
    rows = tensor([[0, 0, 20, 20, 0.9, 0], [1, 0, 20, 20, 0.8, 0], [1, 0, 20, 20, 0.7, 1]])
    config = TeacherFileConfig(rows="r", row_layout=("box", "score", "label"))
    (found,) = detections(found_in(config, {"r": rows}, 1, SIZE), config, range(KINDS), SIZE)
    assert found.labels.tolist() == [0, 1]
    np.testing.assert_allclose(found.scores, [0.9, 0.7])


def test_a_class_that_is_left_out_is_no_other_class_either() -> None:
    config = TeacherFileConfig(
        rows="r", row_layout=("box", "scores"), classes=("cat", None, "dog", "car"), drop_other_classes=True
    )
    places = class_places(config, 4, ("dog", "cat"))
    assert places == (1, -1, 0, -1)
    rows = tensor([[0, 0, 20, 20, 0.1, 0.9, 0.2, 0.95], [30, 0, 50, 20, 0.1, 0.0, 0.0, 0.0]])
    (found,) = detections(found_in(config, {"r": rows}, 1, SIZE), config, places, SIZE)
    assert found.labels.tolist() == [0, 1]
    np.testing.assert_allclose(found.scores, [0.2, 0.1], rtol=1e-6)
    numbered = TeacherFileConfig(rows="r", row_layout=("box", "score", "label"), classes=(None, "cat"))
    (found,) = detections(
        found_in(numbered, {"r": tensor([[0, 0, 9, 9, 0.9, 0], [0, 0, 9, 9, 0.5, 1]])}, 1, SIZE),
        numbered, class_places(numbered, None, ("cat",)), SIZE,
    )  # fmt: skip
    assert found.labels.tolist() == [0]


@pytest.mark.parametrize(
    ("classes", "columns", "said"),
    [
        (
            ("cat", "zebra", "doog"),
            3,
            r"that the data lack: zebra, doog \(did you mean dog by doog[?]\); the data have cat, dog. Write null in",
        ),
        (("cat", "doog"), 2, r"lack: doog \(did you mean dog by doog[?]\); the data"),
        (("cat",), 2, "have 2 scores of classes and teacher.classes names 1; write there"),
        ((), None, "have numbers of classes and teacher.classes names none"),
        ((None, None), 2, "None of teacher.classes is one of the data's"),
    ],
)
def test_classes_that_do_not_fit_are_refused(classes: tuple[str | None, ...], columns: int | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        class_places(TeacherFileConfig(classes=classes), columns, ("cat", "dog"))


ROWS = {"rows": "r", "row_layout": ("box", "scores")}


@pytest.mark.parametrize(
    ("settings", "outputs", "said"),
    [
        (ROWS, {"r": torch.zeros(1, 4, 5)}, None),
        (
            ROWS,
            {"r": torch.zeros(1, 5, 4)},
            r"'r' has shape \[1, 5, 4\]; with .*=\[box, scores\] it is \[B, N, columns\] of 4 columns and one",
        ),
        (
            {**ROWS, "row_layout": ("box", "score", "label")},
            {"r": torch.zeros(1, 3, 7)},
            r"\[box, score, label\] it is \[B, N, columns\] of 6 columns[.]",
        ),
        (
            {**ROWS, "transposed": True},
            {"r": torch.zeros(1, 3, 7)},
            r"it is \[B, columns, N\] of 4 columns and one a class",
        ),
        (
            {**ROWS, "classes": ("a", None)},
            {"r": torch.zeros(1, 6, 9)},
            "6 columns, as .* say, lie on its other side: set teacher.transposed=true",
        ),
        (ROWS, {"r": torch.zeros(2, 3, 7)}, "is of 2 pictures, not of 1"),
        ({"boxes": "b"}, {"b": torch.zeros(1, 5, 8)}, r"'b' has shape \[1, 5, 8\]; boxes are"),
        (
            {"boxes": "b", "scores": "s"},
            {"b": torch.zeros(1, 5, 4), "s": torch.zeros(1, 4, 3)},
            "scores of 5 boxes are",
        ),
        (
            {"boxes": "b", "scores": "s", "labels": "l"},
            {"b": torch.zeros(1, 5, 4), "s": torch.zeros(1, 5), "l": torch.zeros(1, 4)},
            "class numbers of 5 boxes are",
        ),
    ],
)
def test_another_shape_than_declared_is_refused(settings: Any, outputs: dict[str, Tensor], said: str | None) -> None:
    config = TeacherFileConfig(**settings)
    if said is None:
        assert found_in(config, outputs, 1, SIZE).columns == 1
        return
    with pytest.raises(InputError, match=said):
        found_in(config, outputs, 1, SIZE)


def test_numbers_that_are_no_scores_or_no_classes_are_refused() -> None:
    config = TeacherFileConfig(rows="r", row_layout=("box", "scores"))
    with pytest.raises(InputError, match=r"scores go from -3 to 5, not from 0 to 1; set teacher.activation"):
        detections(found_in(config, {"r": tensor([[0, 0, 9, 9, -3, 5]])}, 1, SIZE), config, (0, 1), SIZE)
    config = TeacherFileConfig(rows="r", row_layout=("box", "score", "label"))
    with pytest.raises(InputError, match=r"has the class number 2, and teacher.classes names those from 0 to 1"):
        detections(found_in(config, {"r": tensor([[0, 0, 9, 9, 0.9, 2]])}, 1, SIZE), config, (0, 1), SIZE)


def test_scores_that_integers_round_above_1_are_1() -> None:
    config = TeacherFileConfig(rows="r", row_layout=("box", "scores"))
    rows = tensor([[0, 0, 9, 9, 255 * 0.003937, 0], [20, 0, 29, 9, 0, 0.5]])
    (found,) = detections(found_in(config, {"r": rows}, 1, SIZE), config, (0, 1), SIZE)
    assert found.scores.tolist() == [1, 0.5]
    rows[0, 4] = 1.03
    with pytest.raises(InputError, match=r"scores go from 0 to 1\.03, not from 0 to 1"):
        detections(found_in(config, {"r": rows}, 1, SIZE), config, (0, 1), SIZE)


@pytest.mark.parametrize("name", ["boxes", "scores", "labels", "objectness", "rows"])
def test_an_output_of_one_number_is_refused_by_its_name(name: str) -> None:
    named = {"boxes": "b", "scores": "s"} if name != "rows" else {"row_layout": ("box", "scores")}
    own = {"boxes": "b", "scores": "s"}.get(name, "x")
    config = TeacherFileConfig(**{**named, name: own})
    outputs = {"b": torch.zeros(1, 2, 4), "s": torch.zeros(1, 2), **{own: torch.tensor(3.0)}}
    with pytest.raises(InputError, match=rf"output '{own}' has shape \[\]"):
        found_in(config, outputs, 1, SIZE)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_scores_that_would_be_activated_twice_are_refused(activation: Any) -> None:
    config = TeacherFileConfig(rows="r", row_layout=("box", "scores"), activation=activation)
    rows = torch.cat(
        [tensor([[0, 0, 9, 9]]).expand(20, 4), torch.linspace(0, 1, 40, dtype=torch.float32).reshape(20, 2)], 1
    )
    with pytest.raises(InputError, match=r"go from 0 to 1 as they stand in the file; set teacher.activation=none"):
        detections(found_in(config, {"r": rows}, 1, SIZE), config, (0, 1), SIZE)


def test_numbers_of_boxes_that_are_read_as_scores_are_refused() -> None:
    config = TeacherFileConfig(rows="r", row_layout=("scores", "box"))
    with pytest.raises(
        InputError, match=r"scores go from 0 to 90.5, .*; these are not scores; check teacher.row_layout"
    ):
        detections(found_in(config, {"r": tensor([[0, 90.5, 0.1, 0.2, 9, 9]])}, 1, SIZE), config, (0, 1), SIZE)


def test_pixels_that_are_read_as_shares_are_refused() -> None:
    config = TeacherFileConfig(rows="r", row_layout=("box", "scores"), box_unit="shares")
    rows = tensor([[0, 0, 30, 30, 0.9], [5, 5, 60, 40, 0.5], [0, 0, 1, 1, 0.1]])
    with pytest.raises(InputError, match=r"a number above 4, so they are in pixels; set teacher.box_unit=pixels"):
        detections(found_in(config, {"r": rows}, 1, SIZE), config, (0,), SIZE)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rows": "r"}, "rows and row_layout go together"),
        (
            {"rows": "r", "row_layout": ("box", "scores"), "boxes": "b"},
            "leave out boxes, sizes, scores, objectness and labels",
        ),
        (
            {"rows": "r", "row_layout": ("box", "score")},
            "needs box and scores .of one class too., or box, score and label, each once",
        ),
        ({"rows": "r", "row_layout": ("box", "scores", "label")}, "needs box and scores .*, or box, score and label"),
        ({"transposed": True}, "transposed is how teacher.rows lie"),
        ({"scores": "s"}, "and labels are those of teacher.boxes"),
        ({"boxes": "b", "labels": "l"}, "need the boxes' scores"),
        ({"boxes": "b", "objectness": "o"}, "need the boxes' scores"),
        ({"maps": ("m",), "size": (64, 64)}, "only without a map"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TeacherConfig(kind="onnx", **settings)


@given(arrays(np.float32, (4, 4), elements=st.floats(0, 1, width=32)), FORMATS, UNITS)
def test_corners_undo_every_format(shares: Any, kind: str, unit: str) -> None:
    first, second = shares[:, :2] * (WIDTH, HEIGHT), shares[:, 2:] * (WIDTH, HEIGHT)
    boxes = np.concatenate([np.minimum(first, second), np.maximum(first, second)], 1)
    config = TeacherFileConfig(box_format=kind, box_unit=unit)
    np.testing.assert_allclose(corners(tensor(as_format(boxes, kind, unit)), config, SIZE).numpy(), boxes, atol=1e-3)


@settings(max_examples=30, deadline=None)
@given(things(), st.booleans(), st.booleans())
def test_boxes_and_scores_apart_may_lie_either_way(own: Any, boxes_turned: bool, scores_turned: bool) -> None:
    """[B, N, 4] or [B, 4, N], [B, N, K] or [B, K, N], where N is not 4 or K."""
    boxes, scores = tensor(own[0])[None], tensor(own[1])[None]
    assume(boxes.shape[1] not in (4, KINDS))
    config = TeacherFileConfig(boxes="b", scores="s")
    given_ones = {
        "b": boxes.transpose(1, 2) if boxes_turned else boxes,
        "s": scores.transpose(1, 2) if scores_turned else scores,
    }
    found = found_in(config, given_ones, 1, SIZE)
    assert torch.equal(found.boxes, boxes)
    assert found.scores is not None
    assert torch.equal(found.scores, scores)


def test_rows_may_have_a_side_of_one_before_them() -> None:
    config = TeacherFileConfig(rows="r", row_layout=("skip", "label", "score", "box"))
    rows = torch.arange(14.0).reshape(1, 1, 2, 7)
    found = found_in(config, {"r": rows}, 1, SIZE)
    assert found.boxes.tolist() == [[[3, 4, 5, 6], [10, 11, 12, 13]]]


def test_what_is_no_class_is_no_region() -> None:
    boxes, labels = tensor([[[0, 0, 20, 20], [40, 0, 60, 20], [70, 0, 90, 20]]]), tensor([[2, 0, 1]])
    config = TeacherFileConfig(boxes="b", scores="s", labels="l", classes=("cat", "dog", None))
    kept = regions(Found(boxes, tensor([[[0.9], [0.2], [0.5]]]), None, labels), config, SIZE)
    assert kept.boxes[0][kept.valid[0]].tolist() == [[70, 0, 90, 20], [40, 0, 60, 20]]


def test_regions_are_suppressed_as_labels_are() -> None:
    boxes = tensor([[[0, 0, 20, 20], [1, 0, 20, 20], [40, 0, 60, 20], [0, 1, 20, 20]]])
    found = Found(boxes, tensor([[[0.8, 0.1], [0.9, 0.2], [0.3, 0.1], [0.1, 0.7]]]))
    config = TeacherFileConfig(classes=("cat", "dog"))
    kept = regions(found, config, SIZE)
    assert kept.boxes[0][kept.valid[0]].tolist() == [[1, 0, 20, 20], [0, 1, 20, 20], [40, 0, 60, 20]]
    every = regions(found, TeacherFileConfig(suppress=1), SIZE)
    assert every.boxes[0][every.valid[0]].tolist() == boxes[0][[1, 0, 3, 2]].tolist()


@pytest.mark.parametrize(("kind", "given"), [("none", [0.5]), ("sigmoid", [0.0])])
def test_objectness_has_an_activation_of_its_own(kind: Any, given: list[float]) -> None:
    config = TeacherFileConfig(
        boxes="b", scores="s", objectness="o", activation="sigmoid", objectness_activation=kind, suppress=1
    )
    outputs = {"b": tensor([[0, 0, 9, 9]]), "s": tensor([[2.0, -2.0]]), "o": tensor(given)}
    (found,) = detections(found_in(config, outputs, 1, SIZE), config, (0, 1), SIZE)
    np.testing.assert_allclose(found.scores, [0.5 / (1 + np.exp(-2))], rtol=1e-5)


def test_objectness_that_needs_another_activation_is_refused() -> None:
    layout = {"boxes": "b", "scores": "s", "objectness": "o"}
    shares, logits = torch.linspace(0, 1, 20), torch.linspace(-4, 4, 20)
    boxes = tensor([[0, 0, 9, 9]] * 20)
    outputs = {"b": boxes, "s": torch.stack([logits, logits], 1), "o": shares}
    config = TeacherFileConfig(**layout, activation="sigmoid")
    with pytest.raises(
        InputError, match=r"objectness goes from 0 to 1 as it stands .*objectness_activation=none instead"
    ):
        detections(found_in(config, outputs, 1, SIZE), config, (0, 1), SIZE)
    config = TeacherFileConfig(**layout)
    outputs = {"b": boxes, "s": torch.stack([shares, shares], 1), "o": logits}
    with pytest.raises(
        InputError, match=r"goes from -4 to 4, not from 0 to 1; set teacher.objectness_activation=sigmoid"
    ):
        detections(found_in(config, outputs, 1, SIZE), config, (0, 1), SIZE)


def test_scores_that_are_no_numbers_are_refused() -> None:
    config = TeacherFileConfig(rows="r", row_layout=("box", "scores"))
    with pytest.raises(InputError, match=r"scores hold NaN \(not a number\); check teacher.mean and teacher.std"):
        detections(found_in(config, {"r": tensor([[0, 0, 9, 9, np.nan, 0.5]])}, 1, SIZE), config, (0, 1), SIZE)


@pytest.mark.parametrize(
    ("boxes", "settings", "said"),
    [
        ([], {}, "no box inside of a picture with a score of at least 0.01"),
        ([[0, 0, 1, 1]], {}, "are they shares .* or does it not decode them"),
        ([[0, 0, 30, 30]], {}, "and whether it decodes its boxes"),
        ([[0, 0, 1, 1]], {"grid_strides": (8,)}, "grid_point, the order of grid_strides and of classes"),
        (
            [[0, 0, 9, 9]],
            {"grid_strides": (8,), "anchors": (((10.0, 13.0),),), "box_format": "yolov5", "activation": "sigmoid"},
            "grid_point, anchors and anchors_first, activation, the order of grid_strides",
        ),
    ],
)
def test_what_may_be_wrong_is_said_by_what_is_found(boxes: list[list[int]], settings: Any, said: str) -> None:
    own = np.array(boxes, np.float32).reshape(-1, 4)
    found = Detections(own, np.ones(len(own), np.float32), np.zeros(len(own), np.int64))
    assert re.search(said, suspicion([found], TeacherFileConfig(**settings)))
