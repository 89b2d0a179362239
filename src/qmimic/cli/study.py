"""`qmimic study`: many runs side by side, and their report."""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

from qmimic.cli.grammar import Commands
from qmimic.errors import InputError


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
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
    study.set_defaults(run=_study, resumes=True)


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
