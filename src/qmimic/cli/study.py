"""`qmimic study`: many runs side by side, and their report."""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from qmimic.cli.grammar import Commands, add_json
from qmimic.errors import InputError

if TYPE_CHECKING:
    from qmimic.cli.output import Output


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    study = commands.add_parser("study", help="run arms, settings and seeds side by side; report them with intervals")
    study.add_argument("what", metavar="FILE | report", help="a study's YAML file to run, or the word report")
    study.add_argument("folders", type=Path, nargs="*", metavar="FOLDER", help="folders of studies, for the report")
    study.add_argument(
        "--out", type=Path, help="folder of the study (runs/study-NAME), or file of the report (report.md)"
    )
    study.add_argument("--workers", type=int, help="jobs at a time, one thread each (the number of cores)")
    study.add_argument(
        "--ray", metavar="ADDRESS", help="run on a Ray cluster: auto, or host:port (pip install qmimic[ray])"
    )
    add_json(study)
    study.set_defaults(run=_study, resumes=True)


def _study(options: argparse.Namespace) -> int:
    from qmimic.cli.output import Output

    out = Output(options)
    if options.what == "report":
        if not options.folders:
            raise InputError("Name the folders of the studies to report on, for example runs/study-order.")
        _report(out, options.folders, options.out or options.folders[0] / "report.md")
        return 0
    if options.folders:
        raise InputError(f"{options.folders[0]} is one argument too many; name only one study file.")
    return _run_study(options, out)


def _report(out: "Output", folders: list[Path], path: Path) -> None:
    from qmimic.cli.output import table
    from qmimic.study.report import as_json, report, short_table
    from qmimic.study.summary import orders, summarize, verdicts
    from qmimic.study.table import read_results, read_study

    report(folders, path)
    plain = []
    for folder in folders:
        study, results = read_study(folder), read_results(folder)
        arms = summarize(study, results)
        heads, rows = short_table(study, arms)
        done = sum(row["status"] == "done" for row in results)
        out.result(f"{study.name}: {done} of {len(results)} runs done.")
        title = "mAP@0.5 in %, ± standard error; differences with 95 % intervals"
        out.result(table(heads, rows, title, words=heads.index("\nn")))
        out.result(*(sentence.strip() for sentence in [*verdicts(study, arms), *orders(study, results)]))
        plain.append({**as_json(study, results), "folder": folder})
    out.result(f"Report: {path}")
    out.end({"report": path, "studies": plain})


def _run_study(options: argparse.Namespace, out: "Output") -> int:
    from qmimic.config import recipe_text
    from qmimic.study.cluster import Cluster
    from qmimic.study.schedule import Process, run_study
    from qmimic.study.spec import expand, load_study
    from qmimic.study.table import set_aside
    from qmimic.study.view import View

    if options.workers is not None and options.workers < 1:
        raise InputError(f"--workers {options.workers} would run nothing; give at least 1.")
    source = Path(options.what)
    study = load_study(source)
    folder = options.out or Path(f"runs/study-{study.name}")
    runs = expand(study, source, folder)
    out.detail(f"{len(runs)} runs in {folder}; the resolved recipe of the first:\n{recipe_text(runs[0].recipe)}")
    view = View(out.console, folder, quiet=out.quiet, each=out.verbose)
    with Cluster(options.ray) if options.ray else nullcontext() as cluster, view:
        workers = options.workers or (cluster.cores if cluster else os.cpu_count() or 1)
        jobs = run_study(study, runs, folder, workers, view.show, cluster.start if cluster else Process)
    failed = [job for job in jobs if job.status == "failed"]
    for job in failed:
        out.result(f"failed: {job.kind} {job.id}: {job.error}")
    if aside := set_aside(folder):
        out.result(
            f"{aside} finished jobs in {folder} belong to no run of this study any more; they are kept, and count "
            "again when their arm, setting or seed comes back."
        )
    _report(out, [folder], folder / "report.md")
    return 1 if failed else 0
