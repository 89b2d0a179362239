"""`qmimic report`: the results of a run as a web page."""

import argparse
from pathlib import Path

from qmimic.cli.grammar import Commands


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    report = commands.add_parser("report", help="write an HTML page on a finished run, or on several side by side")
    report.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders that `qmimic train` wrote")
    report.add_argument(
        "--out", type=Path, help="the HTML file (report.html, for one run in its folder, for several here)"
    )
    report.add_argument("--json", action="store_true", help="print one JSON object last")
    report.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> int:
    from qmimic.cli.output import Output
    from qmimic.report.compare import compare
    from qmimic.report.page import write_report

    out = Output(options)
    if len(options.runs) == 1:
        path = write_report(options.runs[0], options.out, out.say)
    else:
        path = compare(options.runs, options.out)
    out.result(f"Report: {path}")
    out.end({"report": path, "runs": [str(run) for run in options.runs]})
    return 0
