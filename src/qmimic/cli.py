"""The commands: they parse, call and print; no logic of their own."""

import argparse
import io
import json
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from qmimic.errors import InputError
from qmimic.memory import is_lack_of_memory

if TYPE_CHECKING:
    from rich.progress import TaskID

    from qmimic.scores.summary import Scores

EXIT_BAD_INPUT = 2
OVERRIDES = "key.sub=value"
SEARCHED = ("data.size", "student.backbone", "detector.architecture", "detector.anchors", "run.dir")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the console script of the package.

    Returns:
        0; 1 if `data check` found something to mend; 2 after bad input or Ctrl-C, with one sentence on stderr.
    """
    goes_on = ""
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be printable
        options = parser().parse_args(arguments)
        if options.run in (_train, _fit):
            goes_on = "; the last checkpoint is kept, the same command goes on from it"
        code: int = options.run(options)
        print(end="", flush=True)  # what cannot be written is to fail here
        return code
    except InputError as error:
        _complain(str(error))
    except KeyboardInterrupt:
        _complain(f"interrupted{goes_on}.")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("qmimic"):
            raise
        _complain(f"{error.name} is not installed, which this command needs: pip install 'qmimic[train]'.")
    except BrokenPipeError:  # the reader of our output has gone
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        sys.stderr.close()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}; check the path, its permissions and the disk.")
    except (MemoryError, RuntimeError) as error:
        from qmimic.processes import is_loss_of_process  # torch is here by now, else nothing raised this

        if is_lack_of_memory(error):
            _complain(
                "there is not enough memory; lower batch_size, data.size or the networks' widths, or close programs."
            )
        elif is_loss_of_process(error):
            _complain(f"another process of this run has gone, see what it said{goes_on}.")
        else:
            raise
    return EXIT_BAD_INPUT


def _complain(sentence: str) -> None:
    # Names of files may hold line breaks, and a complaint is one line.
    print(f"qmimic: {' '.join(sentence.splitlines())}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """Bad arguments are bad input like any other: one sentence, without the grammar above it."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; see `{self.prog} --help`.")


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    from qmimic.config import settings
    from qmimic.data.download import SETS
    from qmimic.data.formats import WRITERS

    top = _Parser(prog="qmimic", description="Very tiny object detectors by quantization mimic.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    data = commands.add_parser("data", help="look at a labelled folder").add_subparsers(required=True)
    check = data.add_parser("check", help="what is wrong with my labels, before any training")
    check.add_argument("path", type=Path, help="folder of a dataset (VOC, COCO or YOLO)")
    check.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), default=(256, 256), help="training size, pixels"
    )
    check.add_argument("--json", action="store_true", help="print one JSON object")
    check.set_defaults(run=_check)
    convert = data.add_parser("convert", help="the same images and labels in another layout, boxes exactly as they are")
    convert.add_argument("source", help="folder of a dataset (VOC, COCO or YOLO), or synthetic:digits")
    convert.add_argument("target", type=Path, help="new folder")
    convert.add_argument("--to", choices=list(WRITERS), required=True, help="layout of the new folder")
    convert.set_defaults(run=_convert)
    index = data.add_parser("index", help="check a large dataset once, so that training opens it in a moment")
    index.add_argument("path", type=Path, help="folder of a dataset; the index is written into it")
    index.add_argument("--drop-bad", action="store_true", help="leave out what `data check` refuses")
    index.set_defaults(run=_index)
    fetch = data.add_parser("get", help="fetch the paper's data; the same command goes on where it stopped")
    fetch.add_argument("name", choices=list(SETS))
    fetch.add_argument("--to", type=Path, required=True, help="folder")
    fetch.add_argument("--mirror", default="", help="address of a folder that has the same files")
    fetch.set_defaults(run=_get)
    keys = "\n".join(f"  {key:<34} {text}" for key, text in settings())
    train = commands.add_parser(
        "train",
        help="recipe to run folder: teacher, quantized teacher, student, baselines",
        epilog=f"keys, with their defaults:\n{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("recipe", type=Path, help="a YAML file, such as recipes/bccd.yaml")
    train.add_argument("overrides", nargs="*", metavar=OVERRIDES, help="changes to the recipe, listed below")
    train.set_defaults(run=_train)
    schema = commands.add_parser("schema", help="print the recipe's JSON schema, for editors")
    schema.set_defaults(run=_schema)

    cost = commands.add_parser("cost", help="what a backbone costs, and baselines of other convolutions at equal cost")
    cost.add_argument("backbone", help="family and width divisor, such as resnet18/16")
    cost.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), default=(128, 128), help="image size, pixels")
    cost.set_defaults(run=_cost)
    study = commands.add_parser(
        "study", help="a grid of recipes, arms and seeds, side by side; a report with intervals"
    )
    study.add_argument("what", metavar="FILE | report", help="a study's YAML file to run, or the word report")
    study.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="of studies, for the report")
    study.add_argument("--out", type=Path, help="folder of the study (runs/study-NAME), file of the report (report.md)")
    study.add_argument("--workers", type=int, help="jobs at a time, of one thread each (as many as there are cores)")
    study.add_argument(
        "--ray", metavar="ADDRESS", help="run on a Ray cluster: auto, or host:port (pip install qmimic[ray])"
    )
    study.set_defaults(run=_study)

    evaluate = commands.add_parser("eval", help="score a trained detector on a split")
    evaluate.add_argument("detector", type=Path, help="a .safetensors file of a run")
    evaluate.add_argument("--data", required=True, help="folder of a dataset, or synthetic:digits")
    evaluate.add_argument("--split", default="val")
    evaluate.add_argument("--detections", type=Path, help="also write the detections to this JSON file")
    evaluate.add_argument("--widerface", type=Path, help="also write them to this folder as WIDER FACE's text files")
    evaluate.add_argument(
        "--sizes", type=_size, nargs="+", default=[], metavar="HxW", help="look at the images at these sizes, pixels"
    )
    evaluate.add_argument("--flip", action="store_true", help="look at them mirrored as well")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object last")
    evaluate.set_defaults(run=_evaluate)

    export = commands.add_parser("export", help="a file to ship, after proof that it detects as the trained model does")
    export.add_argument("detector", type=Path, help="a .safetensors file of a run")
    export.add_argument("--to", default="onnx", metavar="FORMATS", help="onnx, openvino, executorch, with commas")
    export.add_argument("--int8", action="store_true", help="also on integers, unless it costs above int8.max_loss")
    export.add_argument("--nms", choices=["inside", "outside"], default="inside", help="the graph, or the runtime")
    export.add_argument("--out", type=Path, help="folder (deploy, beside the detector)")
    export.add_argument("--data", help="dataset whose pictures it is proved on (that of the run's recipe.yaml)")
    export.add_argument(
        "--set", dest="overrides", nargs="+", default=[], metavar=OVERRIDES, help="changes to the run's recipe"
    )
    export.add_argument("--batch", type=int, default=1, help="images at once; 0: any number, a little slower")
    export.set_defaults(run=_export)

    bench = commands.add_parser("bench", help="time deployed files on this machine, beside any other ONNX files")
    bench.add_argument("files", type=Path, nargs="+", help=".onnx or .xml files, or folders of them")
    bench.add_argument("--against", type=Path, nargs="*", default=[], help="other files for the same run")
    bench.add_argument("--threads", type=int, nargs="+", default=[1])
    bench.add_argument("--rounds", type=int, default=100, help="how often each file is run")
    bench.add_argument("--json", action="store_true", help="print one JSON object a file instead of a table")
    bench.set_defaults(run=_bench)

    fit = commands.add_parser("fit", help="the best detector within milliseconds, kilobytes and memory of this machine")
    fit.add_argument("data", help="folder of a dataset, or synthetic:digits")
    fit.add_argument(
        "--set",
        dest="overrides",
        nargs="+",
        default=[],
        metavar=OVERRIDES,
        help="changes to the recipe, see `qmimic train --help`",
    )
    fit.add_argument("--max-ms", type=float, help="a picture, one thread")
    fit.add_argument("--max-kb", type=float, help="size of the file")
    fit.add_argument("--max-mb", type=float, help="largest resident memory of a process that runs it")
    fit.add_argument(
        "--to", default="onnx", metavar="FORMATS", help="that may ship: onnx, openvino, executorch, with commas"
    )
    fit.add_argument("--out", type=Path, help="folder (runs/fit-, with the budget)")
    fit.set_defaults(run=_fit)

    predict = commands.add_parser("predict", help="draw what a detector finds in pictures")
    predict.add_argument("detector", type=Path, help="a .safetensors file of a run")
    predict.add_argument("images", type=Path, nargs="+")
    predict.add_argument("--out", type=Path, required=True, help="folder for the drawn pictures")
    predict.add_argument("--min-score", type=float, default=0.4, help="0..1")
    predict.set_defaults(run=_predict)

    score = commands.add_parser("score", help="score anyone's detections on a labelled split")
    truth = score.add_mutually_exclusive_group(required=True)
    truth.add_argument("--data", help="folder of a dataset")
    truth.add_argument("--widerface", type=Path, help="folder of WIDER FACE's ground truth, four .mat files")
    score.add_argument("--split", default="val", help="of --data")
    score.add_argument(
        "--detections",
        type=Path,
        required=True,
        help="JSON list, as COCO results; of WIDER FACE its folder of text files",
    )
    score.add_argument("--json", action="store_true", help="print one JSON object last")
    score.set_defaults(run=_score)
    return top


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size, write height x width, such as 480x640")
    return int(height), int(width)


def _check(options: argparse.Namespace) -> int:
    from qmimic.data.check import check
    from qmimic.data.formats import load_dataset

    if min(options.size) < 1:
        raise InputError(f"--size {options.size[0]} {options.size[1]} is no size; give height and width in pixels.")
    report = check(load_dataset(options.path), tuple(options.size))
    print(json.dumps(report.as_json()) if options.json else report.as_text())
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


def _train(options: argparse.Namespace) -> int:
    from accelerate import PartialState
    from rich.table import Table

    from qmimic.config import load_recipe
    from qmimic.pipeline.run import COLUMNS, rows, train
    from qmimic.training.progress import Bar, Screen

    recipe = load_recipe(options.recipe, options.overrides)
    console = Screen()
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no width of its own
    with Bar(console) as bar:
        result = train(recipe, bar)
    if not PartialState().is_main_process:
        return 0
    table = Table(*COLUMNS, title=f"{recipe.name}, val split, seed {recipe.seed} (mAP and matching in %)")
    for row in rows(result.results):
        table.add_row(*row)
    console.print(table)
    for remark in result.remarks:
        console.print(remark, highlight=False, soft_wrap=True)
    console.print(f"Table: {result.folder / 'results.md'}   pictures: {result.folder / 'examples.png'}", soft_wrap=True)
    console.print(f"To ship: {result.student}", highlight=False, soft_wrap=True)
    return 0


def _cost(options: argparse.Namespace) -> int:
    from qmimic.api import build_detector
    from qmimic.models.backbones import BACKBONES, parse_name
    from qmimic.models.detectors import at_size, equal_cost, mac_count, parameter_count

    family, _ = parse_name(options.backbone)
    detector = at_size(build_detector(options.backbone, ("object",)), tuple(options.size))
    names = [equal_cost(detector.spec, other) for other in BACKBONES if other.startswith(f"{family}_")]
    for name in (options.backbone, *names):
        own = build_detector(name, ("object",), detector.spec.size)
        print(f"{name:<26} {mac_count(own) / 1e6:8.2f} MMACs  {parameter_count(own):>10,} parameters")
    return 0


def _study(options: argparse.Namespace) -> int:
    from qmimic.study.report import report

    if options.what == "report":
        if not options.folders:
            raise InputError("Name the folders of the studies to report, for example runs/study-order.")
        print(report(options.folders, options.out or options.folders[0] / "report.md"))
        return 0
    if options.folders:
        raise InputError(f"{options.folders[0]} is one argument too many; name one study's file.")
    return _run_study(options)


def _run_study(options: argparse.Namespace) -> int:
    from qmimic.study.cluster import Cluster
    from qmimic.study.report import report
    from qmimic.study.schedule import Process, run_study
    from qmimic.study.spec import expand, load_study
    from qmimic.study.view import View
    from qmimic.training.progress import Screen

    if options.workers is not None and options.workers < 1:
        raise InputError(f"--workers {options.workers} does nothing; give at least 1.")
    source = Path(options.what)
    study = load_study(source)
    folder = options.out or Path(f"runs/study-{study.name}")
    runs = expand(study, source, folder)
    console = Screen()
    with Cluster(options.ray) if options.ray else nullcontext() as cluster, View(console, folder) as view:
        workers = options.workers or (cluster.cores if cluster else os.cpu_count() or 1)
        jobs = run_study(study, runs, folder, workers, view.show, cluster.start if cluster else Process)
    for job in jobs:
        if job.status == "failed":
            console.print(f"failed: {job.kind} {job.id}: {job.error}", highlight=False, soft_wrap=True)
    console.print(report([folder], folder / "report.md"), highlight=False, soft_wrap=True, markup=False)
    console.print(f"Table: {folder / 'study.sqlite'}   report: {folder / 'report.md'}", soft_wrap=True, highlight=False)
    return 0


def _schema(options: argparse.Namespace) -> int:
    from qmimic.config import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from qmimic.api import detect
    from qmimic.data.formats import load_dataset
    from qmimic.scores.detections_file import coco_ids, write_detections
    from qmimic.scores.summary import score
    from qmimic.scores.widerface import write_detections as write_widerface

    dataset = load_dataset(options.data)
    found = detect(options.detector, dataset, options.split, options.sizes, options.flip)
    if options.detections:
        write_detections(options.detections, found, dataset.classes, coco_ids(dataset, options.split))
    if options.widerface:
        write_widerface(options.widerface, found)
    return _print_scores(score(dataset, options.split, found), options.json)


def _export(options: argparse.Namespace) -> int:
    from rich.table import Table

    from qmimic.pipeline.deploy import advice, deploy, proved
    from qmimic.training.progress import Bar, Screen

    if options.batch < 0:
        raise InputError(f"--batch {options.batch} is no number of images; give 1 or more, or 0 for any number.")
    targets = _targets(options.to)
    console = Screen()
    with Bar(console) as bar:
        batch = options.batch or None
        inside = options.nms == "inside"
        given = options.detector, options.out, options.data, options.overrides
        files = deploy(*given, batch, inside, targets, options.int8, bar)
    table = Table("file", "kB", "ms", "proof", title="one thread, medians of one alternating run")
    for one in files:
        table.add_row(one.path.name, f"{one.bytes / 1000:.0f}", f"{one.milliseconds:.2f}", proved(one.proof))
    console.print(table)
    console.print(f"{advice(files)} The files are in {files[0].path.parent}.", highlight=False, soft_wrap=True)
    if options.int8 and not any(one.precision == "int8" for one in files):
        raise InputError("No int8 file was written, see above; executorch has none in any case.")
    return 0


def _targets(text: str) -> list[str]:
    from qmimic.export.ship import TARGETS

    names = list(dict.fromkeys(text.split(",")))
    unknown = next((name for name in names if name not in TARGETS), None)
    if unknown is not None:
        raise InputError(f"--to {unknown} is no format; give one or more of {','.join(TARGETS)}.")
    return names


def _fit(options: argparse.Namespace) -> int:
    from rich.table import Table

    from qmimic.config import load_recipe
    from qmimic.pipeline.candidates import Budget
    from qmimic.pipeline.fit import fit
    from qmimic.training.progress import Bar, Screen

    limits = {"ms": options.max_ms, "kB": options.max_kb, "MB": options.max_mb}
    if not any(limits.values()) or any(limit is not None and not limit > 0 for limit in limits.values()):
        raise InputError("Give a limit above 0: --max-ms, --max-kb or --max-mb, one of them or several.")
    taken = next((one for one in options.overrides if one.startswith(SEARCHED)), None)
    if taken:
        raise InputError(f"--set {taken}: that is what is searched; leave it out, or use `qmimic train`.")
    recipe = load_recipe(None, [f"data.root={json.dumps(options.data)}", *options.overrides])
    name = "-".join(f"{limit:g}{unit}" for unit, limit in limits.items() if limit)
    console = Screen()
    with Bar(console) as bar:
        folder = options.out or Path(f"runs/fit-{name}")
        fitted = fit(recipe, Budget(*limits.values()), _targets(options.to), folder, bar)
    table = Table("network", "ms", "kB", "mAP", "steps", "front", title="Short trainings from scratch")
    for one in fitted.tried:
        own = one.option
        numbers = (f"{own.milliseconds:.2f}", f"{own.kilobytes:.0f}", f"{100 * one.map50:.1f}", str(one.steps))
        table.add_row(f"{own.candidate} {own.precision}", *numbers, "yes" if one.on_front else "")
    console.print(table)
    file = fitted.file
    fits = "within" if fitted.excess <= 1 else f"{fitted.excess:.2f} times"
    console.print(
        f"To ship: {file.path}: {100 * fitted.map50:.1f} mAP@0.5 on val, {file.milliseconds:.2f} ms, "
        f"{file.bytes / 1000:.0f} kB, {fits} the limit. Plot: {fitted.folder / 'front.png'}",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _bench(options: argparse.Namespace) -> int:
    from rich.progress import Progress
    from rich.table import Table

    from qmimic.bench.measure import files_of, measure
    from qmimic.training.progress import Screen

    if min(options.threads) < 1 or options.rounds < 1:
        raise InputError("--threads and --rounds need 1 or more.")
    files = files_of([*options.files, *options.against])
    console = Screen(stderr=options.json)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("rounds", total=options.rounds * len(options.threads))
        costs = measure(files, options.threads, options.rounds, watch=lambda done: bar.update(task, completed=done))
    if options.json:
        for cost in costs:
            print(json.dumps({**asdict(cost), "path": str(cost.path), "ms_per_mpx": cost.per_megapixel}))
        return 0
    heads = (
        "file",
        "threads",
        "p50\nms",
        "p95\nms",
        "ms/\nMpx",
        "1/s",
        "load\nms",
        "peak\nMB",
        "kB",
        "MMACs",
        "weights",
    )
    table = Table(*heads, box=None, padding=(0, 1, 0, 0))
    names = Counter(path.name for path in files)
    for one in costs:
        times = (f"{one.p50:.2f}", f"{one.p95:.2f}", f"{one.per_megapixel:.1f}", f"{one.per_second:.0f}")
        rest = (f"{one.load:.0f}", f"{one.peak:.0f}", f"{one.kilobytes:.0f}")
        own = (f"{one.macs / 1e6:.1f}" if one.macs else "-", f"{one.parameters:,}" if one.parameters else "-")
        name = str(one.path) if names[one.path.name] > 1 else one.path.name
        table.add_row(name, str(one.threads), *times, *rest, *own)
    console.print(table)
    return 0


def _predict(options: argparse.Namespace) -> int:
    from qmimic.prediction import draw_predictions

    for path, count, target in draw_predictions(options.detector, options.images, options.out, options.min_score):
        print(f"{path}: {count} objects, drawn in {target}")
    return 0


def _score(options: argparse.Namespace) -> int:
    if options.widerface:
        return _score_widerface(options)
    from qmimic.data.formats import load_dataset
    from qmimic.scores.detections_file import read_detections
    from qmimic.scores.summary import score

    dataset = load_dataset(options.data)
    found = read_detections(options.detections, dataset, options.split)
    return _print_scores(score(dataset, options.split, found), options.json)


def _score_widerface(options: argparse.Namespace) -> int:
    from qmimic.scores.widerface import LEVELS, read_detections, read_truth, widerface_ap

    truth = read_truth(options.widerface)
    found, said = read_detections(options.detections, truth)
    scores = widerface_ap(truth, found)
    values = {level: getattr(scores, level) for level in LEVELS}
    print("   ".join(f"{level} {100 * value:.1f}" for level, value in values.items()))
    print(f"{scores.detections:,} detections, the lowest score is {scores.lowest_score:g}", *said, sep="\n")
    if options.json:
        print(json.dumps(values))
    return 0


def _print_scores(scores: "Scores", as_json: bool) -> int:
    for name, own in scores.per_class.items():
        print(f"{name:<20} VOC07 {100 * own.ap07:5.1f}   VOC {100 * own.ap:5.1f}   boxes {own.positives}")
    mean = (
        f"VOC07 {100 * scores.voc07_map50:5.1f}   VOC {100 * scores.voc_map50:5.1f}   COCO {100 * scores.coco_map:5.1f}"
    )
    print(f"{'mean':<20} {mean}")
    if as_json:
        print(json.dumps(scores.as_json()))
    return 0
