"""A few kills at random moments; `tools/kill_and_resume.py --kills 100` is the long version."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from qmimic.config import Recipe, save_recipe

TOOL = Path(__file__).parents[2] / "tools" / "kill_and_resume.py"


def test_a_run_killed_at_random_moments_ends_in_the_same_files(
    make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(
        augment={"flip": 0.5, "scale": [1, 1], "shift": 0, "colour": 0},
        student={"steps": 24, "batch_size": 4, "ema": 0.9, "checkpoint_every": 4, "backbone": "resnet18/32"},
        pruning={"method": "none", "rounds": 2, "steps": 2, "images": 8},
    )
    save_recipe(recipe.model_copy(update={"baselines": ("scratch", "taylor")}), tmp_path / "recipe.yaml")
    done = subprocess.run(
        [sys.executable, TOOL, tmp_path / "recipe.yaml", "--kills", "4"], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert last.startswith("4 kills (")
    assert last.endswith(" 0 of them different")
