"""`qmimic export`: files to ship."""

import argparse
import contextlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

from qmimic.cli.completion import complete, detectors, keys
from qmimic.cli.grammar import OVERRIDES, Commands, add_json, targets
from qmimic.errors import InputError
from qmimic.zoo import TRAINED, is_of_zoo, located


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    export = commands.add_parser("export", help="write files to ship, proved to detect what the trained model detects")
    detector = export.add_argument("detector", type=Path, help="a .safetensors file of a run, or zoo:NAME")
    complete(detector, detectors)
    export.add_argument("--to", default="onnx", metavar="FORMATS", help="formats, separated by commas")
    export.add_argument(
        "--int8", action="store_true", help="also write int8 files, unless they lose more than int8.max_loss"
    )
    export.add_argument(
        "--c",
        nargs="?",
        const="",
        metavar="WIDTHxHEIGHT",
        help="also write C source for microcontrollers beside an int8 .tflite, for this picture size (the input's)",
    )
    export.add_argument(
        "--nms",
        choices=["inside", "outside"],
        default="inside",
        help="suppress in the graph or the runtime",
    )
    export.add_argument("--out", type=Path, help="folder for the files (deploy/, beside the detector)")
    export.add_argument("--data", help="dataset whose pictures the proof uses (that of the run's recipe.yaml)")
    overrides = export.add_argument(
        "--set", dest="overrides", nargs="+", default=[], metavar=OVERRIDES, help="changes to the run's recipe"
    )
    complete(overrides, keys)
    export.add_argument("--batch", type=int, default=1, help="images per call; 0: any number, slightly slower")
    export.add_argument("--opset", type=int, help="opset of ONNX files: 20, or 17 to 19 for older engines (20)")
    add_json(export)
    export.set_defaults(run=_export)


def _report_again(run: Path, folder: Path, say: Callable[[str], None]) -> None:
    """Rewrite the report of the run that the files belong to, now that it has files to show."""
    from qmimic.config import load_recipe
    from qmimic.report.page import report_of
    from qmimic.run.folder import DEPLOY, RECIPE

    if folder == run / DEPLOY and (run / RECIPE).is_file():
        page = report_of(run, load_recipe(run / RECIPE, []).run.report, say)
        if page:
            say(f"Report: {page}")


@contextlib.contextmanager
def _beside_its_work(options: argparse.Namespace) -> Iterator[Path]:
    """The detector's file where its integer stage may work: a zoo student's copy in a folder that goes afterwards."""
    name = options.detector
    if not is_of_zoo(name):
        yield name
        return
    source = located(name, TRAINED)
    if options.out is None:
        raise InputError(f"{name} is part of the package, where qmimic does not write; name a folder with --out.")
    if options.data is None:
        raise InputError(f"The pictures of {name} are not in the package; name a dataset of its classes with --data.")
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copyfile(source, Path(folder) / source.name))


def _camera(text: str | None) -> tuple[int, int] | None:
    """Height and width of a camera's pictures from `WxH`; None for None."""
    if not text:
        return None
    sides = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if sides is None:
        raise InputError(
            f"--c {text}: give the size of the camera's pictures in pixels, such as 320x240, or leave it out."
        )
    return int(sides[2]), int(sides[1])


def _export(options: argparse.Namespace) -> int:
    from qmimic.cli.output import Output, table
    from qmimic.run.deploy import advice, deploy
    from qmimic.run.folder import DEPLOY
    from qmimic.runtime.formats import FORMATS
    from qmimic.ship.c_source import require_own_source, write_c
    from qmimic.ship.opset import OLDEST, OPSET
    from qmimic.ship.write import proved

    if options.batch < 0:
        raise InputError(f"--batch {options.batch} is not a number of images; give 1 or more, or 0 for any number.")
    names = targets(options.to)
    camera = _camera(options.c)
    if options.c is not None and not (options.int8 and "litert" in names):
        raise InputError("--c writes C source beside an int8 .tflite; give --int8 and --to litert as well.")
    if options.opset is not None and not OLDEST <= options.opset <= OPSET:
        raise InputError(f"--opset {options.opset} is not supported; choose {OLDEST} to {OPSET}.")
    if options.opset is not None and "onnx" not in names:
        raise InputError("--opset is only for ONNX files; add onnx to --to, or leave it out.")
    out = Output(options)
    with _beside_its_work(options) as detector, out.watching() as watcher:
        if options.c is not None:  # before the minutes that integers take
            require_own_source((options.out or detector.parent / DEPLOY) / f"{detector.stem}-int8.tflite")
        batch = options.batch or None
        inside = options.nms == "inside"
        given = detector, options.out, options.data, options.overrides
        files = deploy(*given, batch, inside, names, options.int8, watcher, options.opset or OPSET)
        sources = [
            source
            for one in files
            if options.c is not None and (one.target, one.precision) == ("litert", "int8")
            for source in write_c(one.path, camera)
        ]
        _report_again(detector.parent, files[0].path.parent, watcher.say)
    times = ["-" if FORMATS[one.target].elsewhere else f"{one.milliseconds:.2f}" for one in files]
    rows = [
        (one.path.name, proved(one.proof), f"{one.bytes / 1000:.0f}", own)
        for one, own in zip(files, times, strict=True)
    ]
    heads = "file", "proof", "kB", "ms"
    out.result(
        table(heads, rows, "one thread, medians of one alternating run", words=2),
        f"{advice(files)} The files are in {files[0].path.parent}."
        + (f" C source: {', '.join(one.name for one in sources)}." if sources else ""),
    )
    out.end({"files": [asdict(one) for one in files], "advice": advice(files), "sources": sources})
    if options.int8 and not any(one.precision == "int8" for one in files):
        raise InputError("No int8 file was written, for the reasons above.")
    return 0
