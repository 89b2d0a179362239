"""Maps inside an ONNX file: given as the graph computes them, here computed by torch; the file stays as it is."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.nn import functional as F

from qmimic.config import TeacherConfig
from qmimic.distill.inner_maps import open_giving
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
    with pytest.raises(InputError, match=r"'boxes' of .* has shape \[1, 384, 4\]; a map is"):
        teacher_of(path, "boxes")


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
    with pytest.raises(InputError, match=r"big\.onnx"):
        teacher_of(path, "/neck/act")


def test_garbage_is_refused_by_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "big.onnx"
    path.write_bytes(b"no protobuf at all" * 100)
    with pytest.raises(InputError, match=r"big\.onnx"):
        open_giving(path, ("map",), 1)
