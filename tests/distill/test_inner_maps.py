"""Maps inside an ONNX file: given as the graph computes them, here computed by torch; the file stays as it is."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from qmimic.config import TeacherConfig
from qmimic.distill.inner_maps import branching_maps, files_beside
from qmimic.distill.onnx_teacher import OnnxTeacher
from qmimic.errors import InputError

SIZE = (64, 96)


def a_detector(path: Path, beside: bool = False) -> dict[str, np.ndarray]:
    """A stem, a map of stride 4 from which two heads branch off, and boxes alone as the output; its weights.

    Args:
        path: of the file.
        beside: whether the weights lie in a file beside it.
    """
    numbers = np.random.default_rng(0)
    shapes = {"stem": (5, 3, 3, 3), "neck": (6, 5, 3, 3), "left": (2, 6, 1, 1), "right": (2, 6, 1, 1)}
    weights = {name: numbers.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}

    def conv(source: str, name: str, stride: int) -> onnx.NodeProto:
        side = weights[name].shape[-1]
        sides = {"kernel_shape": [side, side], "strides": [stride, stride], "pads": [side // 2] * 4}
        return helper.make_node("Conv", [source, f"{name}.weight"], [name], **sides)

    nodes = [
        conv("picture", "stem", 2),
        helper.make_node("Relu", ["stem"], ["/stem/act"]),
        conv("/stem/act", "neck", 2),
        helper.make_node("Relu", ["neck"], ["/neck/act"]),
        conv("/neck/act", "left", 1),
        conv("/neck/act", "right", 1),
        helper.make_node("Concat", ["left", "right"], ["both"], axis=1),
        helper.make_node("Reshape", ["both", "flat"], ["boxes"]),
    ]
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 3, *SIZE])],
        [helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["batch", None, 4])],
        [
            *(numpy_helper.from_array(value, f"{name}.weight") for name, value in weights.items()),
            numpy_helper.from_array(np.array([0, -1, 4]), "flat"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path, save_as_external_data=beside, location=f"{path.name}.data", size_threshold=64)
    return weights


def teacher_of(path: Path, *maps: str) -> OnnxTeacher:
    return OnnxTeacher(TeacherConfig(kind="onnx", file=str(path), maps=maps, std=(1, 1, 1)), SIZE)


@pytest.mark.parametrize("beside", [False, True])
def test_a_map_inside_is_what_the_graph_computes_there(tmp_path: Path, beside: bool) -> None:
    path = tmp_path / "big.onnx"
    weights = a_detector(path, beside)
    before = path.read_bytes()
    teacher = teacher_of(path, "/stem/act", "/neck/act")
    assert (teacher.channels, teacher.strides) == ((5, 6), (2, 4))
    images = torch.randint(0, 256, (3, 3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen = teacher.look(images, False).features
    stem = F.conv2d(images.double(), torch.from_numpy(weights["stem"]).double(), stride=2, padding=1).relu()
    neck = F.conv2d(stem, torch.from_numpy(weights["neck"]).double(), stride=2, padding=1).relu()
    for level, value in zip(seen.levels, (stem, neck), strict=True):
        torch.testing.assert_close(level.map.double(), value, rtol=1e-4, atol=1e-2)
    assert path.read_bytes() == before, "somebody else's file is never changed"


def test_a_wrong_name_is_told_where_heads_branch_off(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    a_detector(path)
    said = (
        r"has no output '/neck/acts'; did you mean /neck/act\? It has: boxes\. Maps inside it can be named too: "
        r"/stem/act \(stride 2, 5 channels\), /neck/act \(stride 4, 6 channels\)\."
    )
    with pytest.raises(InputError, match=said):
        teacher_of(path, "/neck/acts")


def test_a_value_inside_that_is_no_map_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    a_detector(path)
    with pytest.raises(InputError, match=r"'boxes' of .* has shape \[2, 384, 4\]; a map is"):
        teacher_of(path, "boxes")


def test_maps_of_more_pictures_than_there_are_are_not_offered(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    a_detector(path)
    values = {"/stem/act": np.ones((3, 5, 32, 48), np.float32), "/neck/act": np.ones((12, 6, 16, 24), np.float32)}
    assert branching_maps(path, values, SIZE, 3) == {2: ("/stem/act", 5)}


def a_graph(path: Path, *nodes: onnx.NodeProto, batch: int | str = "batch") -> None:
    """A file whose output is the picture, and whose nodes compute something besides."""
    graph = helper.make_graph(
        [*nodes, helper.make_node("Identity", ["picture"], ["same"])],
        "strange",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [batch, 3, *SIZE])],
        [helper.make_tensor_value_info("same", TensorProto.FLOAT, [batch, 3, *SIZE])],
        [numpy_helper.from_array(np.array([0], np.int64), "none"), numpy_helper.from_array(np.array(True), "yes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def branch(name: str) -> onnx.GraphProto:
    node = helper.make_node("Relu", ["picture"], [name])
    return helper.make_graph([node], name, [], [helper.make_tensor_value_info(name, TensorProto.FLOAT, None)])


STRANGE = {
    "list": ([helper.make_node("SequenceConstruct", ["picture"], ["it"])], "is a sequence; a map has numbers"),
    "whole numbers": ([helper.make_node("Cast", ["picture"], ["it"], to=TensorProto.INT64)], "is int64; a map has"),
    "no channels": (
        [helper.make_node("Gather", ["picture", "nothing"], ["it"], axis=1)],
        r"has shape \[2, 0, 64, 96\]",
    ),
    "twice as many": ([helper.make_node("Concat", ["picture", "picture"], ["it"], axis=0)], "4 entries for 2 pictures"),
    "one for all": ([helper.make_node("Gather", ["picture", "none"], ["it"], axis=0)], "1 entries for 2 pictures"),
    "in a branch": (
        [helper.make_node("If", ["yes"], ["chosen"], then_branch=branch("it"), else_branch=branch("other"))],
        "'it' lies in a branch or a loop",
    ),
}


@pytest.mark.parametrize("case", STRANGE)
def test_what_no_student_can_imitate_is_refused_before_any_training(tmp_path: Path, case: str) -> None:
    nodes, said = STRANGE[case]
    path = tmp_path / "strange.onnx"
    if case == "no channels":
        nothing = helper.make_node(
            "ConstantOfShape", ["none"], ["nothing"], value=helper.make_tensor("v", TensorProto.INT64, [1], [0])
        )
        nodes = [nothing, *nodes]
    a_graph(path, *nodes)
    with pytest.raises(InputError, match=said):
        teacher_of(path, "it")


def test_two_maps_of_one_stride_are_named(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    a_detector(path)
    with pytest.raises(InputError, match=r"one map of each: /neck/act has 4, /stem/act has 2\."):
        teacher_of(path, "/neck/act", "/stem/act")


@pytest.mark.parametrize("kept", [None, 100])
def test_weights_that_are_missing_or_cut_short_are_named(tmp_path: Path, kept: int | None) -> None:
    path, beside = tmp_path / "big.onnx", tmp_path / "big.onnx.data"
    a_detector(path, beside=True)
    content = beside.read_bytes()
    beside.unlink()
    if kept is not None:
        beside.write_bytes(content[:kept])
    said = (
        r"needs [\d,]+ bytes of weights in .*big\.onnx\.data, which has 100"
        if kept
        else r"needs its weights in .*big\.onnx\.data: "
    )
    with pytest.raises(InputError, match=said):
        teacher_of(path, "/neck/act")


def test_weights_beside_a_file_are_known_wherever_its_graph_holds_them(tmp_path: Path) -> None:
    """A constant node's too, and those of a branch: what lies there decides what the teacher sees."""

    def outside(name: str) -> onnx.TensorProto:
        own = onnx.TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1])
        own.data_location = TensorProto.EXTERNAL
        own.external_data.add(key="location", value=f"{name}.bin")
        (tmp_path / f"{name}.bin").write_bytes(bytes(4))
        return own

    inner = helper.make_graph(
        [helper.make_node("Constant", [], ["d"], value=outside("deep"))],
        "branch",
        [],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, None)],
    )
    path = tmp_path / "strange.onnx"
    nodes = [
        helper.make_node("Constant", [], ["c"], value=outside("constant")),
        helper.make_node("If", ["yes"], ["chosen"], then_branch=inner, else_branch=branch("other")),
    ]
    graph = helper.make_graph(nodes, "g", [], [], [outside("initializer")])
    path.write_bytes(helper.make_model(graph).SerializeToString())
    assert [own.name for own in files_beside(path)] == ["constant.bin", "deep.bin", "initializer.bin"]


def test_weights_of_another_folder_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    path = tmp_path / "theirs" / "big.onnx"
    a_detector(path, beside=True)
    (tmp_path / "theirs" / "big.onnx.data").rename(tmp_path / "secret.data")
    model = onnx.load(str(path), load_external_data=False)
    for value in model.graph.initializer:
        for entry in value.external_data:
            entry.value = "../secret.data" if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match=r"needs its weights in .*secret\.data: .*Copy both files into one folder"):
        teacher_of(path, "/neck/act")


@pytest.mark.parametrize("content", [b"no protobuf at all" * 100, b"", b"PK\x03\x04 a zip file of weights"])
def test_what_is_no_onnx_file_is_called_so(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "big.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"teacher.file: .*big\.onnx is not an ONNX file, or is cut short; name"):
        teacher_of(path, "map")
