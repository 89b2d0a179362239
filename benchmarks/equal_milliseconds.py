"""Accuracy at equal milliseconds: our one-stage and two-stage students, and Ultralytics' newest YOLO, from scratch.

All see the same pictures, epochs and input, batch 16. Each of our students is the widest of its kind that is no slower
than the two-stage `resnet18/16`; YOLO's width and depth multiples are the largest in a list that are no slower, and
--nano adds its own smallest size. Times are ONNX Runtime's on one thread, medians of one alternating run. What is found
on val is scored by one function for all.

    python benchmarks/equal_milliseconds.py --data PATH/animals --size 192 --epochs 30 --out out
    python benchmarks/equal_milliseconds.py --data PATH/animals --size 192 --epochs 300 --yolo peer/bin/python --out out

--yolo is the Python of an environment that yolo_peer.py describes; without it YOLO is left out. A training that ended
is kept in --out, and the same command goes on with the others.
"""

import argparse
import json
import os
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

import qmimic
from qmimic.api import build_detector
from qmimic.bench.measure import as_run
from qmimic.bench.timing import alternate
from qmimic.config import Recipe, load_recipe
from qmimic.data.convert import convert
from qmimic.data.sample import Dataset
from qmimic.detectors.build import parameter_count
from qmimic.detectors.one_stage import OneStage
from qmimic.runtime.engine import Engine
from qmimic.scores.detections_file import read_detections
from qmimic.scores.statistics import estimate, interval
from qmimic.scores.summary import voc_map50
from qmimic.ship import onnx_file
from qmimic.ship.onnx_file import Exported

ROOT = Path(__file__).parents[1]
TWO_STAGES = "two stages resnet18/16"
ONE_STAGE = tuple(f"repvgg/{divisor}" for divisor in (24, 20, 16, 14, 12, 10, 8))
MULTIPLES = ((0.33, 1 / 32), (0.33, 3 / 64), (0.33, 1 / 16), (0.33, 3 / 32), (0.33, 1 / 8), (0.5, 1 / 8))  # of YOLO
NANO = (0.5, 0.25)
BATCH = 16


@dataclass(frozen=True)
class Kind:
    """One network to compare. `train` takes a seed and gives mAP@0.5 on val and the seconds of training."""

    name: str
    file: Path
    weights: int
    train: Callable[[int], tuple[float, float]]


def recipe_of(options: argparse.Namespace, backbone: str, one_stage: bool, seed: int, steps: int) -> Recipe:
    """The same schedule for both architectures."""
    folder = options.out / "ours" / f"{'one' if one_stage else 'two'}-{backbone.replace('/', '_')}-{seed}"
    detector = ["detector.architecture=one_stage", "detector.head_width=24"] if one_stage else []
    return load_recipe(
        ROOT / "recipes" / "animals.yaml",
        [
            *(
                f"data.root={options.data}",
                f"data.size=[{options.size},{options.size}]",
                f"seed={seed}",
                "baselines=[]",
            ),
            *("mimic.mode=none", f"student.backbone={backbone}", f"student.steps={steps}"),
            *(f"student.evaluate_every={steps}", f"run.dir={folder}", "run.threads=1", "run.report=false", *detector),
        ],
    )


def train_ours(options: argparse.Namespace, backbone: str, one_stage: bool, seed: int) -> tuple[float, float]:
    """By a recipe of ours."""
    steps = options.steps or options.epochs * -(-len(options.dataset.splits["train"]) // BATCH)
    start = time.perf_counter()
    result = qmimic.train(recipe_of(options, backbone, one_stage, seed, steps))
    (student,) = (one for one in result.results if one.name == "student")
    return student.map50, time.perf_counter() - start


def train_yolo(options: argparse.Namespace, multiples: tuple[float, float], seed: int) -> tuple[float, float]:
    """By Ultralytics' trainer, in its own environment."""
    depth, width = multiples
    out = options.out / "yolo" / f"{depth}-{width}-{seed}"
    data = options.out / "yolo" / "data"
    if not data.exists():
        convert(options.dataset, data, "yolo")
    extra = ["--share", "0.02"] if options.steps else []
    peer(
        options, "train", out, multiples,
        *("--data", str(data.resolve()), "--pictures", "images/val", "--seed", str(seed)),
        *("--epochs", "1" if options.steps else str(options.epochs), *extra),
    )  # fmt: skip
    found = read_detections(out / "detections.json", options.dataset, "val")
    return voc_map50(options.dataset, "val", found), float(json.loads((out / "result.json").read_text())["seconds"])


def peer(options: argparse.Namespace, what: str, out: Path, multiples: tuple[float, float], *more: str) -> None:
    """Run the peer's script."""
    depth, width = multiples
    command = [
        *(options.yolo, str(Path(__file__).with_name("yolo_peer.py")), what, "--out", str(out), "--depth", str(depth)),
        *("--width", str(width), "--classes", str(len(options.dataset.classes)), "--size", str(options.size), *more),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"YOLO's {what} failed:\n{done.stderr[-2000:]}")


def ours(options: argparse.Namespace, backbone: str, one_stage: bool, classes: tuple[str, ...]) -> Kind:
    """One of our students with fresh weights, whose outputs are amplified so that suppression has work."""
    name = f"one stage {backbone}" if one_stage else TWO_STAGES
    recipe = recipe_of(options, backbone, one_stage, 0, 1)
    detector = build_detector(backbone, classes, recipe.data.size, config=recipe.detector).eval()
    if isinstance(detector, OneStage):
        with torch.no_grad():
            for out in detector.head.out:
                out.weight *= 20
    path = options.out / "times" / f"{name.replace('/', '_').replace(' ', '-')}.onnx"
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx_file.write(Exported(detector), path)
    return Kind(name, path, parameter_count(detector), partial(train_ours, options, backbone, one_stage))


def yolo(options: argparse.Namespace, multiples: tuple[float, float]) -> Kind:
    """YOLO at some width and depth."""
    depth, width = multiples
    out = options.out / "times" / f"yolo-{depth}-{width}"
    if not (out / "yolo26n.onnx").exists():
        peer(options, "export", out, multiples)
    weights = int(json.loads((out / "result.json").read_text())["weights"])
    return Kind(f"YOLO26 {depth:g}, {width:g}", out / "yolo26n.onnx", weights, partial(train_yolo, options, multiples))


def choose(options: argparse.Namespace) -> tuple[list[Kind], dict[str, float]]:
    """The networks to train, and the milliseconds of all that were timed."""
    dataset: Dataset = options.dataset
    groups = {"ours": [ours(options, one, True, dataset.classes) for one in options.backbones]}
    if options.yolo:
        groups["yolo"] = [yolo(options, one) for one in MULTIPLES]
    first = ours(options, "resnet18/16", False, dataset.classes)
    last = [yolo(options, NANO)] if options.yolo and options.nano else []
    every = [first, *(kind for group in groups.values() for kind in group), *last]
    seconds = alternate({kind.name: as_run(Engine(kind.file)) for kind in every}, options.rounds)
    times = {name: 1000 * float(np.median(one)) for name, one in seconds.items()}
    chosen = [first]
    for group in groups.values():
        fast = [kind for kind in group if times[kind.name] <= times[first.name] * options.slack]
        chosen.append(
            max(fast, key=lambda kind: kind.weights) if fast else min(group, key=lambda kind: times[kind.name])
        )
    return [*chosen, *last], times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of a dataset, or synthetic:digits")
    parser.add_argument("--size", type=int, default=192, help="pixels of a side")
    parser.add_argument("--backbones", nargs="+", default=ONE_STAGE, help="of one stage, to choose from")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--yolo", help="Python of an environment with ultralytics")
    parser.add_argument("--nano", action="store_true", help="YOLO's own smallest size, too")
    parser.add_argument("--slack", type=float, default=1.05, help="times that differ by less count as equal")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--steps", type=int, help="of our trainings, to try the script out; YOLO takes one short epoch")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out = options.out.resolve()
    options.dataset = qmimic.load_dataset(options.data)
    kinds, times = choose(options)
    for name, milliseconds in sorted(times.items(), key=lambda one: one[1]):
        print(f"{name:<28} {milliseconds:6.2f} ms")
    kept = options.out / "results.json"
    results: dict[str, list[tuple[float, float]]] = json.loads(kept.read_text()) if kept.exists() else {}
    for seed in range(options.seeds):
        for kind in kinds:
            own = results.setdefault(kind.name, [])
            if len(own) > seed:
                continue
            own.append(kind.train(seed))
            kept.write_text(json.dumps(results))
            print(f"seed {seed}  {kind.name:<28} mAP@0.5 {100 * own[-1][0]:.1f} in {own[-1][1]:.0f} s", flush=True)
    (reference,) = (kind for kind in kinds if kind.name.startswith("one stage"))
    table = []
    for kind in kinds:
        values, seconds = zip(*results[kind.name], strict=True)
        above = estimate([ours - other for (ours, _), other in zip(results[reference.name], values, strict=True)])
        table.append(
            {"network": kind.name, "weights": kind.weights, "ms": round(times[kind.name], 2),
             "map50": round(100 * estimate(values).mean, 1), "training_s": round(float(np.mean(seconds))),
             "one_stage_above": "" if kind is reference else interval(above)}
        )  # fmt: skip
    for row in table:
        print("  ".join(f"{value!s:<26}" if key == "network" else f"{value!s:>9}" for key, value in row.items()))
    if options.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
