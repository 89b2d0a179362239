"""`qmimic data`: check, convert, index and fetch labelled folders."""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from qmimic.cli.completion import complete
from qmimic.cli.grammar import OVERRIDES, Commands, Names, add_json
from qmimic.errors import InputError

if TYPE_CHECKING:
    from rich.progress import TaskID


READ = (
    "detector.architecture",
    "teacher.detector",
    "detector.pre_nms",
    "detector.post_nms",
    "detector.max_detections",
    "data.allow_capped",
)


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    parser = commands.add_parser("data", help="check, convert, index or download a labelled folder")
    data = parser.add_subparsers(required=True, metavar="ACTION")
    check = data.add_parser("check", help="find what is wrong with the labels before any training")
    check.add_argument("path", type=Path, help="folder of a dataset")
    check.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), default=(256, 256), help="training size in pixels (256 256)"
    )
    overrides = check.add_argument(
        "--set", dest="overrides", nargs="+", default=[], metavar=OVERRIDES, help=f"recipe keys: {', '.join(READ)}"
    )
    complete(overrides, lambda _: [f"{key}=" for key in READ])
    check.add_argument("--pictures", type=Path, metavar="FILE", help="also draw the first defects in this picture")
    add_json(check)
    check.set_defaults(run=_check)
    convert = data.add_parser(
        "convert", help="write the images and labels in another layout, with exactly the same boxes"
    )
    convert.add_argument("source", help="folder of a dataset, or synthetic:digits")
    convert.add_argument("target", type=Path, help="new folder")
    convert.add_argument("--to", choices=Names(_layouts), required=True, metavar="LAYOUT", help="one of %(choices)s")
    convert.set_defaults(run=_convert)
    index = data.add_parser("index", help="check a large dataset once, so that training can open it at once")
    index.add_argument("path", type=Path, help="folder of a dataset; the index is written into it")
    index.add_argument("--drop-bad", action="store_true", help="leave out what `data check` refuses")
    index.set_defaults(run=_index)
    fetch = data.add_parser("get", help="download the paper's data; the same command continues an interrupted download")
    fetch.add_argument("name", choices=Names(_sets), metavar="NAME", help="one of %(choices)s")
    fetch.add_argument("--to", type=Path, required=True, help="folder")
    fetch.add_argument("--mirror", default="", help="address of a folder with the same files")
    fetch.set_defaults(run=_get)


def _layouts() -> Iterable[str]:
    from qmimic.data.formats import WRITERS

    return WRITERS


def _sets() -> Iterable[str]:
    from qmimic.data.download import SETS

    return SETS


def _check(options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    from qmimic.config import load_recipe
    from qmimic.config.reading import refuse_keys
    from qmimic.data.check import check, defects_drawn
    from qmimic.data.formats import load_dataset
    from qmimic.files import replacing

    if min(options.size) < 1:
        raise InputError(f"--size {options.size[0]} {options.size[1]} is not a size; give height and width in pixels.")
    if options.pictures and options.pictures.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise InputError(f"--pictures {options.pictures} is not the name of a picture; use a name that ends in .png.")
    refuse_keys(options.overrides, READ, "data check", "only the limit on the objects of a picture")
    recipe = load_recipe(None, options.overrides)
    dataset = load_dataset(options.path)
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        total = sum(len(samples) for split, samples in dataset.splits.items() if split not in dataset.unions)
        task = bar.add_task("pictures", total=total)
        report = check(dataset, tuple(options.size), lambda: bar.advance(task), recipe)
    sheet = defects_drawn(dataset, report.defects) if options.pictures else None
    if sheet is not None:
        with replacing(options.pictures) as temporary:
            sheet.save(temporary)
    print(json.dumps(report.as_json()) if options.json else report.as_text())
    if options.pictures and not options.json:
        print(f"The first defects are drawn in {options.pictures}." if sheet else "None of the defects can be drawn.")
    return report.exit_code


def _convert(options: argparse.Namespace) -> int:
    from qmimic.data.convert import convert
    from qmimic.data.formats import load_dataset

    print(convert(load_dataset(options.source), options.target, options.to))
    return 0


def _index(options: argparse.Namespace) -> int:
    from qmimic.data.index import make

    print(make(options.path, options.drop_bad))
    return 0


def _get(options: argparse.Namespace) -> int:
    from rich.progress import DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

    from qmimic.data.download import SETS, get

    with Progress("{task.description}", DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()) as bar:
        tasks: dict[str, TaskID] = {}

        def show(name: str, here: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bar.add_task(name)
            bar.update(tasks[name], completed=here, total=total or None)

        get(SETS[options.name], options.to, options.mirror, show)
    print(f"{options.name} is in {options.to}.")
    return 0
