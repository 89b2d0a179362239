"""Make the students of the zoo from their recipes: trained, put on integers, proved, measured and described.

Finished trainings are not repeated, so an interrupted call continues where it was.

    python tools/make_zoo.py --data FOLDER pcb cells

FOLDER holds the datasets under the names in the recipes. Everything on a card is measured here: mAP@0.5 of the shipped
int8 file on val, with its bootstrap interval; the parity of its float twin; its time beside the other students'.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from qmimic.api import detect, train
from qmimic.bench.measure import as_run
from qmimic.bench.timing import alternate
from qmimic.config import Recipe, load_recipe
from qmimic.data.chosen import open_dataset
from qmimic.data.splits import TRAIN, VAL
from qmimic.detectors.build import mac_count, parameter_count
from qmimic.detectors.files import load_detector, save_detector
from qmimic.run.deploy import deploy
from qmimic.runtime.engine import Engine
from qmimic.scores.bootstrap import draws, interval, mean_ap
from qmimic.scores.matches import match
from qmimic.training.progress import Silent
from qmimic.zoo import CARDS, DEPLOYED, FOLDER, TRAINED, Card

RECIPES = Path(__file__).parents[1] / "recipes" / "zoo"
MOST = 150_000  # bytes of a shipped file
ABOUT = {  # what files do not say: what it finds, and whose pictures it was trained on
    "pcb": ("defects of circuit boards", "DeepPCB", "MIT", "github.com/tangsanli5201/DeepPCB"),
    "cells": ("blood cells under a microscope", "BCCD", "MIT", "github.com/Shenggan/BCCD_Dataset"),
    "raccoon": ("raccoons in photographs", "Raccoon", "MIT", "github.com/datitran/raccoon_dataset"),
    "digits": ("drawn digits", "synthetic:digits", "none needed: drawn by qmimic", "qmimic.data.synthetic"),
}


def recipe_of(name: str, data: Path, runs: Path) -> Recipe:
    """A student's recipe, with its data and its run in the given folders."""
    recipe = load_recipe(RECIPES / f"{name}.yaml", [f"run.dir={runs / name}", "run.threads=1", "run.report=false"])
    root = recipe.data.root
    return recipe.changed({"data.root": root if root.startswith("synthetic:") else str(data / root)})


def made(name: str, recipe: Recipe) -> Card:
    """Train, ship and describe a student; its milliseconds are measured later."""
    run = train(recipe)
    detector, notes = load_detector(run.student)
    data = recipe.data.root
    overrides = [f"int8.max_loss={recipe.int8.max_loss}"]
    files = deploy(run.student, None, data, overrides, 1, True, ["onnx"], True, Silent())
    proof = {one.precision: one.proof for one in files}
    (shipped,) = (one for one in files if one.precision == "int8")
    if shipped.bytes > MOST:
        raise SystemExit(f"{name} has {shipped.bytes:,} bytes, above {MOST:,}; make it narrower.")
    shutil.copyfile(shipped.path, FOLDER / f"{name}{DEPLOYED}")
    save_detector(detector, FOLDER / f"{name}{TRAINED}", notes)
    dataset = open_dataset(recipe.data)
    images = len(dataset.splits[VAL])
    found = detect(FOLDER / f"{name}{DEPLOYED}", dataset, VAL)
    matches = match(dataset.splits[VAL], found, len(dataset.classes))
    (own,) = mean_ap(matches, np.ones((1, images), np.uint8))
    span = interval(float(own), mean_ap(matches, draws(images)))
    about, called, licence, source = ABOUT[name]
    student = recipe.student
    return Card(
        about=about,
        classes=detector.spec.classes,
        size=detector.spec.size,
        backbone=detector.spec.backbone,
        grey=detector.spec.grey,
        data=called,
        licence=licence,
        source=source,
        recipe=f"recipes/zoo/{name}.yaml",
        seeds=(recipe.seed,),
        epochs=round(student.steps * student.batch_size / len(dataset.splits[TRAIN]), 1),
        map50=round(span.value, 4),
        low=round(span.low, 4),
        high=round(span.high, 4),
        map50_float=round(float(notes["map50"]), 4),
        images=images,
        parameters=parameter_count(detector),
        macs=mac_count(detector),
        bytes=shipped.bytes,
        milliseconds=0.0,
        machine="",
        parity=dict(proof["fp32"]),
        sums={end: hashlib.sha256((FOLDER / f"{name}{end}").read_bytes()).hexdigest() for end in (DEPLOYED, TRAINED)},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="students; none: all")
    parser.add_argument("--data", type=Path, required=True, help="folder of the datasets")
    parser.add_argument("--runs", type=Path, default=Path("runs/zoo"), help="folder for the runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = FOLDER / CARDS
    cards = json.loads(file.read_text()) if file.exists() else {}
    for name in options.names or ABOUT:
        cards[name] = asdict(made(name, recipe_of(name, options.data, options.runs)))
        print(f"{name}: {100 * cards[name]['map50']:.1f} mAP@0.5, {cards[name]['bytes']:,} bytes", flush=True)
    cards = {name: cards[name] for name in ABOUT if name in cards}
    seconds = alternate({name: as_run(Engine(FOLDER / f"{name}{DEPLOYED}")) for name in cards}, 200)
    for name, own in seconds.items():
        cards[name]["milliseconds"] = round(1000 * float(np.median(own)), 2)
        load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        cards[name]["machine"] = f"{platform.machine()}, one thread, median of 200 alternating runs, {load}"
    file.write_text(json.dumps(cards, indent=1) + "\n")


if __name__ == "__main__":
    main()
