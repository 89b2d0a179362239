"""Pictures of a red or a blue square at one place, and an ONNX detector that tells them apart."""

import json
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

SIDE = 64
BOX = (16, 16, 48, 48)
CLASSES = ("red", "blue")
COLOURS = ((230, 40, 40), (40, 40, 230))


def picture(seed: int, kind: int | None) -> Image.Image:
    """Patches of noise with a square of a class; None: without. No two look alike once they are made small."""
    patches = np.random.default_rng(seed).integers(100, 150, (SIDE // 8, SIDE // 8, 3), dtype=np.uint8)
    pixels = patches.repeat(8, 0).repeat(8, 1)
    if kind is not None:
        pixels[BOX[1] : BOX[3], BOX[0] : BOX[2]] = np.array(COLOURS[kind]) + pixels[16:48, 16:48] % 16
    return Image.fromarray(pixels)


def labelled(root: Path, train: int = 12, val: int = 44) -> Path:
    """A COCO folder of them; classes take turns."""
    for number, (split, count) in enumerate((("train", train), ("val", val))):
        (root / split).mkdir(parents=True)
        images, boxes = [], []
        for place in range(count):
            name = f"{split}{place:02}.png"
            picture(1000 * number + place, place % 2).save(root / split / name)
            images.append({"id": place, "file_name": name, "width": SIDE, "height": SIDE})
            bbox = [BOX[0], BOX[1], BOX[2] - BOX[0], BOX[3] - BOX[1]]
            boxes.append({"id": place, "image_id": place, "category_id": place % 2, "bbox": bbox})
        categories = [{"id": place, "name": name} for place, name in enumerate(CLASSES)]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def frames(root: Path, count: int = 10) -> Path:
    """Pictures without labels: red, blue, none, red, ..."""
    (root / "day").mkdir(parents=True)
    for place in range(count):
        picture(5000 + place, (0, 1, None)[place % 3]).save(root / "day" / f"{place:02}.png")
    return root


def teacher(path: Path, size: int = SIDE, columns: int = 2, box: tuple[float, ...] = BOX, single: bool = False) -> Path:
    """A detector file of one picture [1, 3, size, size] (`single`: [3, size, size]) of shares 0..1.

    Its outputs are `boxes` [1, 1, 4], `scores` [1, 1, columns], and `rows` of both.

    A score is how much red (or blue) there is in the middle, above the other and the noise; further columns are 0.
    """
    low, high = size // 4, 3 * size // 4
    values: dict[str, NDArray[np.generic]] = {
        "starts": np.array([low, low]), "ends": np.array([high, high]), "axes": np.array([2, 3]),
        "ways": np.array([[1, -0.2, -1], [-1, -0.2, 1]], np.float32).T, "shape": np.array([1, 1, 2]),
        "box": np.array(box, np.float32).reshape(1, 1, 4), "more": np.zeros((1, 1, columns - 2), np.float32),
        "four": np.array([1, 3, size, size]), "none": np.array(0, np.float32), "whole": np.array(1, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("Reshape", ["picture", "four"], ["pictures"]),
        helper.make_node("Slice", ["pictures", "starts", "ends", "axes"], ["middle"]),
        helper.make_node("ReduceMean", ["middle"], ["colour"], axes=[2, 3], keepdims=0),
        helper.make_node("MatMul", ["colour", "ways"], ["raw"]),
        helper.make_node("Clip", ["raw", "none", "whole"], ["clipped"]),
        helper.make_node("Reshape", ["clipped", "shape"], ["two"]),
        helper.make_node("Concat", ["two", "more"], ["scores"], axis=2),
        helper.make_node("Identity", ["box"], ["boxes"]),
        helper.make_node("Concat", ["box", "scores"], ["rows"], axis=2),
    ]
    outputs = {"boxes": [1, 1, 4], "scores": [1, 1, columns], "rows": [1, 1, 4 + columns]}
    graph = helper.make_graph(
        nodes,
        "squares",
        [helper.make_tensor_value_info("picture", TensorProto.FLOAT, [1, 3, size, size][single:])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in values.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
