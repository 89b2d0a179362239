"""Make the students of the zoo from their recipes: trained, put on integers, proved, measured and described.

Finished trainings are not repeated, so an interrupted call continues where it was.

    python tools/make_zoo.py --data FOLDER pcb cells
    python tools/make_zoo.py --data FOLDER cells --also 1 2      # further seeds, for the card alone
    python tools/make_zoo.py --data FOLDER --again               # the students there are, as files are written today

FOLDER holds the datasets under the names in the recipes. Everything on a card is measured here: mAP@0.5 of the shipped
int8 file on val, with its bootstrap interval; the parity of its float twin; its time beside the other students'.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qmimic.api import detect, train
from qmimic.bench.measure import as_run
from qmimic.bench.timing import alternate
from qmimic.config import Recipe, load_recipe, save_recipe
from qmimic.data.chosen import open_dataset
from qmimic.data.sample import Dataset
from qmimic.data.splits import TRAIN, VAL
from qmimic.detectors.build import mac_count, parameter_count
from qmimic.detectors.files import load_detector, save_detector
from qmimic.run.deploy import Deployed, deploy
from qmimic.run.folder import RECIPE
from qmimic.runtime.engine import Engine
from qmimic.scores.bootstrap import Interval, draws, interval, mean_ap
from qmimic.scores.matches import match
from qmimic.training.progress import Silent
from qmimic.zoo import CARDS, DEPLOYED, FOLDER, TRAINED, Card
from qmimic.zoo import cards as of_zoo

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


def shipped(path: Path, recipe: Recipe) -> list[Deployed]:
    """The files that ship of a student in the folder of its run."""
    overrides = [f"int8.max_loss={recipe.int8.max_loss}"]
    return deploy(path, None, recipe.data.root, overrides, 1, True, ["onnx"], True, Silent())


def packaged(name: str, recipe: Recipe) -> Path:
    """The student that is in the package, put into a folder as of a run."""
    recipe.folder.mkdir(parents=True, exist_ok=True)
    save_recipe(recipe, recipe.folder / RECIPE)
    return Path(shutil.copyfile(FOLDER / f"{name}{TRAINED}", recipe.folder / f"student{TRAINED}"))


def of_int8(files: list[Deployed]) -> Deployed:
    """The integer file among those that ship."""
    (own,) = (one for one in files if one.precision == "int8")
    return own


def scored(path: Path, dataset: Dataset) -> Interval:
    """mAP@0.5 of a file on val, 0..1, with its interval over val's pictures."""
    matches = match(dataset.splits[VAL], detect(path, dataset, VAL), len(dataset.classes))
    images = len(dataset.splits[VAL])
    (own,) = mean_ap(matches, np.ones((1, images), np.uint8))
    return interval(float(own), mean_ap(matches, draws(images)))


def of_seeds(card: Card, recipe: Recipe, seeds: list[int]) -> Card:
    """The card with what further seeds come to."""
    known = dict(zip(card.seeds, card.map50_of_seeds, strict=True))
    dataset = open_dataset(recipe.data)
    for seed in seeds:
        own = recipe.changed({"seed": seed, "run.dir": f"{recipe.folder}-seed{seed}"})
        known[seed] = round(scored(of_int8(shipped(train(own).student, own)).path, dataset).value, 4)
        print(f"seed {seed}: {100 * known[seed]:.1f} mAP@0.5", flush=True)
    return replace(card, seeds=tuple(known), map50_of_seeds=tuple(known.values()))


def made(name: str, recipe: Recipe, path: Path) -> Card:
    """Ship and describe a trained student; its milliseconds are measured later."""
    files = shipped(path, recipe)
    detector, notes = load_detector(path)
    proof = {one.precision: one.proof for one in files}
    own = of_int8(files)
    if own.bytes > MOST:
        raise SystemExit(f"{name} has {own.bytes:,} bytes, above {MOST:,}; make it narrower.")
    shutil.copyfile(own.path, FOLDER / f"{name}{DEPLOYED}")
    save_detector(detector, FOLDER / f"{name}{TRAINED}", notes)
    dataset = open_dataset(recipe.data)
    span = scored(FOLDER / f"{name}{DEPLOYED}", dataset)
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
        map50_of_seeds=(round(span.value, 4),),
        map50_float=round(float(notes["map50"]), 4),
        images=len(dataset.splits[VAL]),
        parameters=parameter_count(detector),
        macs=mac_count(detector),
        bytes=own.bytes,
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
    parser.add_argument("--also", nargs="+", type=int, default=[], help="only train these seeds too, for the cards")
    parser.add_argument("--again", action="store_true", help="train nothing: export the students that are there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    file = FOLDER / CARDS
    cards = json.loads(file.read_text()) if file.exists() else {}
    for name in options.names or ABOUT:
        recipe = recipe_of(name, options.data, options.runs)
        if options.also:
            card = of_seeds(of_zoo()[name], recipe, options.also)
        elif options.again:
            before = of_zoo()[name]
            card = made(name, recipe, packaged(name, recipe))
            others = before.map50_of_seeds[1:]
            card = replace(card, seeds=before.seeds, map50_of_seeds=(*card.map50_of_seeds, *others))
        else:
            card = made(name, recipe, train(recipe).student)
        cards[name] = asdict(card)
        print(f"{name}: {100 * cards[name]['map50']:.1f} mAP@0.5, {cards[name]['bytes']:,} bytes", flush=True)
    cards = {name: cards[name] for name in ABOUT if name in cards}
    if not options.also:
        note_times(cards)
    file.write_text(json.dumps(cards, indent=1) + "\n")


def note_times(cards: dict[str, dict[str, Any]]) -> None:
    """Measure the students' milliseconds side by side, and note them on their cards."""
    seconds = alternate({name: as_run(Engine(FOLDER / f"{name}{DEPLOYED}")) for name in cards}, 200)
    for name, own in seconds.items():
        cards[name]["milliseconds"] = round(1000 * float(np.median(own)), 2)
        load = f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
        cards[name]["machine"] = f"{platform.machine()}, one thread, median of 200 alternating runs, {load}"


if __name__ == "__main__":
    main()
