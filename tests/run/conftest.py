"""A dataset of a few drawn shapes, and a recipe that trains on it in seconds."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from qmimic.config import Recipe, recipe_from

SIDE = 64


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A COCO folder: dark discs and bright squares on noise, 32 images to train on and 16 to score on."""
    root = tmp_path_factory.mktemp("shapes")
    random = np.random.default_rng(0)
    for split, count in (("train", 32), ("val", 16)):
        (root / split).mkdir()
        images, annotations = [], []
        for number in range(count):
            picture = Image.fromarray(random.integers(90, 160, (SIDE, SIDE, 3), dtype=np.uint8))
            for row in range(2):
                kind, side = int(random.integers(2)), int(random.integers(16, 28))
                x, y = int(random.integers(0, SIDE - side)), row * 32 + int(random.integers(0, 32 - side + 1))
                corners = (x, y, x + side - 1, y + side - 1)
                if kind:
                    ImageDraw.Draw(picture).rectangle(corners, fill=(250, 240, 60))
                else:
                    ImageDraw.Draw(picture).ellipse(corners, fill=(10, 20, 60))
                annotations.append(
                    {"id": len(annotations), "image_id": number, "category_id": kind, "bbox": [x, y, side, side]}
                )
            picture.save(root / split / f"{split}{number:02}.png")
            images.append({"id": number, "file_name": f"{split}{number:02}.png", "width": SIDE, "height": SIDE})
        categories = [{"id": 0, "name": "disc"}, {"id": 1, "name": "square"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def make_recipe(shapes: Path, tmp_path: Path) -> MakeRecipe:
    """Makes a recipe of a few steps; keyword arguments replace whole keys of its sections."""

    def make(**changes: dict[str, object]) -> Recipe:
        quick = {"steps": 6, "batch_size": 4, "warmup_steps": 2, "evaluate_every": 1000, "checkpoint_every": 2}
        tree: dict[str, dict[str, object]] = {
            "data": {"root": str(shapes), "size": [SIDE, SIDE]},
            "detector": {"anchor_count": 3, "pre_nms": 64, "post_nms": 16, "roi_samples": 16, "rpn_samples": 32},
            "teacher": {**quick, "backbone": "resnet18/16", "min_map": 0},
            "quantized_teacher": {**quick, "steps": 2},
            "student": {**quick, "backbone": "resnet18/32"},
            "mimic": {"map_steps": 0.34, "last_step": 0.84},
            "run": {"dir": str(tmp_path / "run"), "threads": 1, "report": False},
        }
        for section, values in changes.items():
            tree[section] = {**tree.get(section, {}), **values}
        return recipe_from(dict(tree), "the test")

    return make
