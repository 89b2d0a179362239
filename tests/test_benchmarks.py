"""Every benchmark runs, at its smallest: figures in the documentation come from scripts that still work."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BENCHMARKS = ROOT / "benchmarks"

SMALL = {
    "train_step.py": ["--size", "64", "--batch", "2", "--repeats", "1", "--networks", "resnet18/32", "--json"],
    "profile_step.py": ["--size", "64", "--batch", "2", "--repeats", "1", "--backbone", "resnet18/32", "--json"],
    "growth.py": ["--repeats", "1", "--threads", "1", "--json"],
    "data.py": ["--images", "1000", "--json"],
    "processes.py": ["--backbones", "resnet18/16", "--size", "64", "--batch", "2", "--steps", "2", "--json"],
    "latency.py": ["--networks", "resnet18/16-faster_rcnn", "--rounds", "1", "--json"],
    "one_stage.py": ["--backbones", "repvgg/24", "--rounds", "1", "--json"],
    "equal_milliseconds.py": [
        *("--data", "synthetic:digits", "--size", "64", "--seeds", "1", "--steps", "2", "--rounds", "1"),
        *("--backbones", "repvgg/24", "--out", "out", "--json"),
    ],
    "pruned_widths.py": ["--teachers", "resnet18/4", "--multiples", "8", "--rounds", "1", "--json"],
    "engines.py": ["--rounds", "1", "--to", "onnx", "--json"],
}
# They need what a clone does not have: a GPU's hours, another project's environment, a run, minutes.
BY_HAND = {"gpu_informed.py", "yolo_peer.py", "serve_load.py", "arenas.py", "microcontrollers.py"}
PARTS = {"torchvision_twin.py"}


def test_every_benchmark_is_listed() -> None:
    files = {path.name for path in BENCHMARKS.glob("*.py")}
    assert files == {*SMALL, *BY_HAND, *PARTS}


@pytest.mark.parametrize("name", sorted(SMALL))
def test_it_runs_and_prints_its_figures(name: str, tmp_path: Path) -> None:
    figures = json.loads(_output(name, SMALL[name], tmp_path).splitlines()[-1])
    assert figures


def _output(name: str, options: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("QMIMIC_DATA", None)
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / name), *options],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
