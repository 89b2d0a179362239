"""Every benchmark runs, at its smallest: figures in the documentation come from scripts that still work."""

import argparse
import json
import runpy
import sys
import time
from pathlib import Path

import pytest

import gpu_informed
from qmimic.study.spec import Run, expand, load_study
from time_limit import at_most

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


def test_a_benchmark_that_hangs_is_ended() -> None:
    with pytest.raises(TimeoutError), at_most(1):
        time.sleep(5)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_it_runs_and_prints_its_figures(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("QMIMIC_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name, *SMALL[name]])
    with at_most(300):
        runpy.run_path(str(BENCHMARKS / name), run_name="__main__")  # in this process: torch is there already
    assert json.loads(capsys.readouterr().out.splitlines()[-1])


def test_the_study_for_a_gpu_is_accepted_and_fits_into_its_minutes(tmp_path: Path) -> None:
    options = argparse.Namespace(data=tmp_path, weights=tmp_path / "lite0.pth", out=tmp_path)

    def runs_of(name: str, seeds: int, student: int | list[int]) -> tuple[Run, ...]:
        path = gpu_informed.study_of(options, name, seeds, 20, student)
        return expand(load_study(path), path, tmp_path / name)

    assert len(runs_of("measure", 2, [20, 120])) == 4 * 2 * 2
    steps = {run.arm: run.recipe.student.steps for run in runs_of("whole", 3, 500)}
    assert sorted(steps.values()) == [500] * 4 + [1000]
    assert steps["scratch, twice the steps"] == 1000

    # Counted anew: on one worker, a second to begin each job and 0.1 and 0.02 seconds a step.
    costs = {"teacher": (1.0, 0.1), "student": (1.0, 0.02)}
    found = gpu_informed.steps_that_fit(costs, 2000, seeds=2, workers=1, teacher=100)
    teachers = 2 * (1 + 100 * 0.1) + 2 * (1 + 25 * 0.1)
    students = 2 * sum(1 + own / 500 * found * 0.02 for own in steps.values())
    assert teachers + students == pytest.approx(2000 * gpu_informed.MARGIN, abs=1)
