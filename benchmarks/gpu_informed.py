"""Photographs of animals at 256 px on a GPU: 20 seeds of the study of an informed teacher, in 25 minutes.

    python benchmarks/gpu_informed.py --data PATH/animals --weights efficientnet-lite0.pth

First the teacher's training step against torchvision's Faster R-CNN around the same network, alternating. Then the
study (scratch, mimic, quantization mimic, teacher quantized alone, and scratch of twice the steps), as many jobs at a
time as there are cores. Students get as many steps as fit into the minutes left, by a measurement with so many jobs;
they are printed, and how many of the recipe's 30 epochs they come to. Everything is kept in --out, and the same command
goes on. Start NVIDIA's MPS first (nvidia-cuda-mps-control -d): without it the jobs take turns on the GPU.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean

import torch
import yaml

from qmimic.study.table import read_jobs
from train_step import alternate, made_batch, spec_of, torchvisions
from train_step import ours as our_step

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "recipes" / "animals-informed.yaml"
TEACHER = "timm:tf_efficientnet_lite0"
EPOCH = 187  # steps of 16 pictures
SCRATCH = {"mimic.mode": "none"}
TAUGHT = {
    "mimic": {"mimic.mode": "mimic"},
    "quantization mimic": {"mimic.mode": "quantization"},
    "teacher quantized alone": {"mimic.mode": "teacher_only"},
}
ARMS = 1 + len(TAUGHT)
MARGIN = 0.85  # of the minutes left that are planned for: jobs do not end together
SHORT, LONG = 20, 120  # steps of the measurement


def teacher_step(device: torch.device) -> dict[str, float]:
    """Seconds of a training step of the teacher at 256 px, batch 16: ours and torchvision's, and their ratio."""
    images, targets = made_batch(256, 16, device)
    spec = spec_of(TEACHER, 256, 5)
    steps = {"ours": our_step(spec, images, targets).step, "torchvision": torchvisions(spec, images, targets)}
    seconds = alternate(steps, 15)
    return {**seconds, "ratio": seconds["torchvision"] / seconds["ours"]}


def study_of(options: argparse.Namespace, name: str, seeds: int, teacher: int, student: int | list[int]) -> Path:
    """A study's file: every arm with so many seeds and steps."""
    settings = {
        "data.root": str(options.data.resolve()),
        "teacher.weights": str(options.weights.resolve()),
        "teacher.min_map": 0,
        "teacher.steps": teacher,
        "quantized_teacher.steps": max(1, teacher // 4),
        **{f"{stage}.evaluate_every": 10**6 for stage in ("teacher", "quantized_teacher", "student")},
        **{f"{stage}.checkpoint_every": 500 for stage in ("teacher", "quantized_teacher", "student")},
        "run.trackers": [],
    }
    arms, grid = {"scratch": SCRATCH, **TAUGHT}, {}
    if isinstance(student, list):
        grid = {"student.steps": student}
    else:
        settings["student.steps"] = student
        arms = {"scratch": SCRATCH, "scratch, twice the steps": {**SCRATCH, "student.steps": 2 * student}, **TAUGHT}
    tree = {
        "name": name,
        "recipe": str(RECIPE),
        "question": f"What does an informed teacher teach, by {seeds} seeds of {student} steps?",
        "order": {"mimic": 2, "quantization mimic": 1.2},
        "set": settings,
        "grid": grid,
        "arms": arms,
        "seeds": list(range(seeds)),
    }
    path = options.out / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def run(options: argparse.Namespace, study: Path) -> Path:
    """Run a study; its folder."""
    folder = options.out / study.stem
    command = [sys.executable, "-m", "qmimic", "study", str(study), "--out", str(folder)]
    subprocess.run([*command, "--workers", str(options.workers)], check=True)
    return folder


def costs(folder: Path) -> dict[str, tuple[float, float]]:
    """By kind of job, seconds to start it and seconds a step, from a study with two numbers of steps."""
    found = {}
    jobs = [job for job in read_jobs(folder) if job.status == "done"]
    for kind in ("teacher", "student"):
        by_steps: dict[int, list[float]] = {}
        for job in jobs:
            if job.kind == kind:
                by_steps.setdefault(job.steps, []).append(job.seconds)
        if kind == "student":
            step = (mean(by_steps[LONG]) - mean(by_steps[SHORT])) / (LONG - SHORT)
            found[kind] = max(0.0, mean(by_steps[SHORT]) - SHORT * step), max(step, 1e-4)
    start = found["student"][0]
    seconds = [job.seconds for job in jobs if job.kind == "teacher"]
    found["teacher"] = start, max(1e-4, (mean(seconds) - start) / SHORT)
    return found


def steps_that_fit(costs: dict[str, tuple[float, float]], left: float, seeds: int, workers: int, teacher: int) -> int:
    """Steps of a student for which all jobs fit into the seconds left; one more arm has twice as many."""
    rounds = seeds / min(workers, seeds)
    (start, step), (own_start, own) = costs["teacher"], costs["student"]
    # A teacher, its quantized form a quarter as long, then the students of all arms.
    taken = rounds * (2 * start + 1.25 * teacher * step)
    a_student = (left * MARGIN - taken) * workers / seeds
    return int((a_student - (ARMS + 1) * own_start) / ((ARMS + 2) * own))


def planned(options: argparse.Namespace, left: float) -> int:
    """Steps of a student that fit into the seconds left, by a small study of the same jobs."""
    began = time.monotonic()
    seeds = max(1, options.workers // ARMS)
    found = costs(run(options, study_of(options, "measure", seeds, SHORT, [SHORT, LONG])))
    left -= time.monotonic() - began
    steps = steps_that_fit(found, left, options.seeds, options.workers, options.teacher_steps)
    return min(steps, 30 * EPOCH)


def main() -> int:
    """Measure, plan, run; the report's path is printed last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the animals, VOC layout")
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of EfficientNet-Lite0")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-informed"))
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--teacher-steps", type=int, default=4 * EPOCH)
    parser.add_argument("--steps", type=int, help="of a student; without, as many as fit")
    options = parser.parse_args()
    began = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    plan = options.out / "plan.json"
    if not plan.is_file():
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        said = {"device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu"}
        step = teacher_step(device)
        ours, ratio = 1000 * step["ours"], step["ratio"]
        print(f"{said['device']}: the teacher's step takes {ours:.1f} ms, torchvision's {ratio:.2f} times as long.")
        steps = options.steps or planned(options, 60 * options.minutes - (time.monotonic() - began))
        if steps < EPOCH and not options.steps:
            print(f"In {options.minutes:g} minutes a student gets {steps} steps, less than an epoch: raise --minutes.")
            return 2
        plan.write_text(json.dumps({**said, "teacher_step": step, "student_steps": steps}))
    steps = json.loads(plan.read_text())["student_steps"]
    print(f"Students get {steps} steps, {steps / EPOCH:.1f} of the recipe's 30 epochs.", flush=True)
    folder = run(options, study_of(options, "informed-gpu", options.seeds, options.teacher_steps, steps))
    print(f"{(time.monotonic() - began) / 60:.1f} minutes; {folder / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
