"""Runs whose teacher is a file that they do not train."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import qmimic
from qmimic.config import Recipe
from qmimic.errors import InputError
from qmimic.run.train import train
from qmimic.training.progress import Silent

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


def with_map(path: Path, *nodes: onnx.NodeProto) -> Path:
    """The same graph, whose map goes through these nodes, from `map` to `it`."""
    model = onnx.load(a_file(path))
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(
        numpy_helper.from_array(np.array(value, np.float32), name)
        for name, value in (("zero", 0), ("minus", -1), ("half", 0.55))
    )
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([helper.make_node("Mul", ["map", "zero"], ["it"])], "'it' is 0 everywhere on training pictures"),
        (
            [helper.make_node("Mul", ["map", "zero"], ["none"]), helper.make_node("Div", ["none", "none"], ["it"])],
            "'it' has NaN or infinite values",
        ),
        ([helper.make_node("Mul", ["map", "minus"], ["it"])], "'it' has nothing above 0, as Q and the adaptor need it"),
    ],
)
def test_a_map_that_nobody_can_learn_from_is_refused(
    make_recipe: MakeRecipe, tmp_path: Path, nodes: list[onnx.NodeProto], said: str
) -> None:
    changes = {
        "teacher": {"kind": "onnx", "file": str(with_map(tmp_path / "teacher.onnx", *nodes)), "maps": ["it"]},
        "mimic": {"regions": "ground_truth", "map_steps": 0, "last_step": 1},
    }
    recipe = make_recipe(**changes)
    with pytest.raises(InputError, match=said):
        qmimic.train(recipe)
    assert not list(recipe.folder.rglob("*.safetensors"))


@pytest.mark.parametrize("relu", [True, False])
def test_what_lies_below_0_is_said(make_recipe: MakeRecipe, tmp_path: Path, relu: bool) -> None:
    path = with_map(tmp_path / "teacher.onnx", helper.make_node("Sub", ["map", "half"], ["it"]))
    changes = {
        "teacher": {"kind": "onnx", "file": str(path), "maps": ["it"]},
        "mimic": {
            "mode": "mimic", "adaptor_relu": relu, "regions": "ground_truth", "map_steps": 0, "last_step": 1,
        },
    }  # fmt: skip
    said: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    train(make_recipe(**changes).model_copy(update={"baselines": ()}), Heard())
    assert any("of the entries of it are below 0" in text for text in said) == relu


@pytest.mark.parametrize("unit", ["pixels", "shares"])
@pytest.mark.parametrize("with_truth", [False, True])
def test_regions_that_hold_no_object_of_val_are_told(
    make_recipe: MakeRecipe, tmp_path: Path, unit: str, with_truth: bool
) -> None:
    """Boxes everywhere, in pixels; read as shares, all of them are the whole picture."""
    sides = [(x, y, x + size, y + size) for size in (12, 20, 32) for x in range(0, 96, 6) for y in range(0, 96, 6)]
    path = a_file(tmp_path / "teacher.onnx")
    model = onnx.load(path)
    model.graph.node.append(helper.make_node("Identity", ["constant"], ["boxes"]))
    model.graph.initializer.append(numpy_helper.from_array(np.array([sides], np.float32) + 1, "constant"))
    model.graph.output.append(helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, len(sides), 4]))
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    onnx.save(model, path)
    changes = {
        "teacher": {"kind": "onnx", "file": str(path), "maps": ["map"], "boxes": "boxes", "box_unit": unit},
        "mimic": {"map_steps": 0, "last_step": 1, "region_count": len(sides), "with_truth": with_truth},
    }
    said: list[str] = []

    class Heard(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    recipe = make_recipe(**changes).model_copy(update={"baselines": ()})
    if unit == "shares" and not with_truth:
        with pytest.raises(InputError, match=r"hold 0 of \d+ objects of val .*check teacher\.box_format, box_unit"):
            train(recipe, Heard())
        assert not list(recipe.folder.rglob("*.safetensors"))
        return
    train(recipe, Heard())
    held = [re.search(r"hold (\d+) of (\d+) objects of val", text) for text in said]
    (found,) = [one for one in held if one]
    assert (int(found[1]) > 0) == (unit == "pixels")
    assert int(found[1]) <= int(found[2]) > 20
