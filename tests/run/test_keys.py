"""Keys: every setting of a recipe reaches the stages that it can change, and no others."""

import ast
import os
from collections.abc import Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

import qmimic
from folders import picture, voc_list, voc_object, voc_xml
from qmimic.config import Recipe, TeacherFileConfig, recipe_from, settings
from qmimic.data.chosen import dataset_fingerprint
from qmimic.data.formats import load_dataset
from qmimic.errors import InputError
from qmimic.run.keys import (
    Parents,
    check_key,
    costs_key,
    data_key,
    detections_key,
    found_key,
    int8_key,
    job_keys,
    labels_key,
    matching_key,
    mixed_key,
    opened_key,
    pruned_key,
    quantized_key,
    student_key,
    teacher_key,
    timing_key,
    weights_key,
)

OF_FILE = tuple(TeacherFileConfig.model_fields)  # of a teacher that is one
OF_UNLABELLED = ("data.unlabelled", "data.unlabelled_share", "data.unlabelled_doubt")
ALL = frozenset({"teacher", "quantized", "pruned", "student", "int8"})
OF_TEACHER = ALL - {"int8"}  # what is put on integers is known by its weights
OF_QUANTIZED, OF_PRUNED = frozenset({"quantized", "student"}), frozenset({"pruned", "student"})
STUDENT, INT8, NONE = frozenset({"student"}), frozenset({"int8"}), frozenset[str]()

# What the keys of a section reach, then the keys that reach otherwise. A key that neither names fails the test.
SECTIONS = {
    "detector": ALL,
    "augment": ALL,
    "teacher": OF_TEACHER,
    "quantized_teacher": OF_QUANTIZED,
    "student": STUDENT,
    "quantizer": OF_QUANTIZED,
    "mimic": STUDENT,
    "pruning": OF_PRUNED,
    "int8": INT8,
}
KEYS = {
    **dict.fromkeys(("name", "published"), NONE),
    "seed": ALL,
    "baselines": NONE,
    # The folder, its splits and its share of labels come in by the dataset's own fingerprint.
    "data.label_share": NONE,
    **dict.fromkeys(OF_UNLABELLED, NONE),  # see the test of the labels' keys
    **dict.fromkeys(("data.root", "data.train", "data.val", "data.fold", "data.cache_mib", "data.allow_capped"), NONE),
    **dict.fromkeys(("data.size", "data.drop_bad_boxes", "data.grey"), ALL),
    "teacher.min_map": NONE,
    **dict.fromkeys(("student.backbone", "student.batch_size"), OF_PRUNED),
    "int8.max_loss": NONE,
    **dict.fromkeys(("run.dir", "run.threads", "run.device", "run.bank_mib", "run.report", "run.trackers"), NONE),
    "run.precision": OF_TEACHER,
}
OTHER: dict[str, Any] = {  # where the kind of a key does not give another value
    "baselines": ["mimic"],
    "published": {"mimic": "44.6"},
    "data.root": "elsewhere",
    "data.fold": [1, 3],
    "data.unlabelled": "frames",
    "teacher.size": [64, 64],
    "teacher.row_layout": ["box", "scores"],
    "teacher.classes": ["cat"],
    "data.size": [96, 160],
    "detector.anchors": [[8, 8]],
    "detector.anchor_cells": [4, 8],
    "detector.head_width": 9,
    "detector.output_stride": 8,
    "detector.levels": [8, 16],
    "augment.scale": [0.5, 2.0],
    "teacher.backbone": "vgg16/2",
    "teacher.inputs": {"sizes": [640, 640]},
    "teacher.maps": ["map"],
    "teacher.grid_strides": [8, 16],
    "teacher.anchors": [[[9, 8]]],
    "teacher.variances": [0.1, 0.1, 0.2, 0.2],
    "teacher.centre_scales": [1.2],
    "teacher.mean": [1, 2, 3],
    "teacher.detector": "rfcn",
    "student.backbone": "vgg16/32",
    "quantizer.upper": 7,
    "mimic.mode": "mimic",
    "mimic.weight": 0.7,
    "mimic.distance": "cell",
    "mimic.settings": {"temperature": 3.0},
    "run.dir": "elsewhere",
    "run.trackers": [],
    "run.precision": "bf16",
}
GRIDS = {"box_format": "distances", "box_unit": "strides", "grid_strides": [8], "grid_point": 1}
ANCHORS = {"box_format": "deltas", "grid_strides": [8], "grid_point": 0, "anchors": [[[8, 8]]]}
OUTPUTS: dict[str, dict[str, Any]] = {  # what has to be set beside a setting of a teacher that is a file
    "teacher.scores": {"boxes": "b"},
    "teacher.counts": {"boxes": "b"},
    "teacher.labels": {"boxes": "b", "scores": "s"},
    "teacher.objectness": {"boxes": "b", "scores": "s"},
    "teacher.objectness_activation": {"boxes": "b", "scores": "s", "objectness": "o"},
    **dict.fromkeys(("teacher.grid_strides", "teacher.grid_point", "teacher.bins"), GRIDS),
    "teacher.anchors": ANCHORS,
    "teacher.cell_boxes": GRIDS,
    "teacher.peaks": {**GRIDS, "boxes": "b", "scores": "s"},
    "teacher.activation": {"boxes": "b", "scores": "s"},
    "teacher.sizes": {**GRIDS, "box_format": "centres", "boxes": "b"},
    "teacher.anchors_first": ANCHORS,
    "teacher.variances": ANCHORS,
    "teacher.centre_scales": {"box_format": "yolov3", "grid_strides": [8], "anchors": [[[8, 8]]]},
    "teacher.row_layout": {"rows": "r", "row_layout": ["box", "score", "label"]},
    "teacher.transposed": {"rows": "r", "row_layout": ["box", "score", "label"]},
    "teacher.rows": {"rows": "r", "row_layout": ["box", "score", "label"]},
}
BASE: dict[str, Any] = {
    "mimic": {"weight": "auto", "map_steps": 0.1},
    "pruning": {"method": "taylor"},
    "run": {"precision": "fp32"},
}


def keys() -> list[str]:
    """Every key that holds a value."""
    return [one.key for one in settings() if one.default is not None]


def value_of(recipe: Recipe, key: str) -> Any:
    """The value of a key."""
    return attrgetter(key)(recipe)


def another(recipe: Recipe, key: str, folder: Path) -> Any:
    """A valid value that the key does not have."""
    if key in OTHER:
        return OTHER[key]
    value = value_of(recipe, key)
    if key == "teacher.file":
        return "zoo:digits"
    if key.endswith(".weights"):
        file = folder / "weights.safetensors"
        file.write_bytes(b"some weights")
        return str(file)
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return [one / 2 for one in value]
    if isinstance(value, int | float):
        return value + 1 if isinstance(value, int) else value / 2 or 0.25
    choices = [name for one in settings() if one.key == key for name in one.choices if name != value]
    return choices[0] if choices else f"{value}x"


def changed(base: dict[str, Any], key: str, value: Any) -> Recipe:
    tree = {name: dict(section) for name, section in base.items()}
    *parents, leaf = key.split(".")
    node: dict[str, Any] = tree
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = value
    return recipe_from(tree, key)


def stages(recipe: Recipe) -> Mapping[str, str]:
    """The keys of a run's stages, made as the stages make them."""
    bf16 = recipe.run.precision == "bf16"
    data = data_key("labels and pictures", recipe.data, recipe.detector)
    teacher = teacher_key(recipe, data, bf16)
    quantized, pruned = quantized_key(recipe, teacher), pruned_key(recipe, teacher)
    start = pruned if recipe.pruning.method != "none" else None
    student = student_key(recipe, data, bf16, Parents(quantized, quantized, start))
    int8 = int8_key(recipe, data, [1.0])
    return {"teacher": teacher, "quantized": quantized, "pruned": pruned, "student": student, "int8": int8}


@pytest.mark.parametrize("key", keys())
def test_every_key_reaches_the_stages_that_it_can_change_and_no_others(key: str, tmp_path: Path) -> None:
    # A student starts from weights or is cut out of the teacher, and then it sees the same pictures.
    base = {**BASE, "pruning": {}} if key in ("student.weights", "teacher.scale") else BASE
    if key.partition(".")[0] == "teacher" and key.partition(".")[2] in OF_FILE:
        base = {**BASE, "teacher": {"kind": "onnx"}}
    if key == "mimic.sampling":  # samples are drawn of the student's own regions
        base = {**BASE, "mimic": {**BASE["mimic"], "regions": "student"}}
    if key == "mimic.settings":
        base = {**BASE, "mimic": {**BASE["mimic"], "distiller": "channel_wise"}}
    if key == "detector.anchor_ratios":
        base = {**BASE, "detector": {"anchor_cells": [4, 8]}}
    if key == "detector.softmax_weight":
        base = {**BASE, "detector": {"architecture": "one_stage"}}
    if key.startswith("teacher.frozen"):  # what is kept has come from somewhere
        base = {**BASE, "teacher": {**BASE.get("teacher", {}), "weights": "pretrained"}}
    if key in ("data.unlabelled_share", "data.unlabelled_doubt"):
        base = {**BASE, "data": {"unlabelled": "frames"}}
    if key == "data.label_share":
        base = {**BASE, "data": {"label_share": 0.4}}
    if key in OUTPUTS:
        base = {**BASE, "teacher": {"kind": "onnx", **OUTPUTS[key]}}
    before = recipe_from(base, "the test")
    after = changed(base, key, another(before, key, tmp_path))
    assert value_of(before, key) != value_of(after, key)
    first, second = stages(before), stages(after)
    moved = {name for name in first if first[name] != second[name]}
    assert moved == (KEYS[key] if key in KEYS else SECTIONS[key.partition(".")[0]])
    # A study's jobs know the data by the recipe's own section.
    jobs, others = job_keys(before), job_keys(after)
    reached = {name for name in jobs if jobs[name] != others.get(name)}
    wanted = {"teacher", "quantized", "student"} if key.startswith("data.") else moved - {"pruned", "int8"}
    wanted = {"student"} if key in OF_UNLABELLED else wanted
    assert reached == wanted & set(jobs)  # a teacher that is a file is nobody's job


def test_a_student_that_is_not_taught_does_not_depend_on_the_mimic() -> None:
    one, other = (recipe_from({"mimic": {"mode": "none", "region_count": n}}, "the test") for n in (8, 9))
    assert student_key(one, "data", False, Parents()) == student_key(other, "data", False, Parents())
    assert job_keys(one) == job_keys(other)
    assert list(job_keys(one)) == ["student"]


def test_a_teacher_s_labels_are_named_by_teacher_pictures_and_doubt_and_reach_the_student_by_their_share() -> None:
    recipe = recipe_from({"data": {"unlabelled": "frames"}}, "the test")
    doubtful = recipe.changed({"data.unlabelled_doubt": 0.3})
    labels = {labels_key(*one) for one in (
        (recipe, "data", "teacher", "pictures"), (recipe, "other", "teacher", "pictures"),
        (recipe, "data", "other", "pictures"), (recipe, "data", "teacher", "other"),
        (doubtful, "data", "teacher", "pictures"),
    )}  # fmt: skip
    assert len(labels) == 5
    shared = recipe.changed({"data.unlabelled_share": 0.3})
    mixed = {
        mixed_key(*one) for one in ((recipe, "data", "labels"), (recipe, "data", "other"), (shared, "data", "labels"))
    }
    assert len(mixed) == 3
    cpu, gpu = torch.device("cpu"), torch.device("cuda:1")
    assert len({found_key("labels", cpu), found_key("other", cpu), found_key("labels", gpu)}) == 3
    assert found_key("labels", gpu) == found_key("labels", torch.device("cuda:0"))
    # Arms with and without such pictures have one teacher; students differ.
    bare = recipe.changed({"data.unlabelled": None})
    jobs, others = job_keys(recipe), job_keys(bare)
    assert [name for name in jobs if jobs[name] != others[name]] == ["student"]


def test_a_share_counts_only_where_it_is_held() -> None:
    parents = Parents("teacher", "teacher")

    def different(weight: float | str) -> int:
        recipes = [recipe_from({"mimic": {"weight": weight, "share": share}}, "the test") for share in (0.1, 0.2)]
        return len({student_key(one, "data", False, parents) for one in recipes})

    assert (different(1.0), different("auto")) == (1, 2)


def test_weights_count_by_their_content(tmp_path: Path) -> None:
    one, same, other = (tmp_path / name for name in ("one", "same", "other"))
    for path, content in ((one, b"abc"), (same, b"abc"), (other, b"abd")):
        path.write_bytes(content)
    assert weights_key(str(one)) == weights_key(str(same)) != weights_key(str(other))
    assert weights_key(None) is None
    with pytest.raises(InputError, match=r"Cannot read the weights .*missing"):
        weights_key(str(tmp_path / "missing"))


def test_weights_beside_a_teacher_s_file_count_by_their_content(tmp_path: Path) -> None:
    path, beside = tmp_path / "big.onnx", tmp_path / "big.data"
    tensor = numpy_helper.from_array(np.arange(1000, dtype=np.float32), "weights")
    node = helper.make_node("Identity", ["weights"], ["out"])
    output = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1000])
    model = helper.make_model(helper.make_graph([node], "teacher", [], [output], [tensor]))
    onnx.save(model, str(path), save_as_external_data=True, location=beside.name, size_threshold=0)
    recipe = recipe_from({"teacher": {"kind": "onnx", "file": str(path), "boxes": "out"}}, "the test")
    before, alike = opened_key(recipe, "data"), path.read_bytes()
    assert opened_key(recipe, "data") == before
    beside.write_bytes(beside.read_bytes()[:-1] + b"\x40")
    assert path.read_bytes() == alike
    assert opened_key(recipe, "data") != before


def test_a_picture_replaced_in_place_by_one_of_as_many_bytes_changes_the_data_s_key(tmp_path: Path) -> None:
    for name, split in (("a", "train"), ("b", "val")):
        image = picture(tmp_path / "JPEGImages" / f"{name}.jpg")
        voc_xml(tmp_path, name, voc_object("cat", 10, 10, 40, 40))
        voc_list(tmp_path, split, name)
    os.utime(image, ns=(10**18, 10**18))
    before = dataset_fingerprint(load_dataset(str(tmp_path)))
    assert dataset_fingerprint(load_dataset(str(tmp_path))) == before
    content = bytearray(image.read_bytes())
    content[-3] ^= 1
    image.write_bytes(bytes(content))
    assert dataset_fingerprint(load_dataset(str(tmp_path))) != before


def test_keys_are_made_in_one_module() -> None:
    package = Path(qmimic.__file__).parent
    users = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "fingerprint" for alias in node.names)
    }
    # A step's generators are seeded by it, which names nothing.
    assert users == {"config/__init__.py", "run/keys.py", "training/loop.py"}


def test_what_a_report_keeps_is_named_by_all_that_decides_it() -> None:
    timings = [timing_key(*one) for one in (("cpu", ["a"], []), ("gpu", ["a"], []), ("cpu", ["b"], []))]
    timings += [timing_key("cpu", ["a"], [("file", "sum")]), timing_key("cpu", ["a"], [("file", "other")])]
    assert len(set(timings)) == len(timings)
    assert timing_key("cpu", ["a"], [("file", "sum")]) == timings[3]
    for key in (detections_key, matching_key):
        assert len({key("a", "data"), key("b", "data"), key("a", "other")}) == 3
    changes = ({}, {"data.size": (64, 96)}, {"detector.post_nms": 128}, {"data.allow_capped": True})
    checks = {check_key("data", Recipe().changed(own)) for own in changes} | {check_key("other", Recipe())}
    assert len(checks) == 5
    detector = Recipe().detector
    costs = {costs_key(detector, 2), costs_key(detector, 3), costs_key(detector.model_copy(update={"ohem": True}), 2)}
    assert len(costs) == 3


def test_an_open_output_stride_names_results_as_16_did() -> None:
    """What was trained before the stride could be open is found again; set to 16, it is another job."""
    open_, coarse, fine = (recipe_from({"detector": {"output_stride": one}}, "here") for one in (None, 16, 8))
    assert data_key("data", open_.data, open_.detector) == data_key("data", coarse.data, coarse.detector)
    assert len({job_keys(one)["teacher"] for one in (open_, coarse, fine)}) == 3
    assert job_keys(open_)["teacher"] == "db35af20e1a0"  # of 27 November 2026


def test_a_loss_that_came_later_leaves_what_has_none_as_it_was() -> None:
    """Weights and tables from before are those of weight 0, and two stages have no such loss."""
    one = {"detector": {"architecture": "one_stage"}}
    without = changed(one, "detector.softmax_weight", 0)
    assert (stages(without)["student"], job_keys(without)["student"]) == ("0b3f14d87cf0", "9a4dad923a4e")
    assert job_keys(without) != job_keys(changed(one, "seed", 0))
    assert stages(changed({}, "detector.softmax_weight", 3)) == stages(changed({}, "seed", 0))
    assert job_keys(changed({}, "detector.softmax_weight", 3)) == job_keys(changed({}, "seed", 0))
    other = {"teacher": {"detector": "one_stage"}}  # whose student has two stages
    assert (
        stages(changed(other, "detector.softmax_weight", 3))["teacher"] != stages(changed(other, "seed", 0))["teacher"]
    )
    assert job_keys(changed(other, "detector.softmax_weight", 3)) != job_keys(changed(other, "seed", 0))
