"""Runs with a teacher bank end in the weights of runs without one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import qmimic
from qmimic.config import Recipe
from qmimic.detectors.detector import Detector
from qmimic.training.progress import Silent

MakeRecipe = Callable[..., Recipe]


class Heard(Silent):
    """Keeps what was said; ends the work at one step of the student, as a kill does."""

    def __init__(self, kill_at: int = 0) -> None:
        self.said: list[str] = []
        self.kill_at, self.stage = kill_at, ""

    def say(self, text: str) -> None:
        self.said.append(text)

    def start(self, stage: str, steps: int, done: int) -> None:
        self.stage = stage

    def step(self, step: int, images: int, loss: float) -> None:
        if self.stage == "student" and step == self.kill_at:
            raise KeyboardInterrupt


def recipe_in(make_recipe: MakeRecipe, folder: Path, bank_mib: int, mimic: dict[str, object]) -> Recipe:
    recipe = make_recipe(
        augment={"flip": 0.5, "scale": [1, 1], "shift": 0, "colour": 0},
        mimic={"last_step": 1.0, **mimic},
        student={"steps": 24, "batch_size": 8, "checkpoint_every": 5},
        run={"dir": str(folder), "bank_mib": bank_mib},
    )
    return recipe.model_copy(update={"baselines": ()})


def same(one: Path, other: Path) -> bool:
    a, b = (load_file(run / "student.safetensors") for run in (one, other))
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("mimic", "kind"),
    [
        ({"map_steps": 0}, "regions"),
        ({}, 4),
        ({"order": "quantize_pool", "map_steps": 0.3}, 1),
        ({"pooling": "pool"}, 1),
        ({"mode": "mimic", "regions": "student"}, 4),
    ],
    ids=["regions", "map first", "levels", "max pooling", "full precision"],
)
def test_the_bank_changes_nothing_but_time(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mimic: dict[str, object], kind: int | str
) -> None:
    looked = []
    compute = Detector.raw_features

    def counted(self: Detector, images: torch.Tensor) -> torch.Tensor:
        looked.append(self.spec.backbone)
        return compute(self, images)

    monkeypatch.setattr(Detector, "raw_features", counted)
    counts = {}
    for name, size in (("with", 1024), ("without", 0)):
        qmimic.train(recipe_in(make_recipe, tmp_path / name, size, mimic))
        counts[name] = looked.count("resnet18/16")
        looked.clear()
    assert same(tmp_path / "with", tmp_path / "without")
    assert counts["with"] < counts["without"]  # 24 steps of 8 images are six times round 32 images in two views
    (bank,) = (tmp_path / "with" / "bank").iterdir()
    if kind == "regions":
        content = 32 * (32 * 25 + 17)  # regions: a byte for each of 32 channels and 25 bins, and their boxes
    else:
        content = 32 * 4 * 4 * kind + (32 * 17 if mimic.get("regions", "teacher") == "teacher" else 0)
    assert bank.stat().st_size == 2 * 32 * (content + 4)
    assert not (tmp_path / "without" / "bank").exists()


def test_a_killed_run_with_a_damaged_bank_ends_in_the_same_weights(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    qmimic.train(recipe_in(make_recipe, tmp_path / "whole", 1024, {"map_steps": 0}))
    killed = recipe_in(make_recipe, tmp_path / "killed", 1024, {"map_steps": 0})
    for step in (3, 11, 17):
        with pytest.raises(KeyboardInterrupt):
            qmimic.train(killed, Heard(kill_at=step))
        (bank,) = (tmp_path / "killed" / "bank").iterdir()
        content = bytearray(bank.read_bytes())
        for place in range(0, len(content), 3001):
            content[place] ^= 0xFF
        bank.write_bytes(content)
    qmimic.train(killed)
    assert same(tmp_path / "whole", tmp_path / "killed")


def test_the_bank_s_size_is_told_and_so_is_why_there_is_none(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    heard = Heard()
    qmimic.train(recipe_in(make_recipe, tmp_path / "with", 1024, {}), heard)
    assert any("The teacher bank: 0.2 MB in" in text and "64 views" in text for text in heard.said)
    heard = Heard()
    qmimic.train(make_recipe(run={"dir": str(tmp_path / "views")}), heard)
    assert any("runs in every step: with augment's scale" in text for text in heard.said)
    small = recipe_in(make_recipe, tmp_path / "small", 1, {})
    wide = small.model_copy(update={"data": small.data.model_copy(update={"size": (256, 256)})})
    heard = Heard()
    qmimic.train(wide, heard)
    assert any("above run.bank_mib=1." in text for text in heard.said)
