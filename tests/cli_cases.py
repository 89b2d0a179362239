"""What the tests of the commands share: a recipe of seconds and a folder to train on."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from qmimic.cli import main

Refused = Callable[..., str]

RECIPE = """
data: {size: [64, 64]}
detector: {anchor_count: 2, pre_nms: 64, post_nms: 16, roi_samples: 16, rpn_samples: 32}
teacher: {backbone: resnet18/16, steps: 2, batch_size: 4, min_map: 0}
quantized_teacher: {steps: 0}
student: {backbone: resnet18/32, steps: 2, batch_size: 4}
baselines: []
run: {threads: 1, report: false}
mimic:
  # nothing but a comment: the defaults
"""


def coco(root: Path, count: int = 4, classes: tuple[str, ...] = ("cat",), suffix: str = ".png") -> Path:
    """A COCO folder of noise with one box an image; image i has class i modulo the number of classes."""
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        images, boxes = [], []
        for number in range(count):
            name = f"{split}{number}{suffix}"
            pixels = np.random.default_rng(number + 10 * (split == "val")).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / name)
            images.append({"id": number, "file_name": name})
            category = number % len(classes)
            boxes.append({"id": number, "image_id": number, "category_id": category, "bbox": [4, 6, 30, 20]})
        categories = [{"id": place, "name": name} for place, name in enumerate(classes)]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def train(recipe: Path, data: Path, run: Path, *overrides: str) -> int:
    return main(["train", str(recipe), f"data.root={data}", f"run.dir={run}", *overrides])
