"""`qmimic fit`: find the best detector within a budget."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from qmimic.cli.completion import complete, keys
from qmimic.cli.grammar import OVERRIDES, Commands, add_json, targets
from qmimic.errors import InputError

SEARCHED = "searches for this itself"
SET_BY_FIT = {
    **dict.fromkeys(("data.size", "student.backbone", "detector.architecture", "detector.anchors"), SEARCHED),
    "student.weights": "tries many backbones, and no file fits all of them",
    "data.root": "takes the data as its first argument",
    "run.dir": "takes the folder from --out",
    "name": "names its runs itself",
    "published": "prints no published figures",
}


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    fit = commands.add_parser(
        "fit", help="find the best detector within limits of time, size and memory on this machine"
    )
    fit.add_argument("data", help="folder of a dataset, or synthetic:digits")
    overrides = fit.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=[],
        metavar=OVERRIDES,
        help="changes to the recipe; see `qmimic train --help`",
    )
    complete(overrides, keys)
    fit.add_argument("--max-ms", type=float, help="milliseconds per picture on one thread")
    fit.add_argument("--max-kb", type=float, help="size of the file, kilobytes")
    fit.add_argument("--max-mb", type=float, help="largest resident memory of a process that runs it, megabytes")
    fit.add_argument(
        "--max-arena-kb", type=float, help="working memory on a microcontroller, without the file, kilobytes"
    )
    fit.add_argument(
        "--to",
        default="",
        metavar="FORMATS",
        help="formats to choose from, separated by commas (onnx; with --max-arena-kb litert)",
    )
    fit.add_argument("--out", type=Path, help="folder (runs/fit-BUDGET)")
    add_json(fit)
    fit.set_defaults(run=_fit, resumes=True)


def _fit(options: argparse.Namespace) -> int:
    from qmimic.cli.output import Output, table
    from qmimic.config import load_recipe, recipe_text
    from qmimic.config.reading import named_keys
    from qmimic.report.page import report_of
    from qmimic.run.candidates import Budget
    from qmimic.run.effects import refuse_idle
    from qmimic.run.search import fit

    limits = {"ms": options.max_ms, "kB": options.max_kb, "MB": options.max_mb, "kB-arena": options.max_arena_kb}
    if not any(limits.values()) or any(limit is not None and not limit > 0 for limit in limits.values()):
        raise InputError("Give at least one limit above 0: --max-ms, --max-kb, --max-mb, --max-arena-kb.")
    formats = targets(options.to or ("litert" if options.max_arena_kb else "onnx"))
    if options.max_arena_kb and formats != ["litert"]:
        raise InputError("--max-arena-kb is only for .tflite files; leave out --to, or give --to litert.")
    taken = next((key for key in named_keys(options.overrides) if key in SET_BY_FIT), None)
    if taken:
        raise InputError(f"--set {taken}: `qmimic fit` {SET_BY_FIT[taken]}; leave it out, or use `qmimic train`.")
    # A pruned teacher was the best student in every study that has one (docs/results.md).
    given = [f"data.root={json.dumps(options.data)}"]
    recipe = load_recipe(None, [*given, *options.overrides])
    named = named_keys(options.overrides)
    if "baselines" not in named:
        spare = ["labelled"] if recipe.data.unlabelled is not None else []
        pruned = ["taylor"] if recipe.trains_teacher else []
        recipe = recipe.changed({"baselines": ("scratch", *spare, *pruned)})
    refuse_idle(recipe, named, "--set")
    name = "-".join(f"{limit:g}{unit}" for unit, limit in limits.items() if limit)
    out, folder = Output(options), options.out or Path(f"runs/fit-{name}")
    out.detail(f"The resolved recipe of everything that is not searched:\n{recipe_text(recipe)}")
    with out.watching() as watcher:
        fitted = fit(recipe, Budget(*limits.values()), formats, folder, watcher, named)
        report_of(fitted.file.path.parents[1], recipe.run.report, watcher.say)
    rows = []
    for one in fitted.tried:
        own = one.option
        numbers = (f"{own.milliseconds:.2f}", f"{own.kilobytes:.0f}", f"{100 * one.map50:.1f}", str(one.steps))
        rows.append((f"{own.candidate} {own.precision}", *numbers, "yes" if one.on_front else ""))
    ways = [(one.name, f"{100 * one.map50:.1f}", str(one.steps)) for one in fitted.ways]
    heads = "network", "ms", "kB", "mAP", "steps", "front"
    file = fitted.file
    fits = "within" if fitted.excess <= 1 else f"{fitted.excess:.2f} times"
    out.result(
        table(heads, rows, "Short trainings from scratch"),
        *([table(("way", "mAP", "steps"), ways, "Ways to teach the winner")] if ways else []),
        f"To ship: {file.path}: {100 * fitted.map50:.1f} mAP@0.5 on val, {file.milliseconds:.2f} ms, "
        f"{file.bytes / 1000:.0f} kB, {fits} the limit. Plot: {fitted.folder / 'front.png'}",
    )
    tried = [asdict(one) for one in fitted.tried]
    result = {"folder": fitted.folder, "file": asdict(file), "map50": fitted.map50, "excess": fitted.excess}
    out.end({**result, "tried": tried, "ways": [asdict(one) for one in fitted.ways]})
    return 0
