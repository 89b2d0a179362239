"""A teacher that is an ONNX file: what it sees is what the graph says, computed here by numpy."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from qmimic.config import DataConfig, TeacherConfig
from qmimic.data.chosen import open_dataset
from qmimic.distill import onnx_teacher as module
from qmimic.distill.onnx_teacher import OnnxTeacher
from qmimic.errors import InputError
from qmimic.runtime import Detector

SIZE = (64, 96)
LAYOUTS = {False: "nchw", True: "nhwc"}
BOXES = np.array([[4, 5, 30, 40], [10, 10, 200, 50], [8, 8, 8, 20]], np.float32)  # the last one has no width
SCORES = np.array([[0.2, 0.1], [0.3, 0.9], [0.95, 0.99]], np.float32)


def a_file(
    path: Path,
    last: bool = False,
    batch: int | None = None,
    kind: int = TensorProto.FLOAT,
    constants: Mapping[str, NDArray[np.float32]] = MappingProxyType({"boxes": BOXES, "scores": SCORES}),
) -> Path:
    """A graph whose map is the means of 16 x 16 pixels, with constant boxes: all the outputs of a detector."""
    shape = [batch or "batch", 3, *SIZE] if not last else [batch or "batch", *SIZE, 3]
    nodes = []
    source = "picture"
    if kind != TensorProto.FLOAT:
        nodes.append(helper.make_node("Cast", [source], ["float"], to=TensorProto.FLOAT))
        source = "float"
    if last:
        nodes.append(helper.make_node("Transpose", [source], ["first"], perm=[0, 3, 1, 2]))
        source = "first"
    nodes += [
        helper.make_node("AveragePool", [source], ["map"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Identity", ["constant_boxes"], ["boxes"]),
        helper.make_node("Identity", ["constant_scores"], ["scores"]),
    ]
    outputs = {"map": [batch or "batch", 3, 4, 6], **{name: list(own.shape) for name, own in constants.items()}}
    graph = helper.make_graph(
        nodes,
        "teacher",
        [helper.make_tensor_value_info("picture", kind, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, own) for name, own in outputs.items()],
        [numpy_helper.from_array(np.array(own), f"constant_{name}") for name, own in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def config(path: Path, **changes: object) -> TeacherConfig:
    return TeacherConfig(kind="onnx", file=str(path), maps=("map",), **changes)


def pictures(batch: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("batch", [None, 1])
@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.UINT8])
def test_it_sees_what_the_graph_computes(tmp_path: Path, last: bool, batch: int | None, kind: int, bgr: bool) -> None:
    path = a_file(tmp_path / "teacher.onnx", last, batch, kind)
    scaled = {"mean": (1, 2, 3), "std": (2, 4, 8)} if kind == TensorProto.FLOAT else {}
    teacher = OnnxTeacher(config(path, bgr=bgr, **scaled), SIZE)
    assert (teacher.channels, teacher.strides) == ((3,), (16,))
    images = pictures()
    seen = teacher.look(images, False)
    values = images.double().numpy()[:, ::-1] if bgr else images.double().numpy()
    if kind == TensorProto.FLOAT:
        values = (values - np.array([1, 2, 3]).reshape(1, 3, 1, 1)) / np.array([2, 4, 8]).reshape(1, 3, 1, 1)
    by_hand = values.reshape(2, 3, 4, 16, 6, 16).mean((3, 5))
    np.testing.assert_allclose(seen.features.map.numpy(), by_hand, rtol=1e-4, atol=1e-3)
    assert seen.regions is None


@pytest.mark.parametrize("last", [False, True])
def test_a_shape_that_says_nothing_is_completed_by_the_recipe(tmp_path: Path, last: bool) -> None:
    told = OnnxTeacher(config(a_file(tmp_path / "told.onnx", last)), SIZE).look(pictures(), False).features.map
    model = onnx.load(a_file(tmp_path / "open.onnx", last))
    for place, side in enumerate(model.graph.input[0].type.tensor_type.shape.dim):
        side.dim_param = f"side_{place}"
    onnx.save(model, tmp_path / "open.onnx")
    with pytest.raises(InputError, match=r"does not say how its pictures lie; set teacher\.layout=nchw"):
        OnnxTeacher(config(tmp_path / "open.onnx"), SIZE)
    teacher = OnnxTeacher(config(tmp_path / "open.onnx", layout=LAYOUTS[last]), SIZE)
    assert torch.equal(teacher.look(pictures(), False).features.map, told)
    with pytest.raises(InputError, match=rf"takes \[\?, .*as teacher\.layout={LAYOUTS[not last]} says"):
        OnnxTeacher(config(a_file(tmp_path / "told.onnx", last), layout=LAYOUTS[not last]), SIZE)


def test_of_any_number_of_pictures_no_more_are_looked_at_than_large_networks_bear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = OnnxTeacher(config(a_file(tmp_path / "teacher.onnx")), SIZE).look(pictures(9), False).features.map
    monkeypatch.setattr(module, "MOST_LOOKED_AT", 4 * SIZE[0] * SIZE[1] + 1)
    teacher = OnnxTeacher(config(a_file(tmp_path / "teacher.onnx")), SIZE)
    calls: list[int] = []
    run = teacher.engine.run

    def counted(feeds: Mapping[str, NDArray[np.float32]]) -> Mapping[str, NDArray[np.float32]]:
        calls.append(len(feeds["picture"]))
        return run(feeds)

    monkeypatch.setattr(teacher, "engine", replace(teacher.engine, run=counted))
    assert torch.equal(teacher.look(pictures(9), False).features.map, whole)
    assert calls == [4, 4, 1]


def test_a_file_that_divides_by_a_picture_s_contrast_is_taken(tmp_path: Path) -> None:
    """A black picture would be 0 / 0."""
    model = onnx.load(a_file(tmp_path / "teacher.onnx"))
    nodes = [
        helper.make_node(kind, ["picture"], [name], axes=[1, 2, 3])
        for kind, name in (("ReduceMax", "high"), ("ReduceMin", "low"))
    ]
    nodes += [
        helper.make_node("Sub", ["high", "low"], ["span"]),
        helper.make_node("Div", ["picture", "span"], ["even"]),
    ]
    model.graph.node[0].input[0] = "even"
    for place, node in enumerate(nodes):
        model.graph.node.insert(place, node)
    onnx.save(model, tmp_path / "teacher.onnx")
    seen = OnnxTeacher(config(tmp_path / "teacher.onnx", boxes="boxes", scores="scores"), SIZE).look(pictures(), True)
    assert seen.features.map.isfinite().all()


@pytest.mark.parametrize("boxes", [2, 3, 5])
def test_the_shape_in_the_file_says_how_scores_of_any_number_of_boxes_lie(tmp_path: Path, boxes: int) -> None:
    """With as many boxes as classes the numbers alone do not tell."""
    scores = np.linspace(0.1, 0.9, 3 * boxes, dtype=np.float32).reshape(1, 3, boxes)
    corners = np.tile(np.array([0, 0, 9, 9], np.float32), (1, boxes, 1)) + 10 * np.arange(boxes).reshape(1, -1, 1)
    constants = {"boxes": corners.astype(np.float32), "scores": scores}
    path = a_file(tmp_path / "teacher.onnx", batch=1, constants=constants)
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(np.ones(boxes, np.bool_), "taken"))
    for output, axis in zip(model.graph.output[1:], (1, 2), strict=True):
        (node,) = (own for own in model.graph.node if own.output == [output.name])
        node.op_type = "Compress"  # how many boxes there are is known when it runs
        node.input.append("taken")
        node.attribute.append(helper.make_attribute("axis", axis))
        output.type.tensor_type.shape.dim[axis].dim_param = "any"
    onnx.save(model, path)
    named = {"boxes": "boxes", "scores": "scores", "classes": ("a", "b", "c"), "suppress": 1}
    (found,) = OnnxTeacher(config(path, **named), SIZE).labeller(("a", "b", "c"))(pictures(1))
    assert set(found.labels) == {2}  # the last row has the highest scores of all boxes
    np.testing.assert_allclose(np.sort(found.scores), np.sort(scores[0, 2]))


@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_a_file_of_four_pictures_at_once_sees_any_number(tmp_path: Path, count: int) -> None:
    """The last call is filled up, and what fills it is in no output."""
    boxes = {"boxes": "boxes", "scores": "scores"}
    shapes = {"boxes": (4, 3, 4), "scores": (4, 3, 2)}
    repeated = {name: np.broadcast_to(own, shapes[name]) for name, own in (("boxes", BOXES), ("scores", SCORES))}
    four = OnnxTeacher(config(a_file(tmp_path / "four.onnx", batch=4, constants=repeated), **boxes), SIZE)
    one = OnnxTeacher(config(a_file(tmp_path / "one.onnx", batch=1), **boxes), SIZE)
    seen, wanted = (teacher.look(pictures(count), True) for teacher in (four, one))
    assert torch.equal(seen.features.map, wanted.features.map)
    assert seen.regions is not None
    assert wanted.regions is not None
    assert torch.equal(seen.regions.boxes, wanted.regions.boxes)
    assert torch.equal(seen.regions.valid, wanted.regions.valid)


def test_a_file_that_demands_thousands_of_pictures_is_refused(tmp_path: Path) -> None:
    path = a_file(tmp_path / "many.onnx", batch=100_000)
    with pytest.raises(InputError, match="takes 100,000 pictures at once; export it for 1, or for any number"):
        OnnxTeacher(config(path), SIZE)


def test_a_list_of_the_boxes_of_four_pictures_at_once_is_refused(tmp_path: Path) -> None:
    path = a_file(tmp_path / "four.onnx", batch=4)  # [N, 4] for all of them
    with pytest.raises(InputError, match="of 1 pictures, not of 4; export it for one picture, or for any number"):
        OnnxTeacher(config(path, boxes="boxes"), SIZE)


def test_its_boxes_are_regions_the_best_first(tmp_path: Path) -> None:
    path = a_file(tmp_path / "teacher.onnx", batch=1)
    found = OnnxTeacher(config(path, boxes="boxes", scores="scores"), SIZE).look(pictures(), True).regions
    assert found is not None
    # Cut at the picture of 96 x 64 pixels; what has no area counts for nothing, whatever its score.
    assert found.boxes[1][found.valid[1]].tolist() == [[10, 10, 96, 50], [4, 5, 30, 40]]
    unordered = OnnxTeacher(config(path, boxes="boxes"), SIZE).look(pictures(), True).regions
    assert unordered is not None
    assert unordered.boxes[0][unordered.valid[0]].tolist() == [[4, 5, 30, 40], [10, 10, 96, 50]]


@pytest.mark.parametrize(
    ("changes", "size", "said"),
    [
        ({"maps": ("mapp",)}, SIZE, "has no output 'mapp'; did you mean map[?] It has: map, boxes, scores"),
        ({"scores": "score"}, SIZE, "has no output 'score'; did you mean scores"),
        ({"maps": ()}, SIZE, "needs teacher.file, and the output with its map in teacher.maps"),
        ({"file": None}, SIZE, "needs teacher.file"),
        ({}, (96, 96), r"takes pictures of 64 x 96 pixels; set data.size=\[64,96\] \(.* is \[96, 96\]\), or"),
        ({"size": (96, 96)}, SIZE, r"64 x 96 pixels; set teacher.size=\[64,96\] \(it is \[96, 96\]\)\."),
        ({"maps": ("boxes",)}, SIZE, r"'boxes' of .* has shape \[3, 4\]; a map is"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, changes: dict[str, object], size: tuple[int, int], said: str
) -> None:
    own = config(a_file(tmp_path / "teacher.onnx")).model_copy(update=changes)
    with pytest.raises(InputError, match=said):
        OnnxTeacher(own, size)


def test_pixels_that_are_taken_as_they_are_need_no_mean(tmp_path: Path) -> None:
    path = a_file(tmp_path / "teacher.onnx", kind=TensorProto.UINT8)
    for scaled in ({"mean": (1, 2, 3)}, {"std": (1, 1, 1)}):
        with pytest.raises(InputError, match=r"takes uint8 pixels as they are; leave out teacher.mean and teacher.std"):
            OnnxTeacher(config(path, **scaled), SIZE)
    with pytest.raises(InputError, match=r"takes uint16; a teacher takes uint8 or float"):
        OnnxTeacher(config(a_file(tmp_path / "wide.onnx", kind=TensorProto.UINT16)), SIZE)


def a_graph(path: Path, nodes: list[onnx.NodeProto], output: onnx.ValueInfoProto, *values: onnx.TensorProto) -> Path:
    """A file of pictures of any number, with one output."""
    picture = helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 3, *SIZE])
    graph = helper.make_graph(nodes, "teacher", [picture], [output], list(values))
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_file_with_one_picture_in_a_shape_within_looks_at_one_by_one(tmp_path: Path) -> None:
    """As exporters leave it that were told of any number."""
    path = a_graph(
        tmp_path / "one.onnx",
        [
            helper.make_node("Reshape", ["picture", "shape"], ["flat"]),
            helper.make_node("Slice", ["flat", *"abc"], ["boxes"]),
        ],
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, None),
        numpy_helper.from_array(np.array([1, 3 * SIZE[0] * SIZE[1] // 4, 4]), "shape"),
        *(numpy_helper.from_array(np.array([one]), name) for name, one in (("a", 0), ("b", 2), ("c", 1))),
    )
    teacher = OnnxTeacher(TeacherConfig(kind="onnx", file=str(path), boxes="boxes", std=(1, 1, 1)), SIZE)
    images = torch.arange(2 * 3 * SIZE[0] * SIZE[1]).reshape(2, 3, *SIZE) % 61
    seen = teacher.look(images, True).regions
    assert seen is not None
    wanted = [own.flatten()[:8].reshape(2, 4).tolist() for own in images]
    assert [own[valid].tolist() for own, valid in zip(seen.boxes, seen.valid, strict=True)] == wanted


def test_boxes_of_all_pictures_in_one_list_are_looked_at_one_by_one(tmp_path: Path) -> None:
    """As YOLOv7 end to end: [N, 7] of any number of pictures; here two rows of each, from its first numbers."""
    path = a_graph(
        tmp_path / "list.onnx",
        [
            helper.make_node("Flatten", ["picture"], ["flat"]),
            helper.make_node("Slice", ["flat", *"abc"], ["own"]),
            helper.make_node("Reshape", ["own", "shape"], ["rows"]),
        ],
        helper.make_tensor_value_info("rows", TensorProto.FLOAT, ["n", 7]),
        numpy_helper.from_array(np.array([-1, 7]), "shape"),
        *(numpy_helper.from_array(np.array([one]), name) for name, one in (("a", 0), ("b", 14), ("c", 1))),
    )
    said = {"rows": "rows", "row_layout": ("skip", "box", "label", "score"), "std": (1, 1, 1), "suppress": 1}
    teacher = OnnxTeacher(TeacherConfig(kind="onnx", file=str(path), **said), SIZE)
    images = torch.randint(0, 20, (3, 3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images.flatten(1)[:, [3, 4, 10, 11]] += 20  # corners that are below and right of the others
    seen = teacher.look(images, True).regions
    assert seen is not None
    for own, boxes, valid in zip(images, seen.boxes, seen.valid, strict=True):
        rows = sorted(own.flatten()[:14].reshape(2, 7).tolist(), key=lambda row: -row[6])
        assert boxes[valid].tolist() == [row[1:5] for row in rows]


def test_a_list_that_is_wrong_for_one_picture_too_is_refused_as_it_was_first_seen(tmp_path: Path) -> None:
    path = a_graph(
        tmp_path / "wrong.onnx",
        [helper.make_node("Identity", ["picture"], ["boxes"])],
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, None),
    )
    with pytest.raises(InputError, match=r"has shape \[2, 3, 64, 96\]; boxes are"):
        OnnxTeacher(TeacherConfig(kind="onnx", file=str(path), boxes="boxes"), SIZE)


@pytest.mark.parametrize("more", [{"classes": ("a", None)}, {"activation": "sigmoid"}])
def test_which_score_of_a_softmax_is_for_no_object_is_said(tmp_path: Path, more: dict[str, object]) -> None:
    path = a_file(tmp_path / "teacher.onnx", batch=1)
    said = {"boxes": "boxes", "scores": "scores", "activation": "softmax"}
    with pytest.raises(InputError, match=r"have 2 scores that go through a softmax, .* null for no object"):
        OnnxTeacher(config(path, **said), SIZE)
    OnnxTeacher(config(path, **{**said, **more}), SIZE)


@pytest.mark.parametrize("kind", ["a sequence", "strings"])
def test_outputs_that_are_no_numbers_are_named(tmp_path: Path, kind: str) -> None:
    one = helper.make_node("SequenceConstruct", ["picture"], ["boxes"])
    output = helper.make_tensor_sequence_value_info("boxes", TensorProto.FLOAT, None)
    if kind == "strings":
        one = helper.make_node("Cast", ["picture"], ["boxes"], to=TensorProto.STRING)
        output = helper.make_tensor_value_info("boxes", TensorProto.STRING, None)
    path = a_graph(tmp_path / "strange.onnx", [one], output)
    with pytest.raises(InputError, match=rf"The output 'boxes' of .* is {kind}; boxes, scores and labels are numbers"):
        OnnxTeacher(TeacherConfig(kind="onnx", file=str(path), boxes="boxes"), SIZE)


def test_regions_without_boxes_are_refused(tmp_path: Path) -> None:
    teacher = OnnxTeacher(config(a_file(tmp_path / "teacher.onnx")), SIZE)
    with pytest.raises(InputError, match=r"mimic.regions=teacher needs the teacher's boxes: name its output in"):
        teacher.look(pictures(), True)


def with_more_inputs(path: Path) -> Path:
    """A graph that takes a picture, its size and a mask, as exports of RT-DETR and DETR do.

    Its boxes are shares of the size; its one score is the mean of the mask.
    """
    inputs = [
        helper.make_tensor_value_info("mask", TensorProto.BOOL, ["batch", "height", "width"]),
        helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 3, "height", "width"]),
        helper.make_tensor_value_info("sizes", TensorProto.INT64, ["batch", 2]),
    ]
    nodes = [
        helper.make_node("AveragePool", ["picture"], ["map"], kernel_shape=[16, 16], strides=[16, 16]),
        helper.make_node("Cast", ["sizes"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Concat", ["wide", "wide"], ["four"], axis=1),
        helper.make_node("Unsqueeze", ["four", "one"], ["row"]),
        helper.make_node("Mul", ["row", "shares"], ["boxes"]),
        helper.make_node("Cast", ["mask"], ["kept"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["kept"], ["mean"], axes=[1, 2], keepdims=0),
        helper.make_node("Reshape", ["mean", "column"], ["scores"]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("map", "boxes", "scores")]
    values = {
        "one": np.array([1]),
        "column": np.array([-1, 1, 1]),
        "shares": np.array([0.25, 0.5, 0.5, 1], np.float32),
    }
    graph = helper.make_graph(
        nodes, "teacher", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in values.items()]
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_other_inputs_take_what_the_recipe_says(tmp_path: Path) -> None:
    path = with_more_inputs(tmp_path / "a.onnx")
    inputs = {"sizes": [SIZE[1], SIZE[0]], "mask": 1}
    teacher = OnnxTeacher(config(path, boxes="boxes", scores="scores", inputs=inputs), SIZE)
    seen = teacher.look(pictures(3), True)
    assert seen.features.map.shape == (3, 3, 4, 6)
    assert seen.regions is not None
    assert seen.regions.boxes.tolist() == [[[24, 32, 48, 64]]] * 3
    assert seen.regions.valid.all()


def test_an_input_of_any_length_is_as_long_as_what_is_given(tmp_path: Path) -> None:
    """As of detectors that are told in words what to find; here the words are the box."""
    path = a_graph(
        tmp_path / "words.onnx",
        [
            helper.make_node("Cast", ["words"], ["wide"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["wide", "one"], ["boxes"]),
        ],
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, None),
        numpy_helper.from_array(np.array([1]), "one"),
    )
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("words", TensorProto.INT64, ["batch", "length"]))
    onnx.save(model, path)
    said = {"boxes": "boxes", "inputs": {"words": [3, 5, 30, 50]}}
    seen = OnnxTeacher(TeacherConfig(kind="onnx", file=str(path), **said), SIZE).look(pictures(), True).regions
    assert seen is not None
    assert seen.boxes.tolist() == [[[3, 5, 30, 50]]] * 2


@pytest.mark.parametrize(
    ("kernel", "stride", "last", "said"),
    [
        (
            1,
            64,
            False,
            r"\[2, 3, 1, 2\]; a map is .*: the picture's border cuts its cells; take sides .* multiples of 64",
        ),
        (1, 10, False, r"\[2, 3, 7, 10\]; a map is .*: if the file resizes its pictures"),
        (16, 16, True, r"\[2, 4, 6, 3\]; a map is .*: its channels come last; name what it is before it is transposed"),
    ],
)
def test_what_is_no_map_is_advised(tmp_path: Path, kernel: int, stride: int, last: bool, said: str) -> None:
    nodes = [helper.make_node("AveragePool", ["picture"], ["a"], kernel_shape=[kernel] * 2, strides=[stride] * 2)]
    nodes.append(helper.make_node("Transpose", ["a"], ["map"], perm=[0, 2, 3, 1] if last else [0, 1, 2, 3]))
    path = a_graph(tmp_path / "a.onnx", nodes, helper.make_tensor_value_info("map", TensorProto.FLOAT, None))
    with pytest.raises(InputError, match=said):
        OnnxTeacher(config(path), SIZE)


def test_an_input_too_large_to_fill_is_refused(tmp_path: Path) -> None:
    path = with_more_inputs(tmp_path / "a.onnx")
    model = onnx.load(path)
    sides = model.graph.input[0].type.tensor_type.shape.dim  # the mask's
    sides[1].dim_value = sides[2].dim_value = 1 << 20
    onnx.save(model, path)
    with pytest.raises(InputError, match=r"more than 16,777,216 a picture"):
        OnnxTeacher(config(path, inputs={"sizes": [96, 64], "mask": 1}), SIZE)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"takes 3 inputs \(mask, picture, sizes\); say in teacher.inputs"),
        ({"sizes": [96, 64]}, r"takes 3 inputs"),
        (
            {"sizes": [96, 64], "mask": 1, "picture": 0},
            r"names every input of .* \(mask, picture, sizes\); leave out the picture's",
        ),
        ({"size": [96, 64], "mask": 1}, r"no input 'size'; it has: mask, picture, sizes"),
        ({"sizes": [96, 64, 3], "mask": 1}, r"gives sizes of .* \[96, 64, 3\]; it takes int64 of shape \['any', 2\]"),
        ({"sizes": [96.5, 64], "mask": 1}, r"it takes int64"),
        ({"sizes": ["a", "b"], "mask": 1}, r"it takes int64"),
        ({"sizes": [[1, 2], [3]], "mask": 1}, r"it takes int64"),
        ({"sizes": {"a": 1}, "mask": 1}, r"it takes int64"),
        ({"sizes": None, "mask": 1}, r"it takes int64"),
        ({"sizes": [96, 64], "mask": 0.5}, r"it takes bool"),
    ],
)
def test_other_inputs_that_do_not_fit_are_refused(tmp_path: Path, inputs: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OnnxTeacher(config(with_more_inputs(tmp_path / "a.onnx"), inputs=inputs), SIZE)


def test_a_file_of_ours_finds_what_it_ships_to_find() -> None:
    shipped = Detector("zoo:digits")
    classes = shipped.metadata.classes
    settings = TeacherConfig(
        kind="onnx", file="zoo:digits", boxes="boxes", scores="scores", labels="labels", classes=classes, suppress=1
    )
    dataset = open_dataset(DataConfig(root="synthetic:digits"))
    samples = dataset.splits["val"][:4]
    pictures = np.stack([dataset.load(sample) for sample in samples])
    assert pictures.shape[1:3] == shipped.metadata.size
    find = OnnxTeacher(settings, shipped.metadata.size).labeller(classes)
    for picture, found in zip(pictures, find(torch.from_numpy(pictures).permute(0, 3, 1, 2)), strict=True):
        wanted = shipped(picture)
        assert len(found) == len(wanted.scores) > 0
        np.testing.assert_allclose(found.scores, wanted.scores, atol=1e-6)
        assert found.labels.tolist() == wanted.labels.tolist()
        np.testing.assert_allclose(found.boxes, wanted.boxes, atol=1e-3)


def test_a_file_that_is_newer_than_its_engine_says_so(tmp_path: Path) -> None:
    """ONNX Runtime says last what is wrong, after the places in its own code."""
    model = onnx.load(a_file(tmp_path / "teacher.onnx"))
    model.ir_version = 99
    onnx.save(model, tmp_path / "teacher.onnx")
    with pytest.raises(InputError, match=r"IR version: 99, max supported IR version: .* or upgrade onnxruntime"):
        OnnxTeacher(config(tmp_path / "teacher.onnx"), SIZE)


@pytest.mark.parametrize("domain", ["TRT", ""])
def test_an_operator_of_another_engine_is_named(tmp_path: Path, domain: str) -> None:
    model = onnx.load(a_file(tmp_path / "teacher.onnx"))
    said = {
        "background_class": -1,
        "box_coding": 0,
        "iou_threshold": 0.5,
        "max_output_boxes": 9,
        "score_threshold": 0.1,
    }
    said |= {"plugin_version": "1", "score_activation": 0}
    kept = list("nbsc")
    model.graph.node.append(helper.make_node("EfficientNMS_TRT", ["map", "map"], kept, domain=domain, **said))
    if domain:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    onnx.save(model, tmp_path / "teacher.onnx")
    with pytest.raises(InputError, match=r"EfficientNMS_TRT.*; ONNX Runtime .* lacks one of its operators"):
        OnnxTeacher(config(tmp_path / "teacher.onnx"), SIZE)
