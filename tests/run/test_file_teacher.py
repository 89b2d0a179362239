"""Runs whose teacher is a file that they do not train."""

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qmimic
from qmimic.config import Recipe
from qmimic.errors import InputError

MakeRecipe = Callable[..., Recipe]


def a_file(path: Path) -> Path:
    """A graph whose map is the means of 16 x 16 pixels."""
    picture = helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    nodes = [helper.make_node("AveragePool", ["picture"], ["map"], kernel_shape=[16, 16], strides=[16, 16])]
    output = helper.make_tensor_value_info("map", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "teacher", [picture], [output])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_student_learns_from_a_file(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    path = a_file(tmp_path / "teacher.onnx")
    changes = {
        "teacher": {"kind": "onnx", "file": str(path), "maps": ["map"]},
        "mimic": {"regions": "ground_truth", "map_steps": 0, "last_step": 1},
    }
    recipe = make_recipe(**changes).model_copy(update={"baselines": ("scratch",)})
    results = qmimic.train(recipe).results
    assert [one.name for one in results] == ["scratch", "student"]
    student = results[-1]
    assert student.matching is not None
    assert student.distillation_share is not None
    assert qmimic.train(recipe).results[-1].key == student.key
    # The same path with another content is another teacher.
    model = onnx.load(path)
    model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(helper.make_tensor("x", 1, [1], [2]))))
    onnx.save(model, path)
    assert qmimic.train(recipe).results[-1].key != student.key


def test_nothing_is_cut_out_of_a_file(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    teacher = {"kind": "onnx", "file": str(a_file(tmp_path / "teacher.onnx")), "maps": ["map"]}
    recipe = make_recipe(teacher=teacher).model_copy(update={"baselines": ("taylor",)})
    with pytest.raises(InputError, match="taylor is cut out of a teacher that the run trains"):
        qmimic.train(recipe)
