"""`qmimic runs`: what has been trained, its progress and disk use; and `qmimic runs clean`."""

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from qmimic.cli.completion import complete, runs_in
from qmimic.cli.grammar import Commands, add_json
from qmimic.errors import InputError

if TYPE_CHECKING:
    from qmimic.cli.output import Output

EPILOG = """`qmimic runs` lists runs/, `qmimic runs FOLDER` another folder, or one run.
`qmimic runs clean` deletes what is made again when needed (--bank and
--pixels), in all runs or in those named. It lists what will go and asks first.
A run in progress is left alone."""


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    runs = commands.add_parser(
        "runs",
        help="list runs, their progress and disk use; clean up",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = runs.add_argument(
        "what", nargs="*", metavar="FOLDER | clean NAME", help="the folder to list (runs/), or the runs to clean"
    )
    complete(what, lambda prefix: [*(["clean"] if "clean".startswith(prefix) else []), *runs_in(prefix)])
    runs.add_argument("--in", dest="folder", type=Path, default=Path("runs"), help="clean: folder of the runs (runs/)")
    runs.add_argument("--bank", action="store_true", help="clean: teacher banks")
    runs.add_argument("--pixels", action="store_true", help="clean: decoded images")
    runs.add_argument(
        "--stages",
        action="store_true",
        help="clean: checkpoints and copies of finished runs; reports still work, training would start at step 0",
    )
    runs.add_argument("--all", action="store_true", help="clean: everything in the named runs")
    runs.add_argument("--yes", action="store_true", help="clean: do not ask")
    add_json(runs)
    runs.set_defaults(run=_runs)


def _runs(options: argparse.Namespace) -> int:
    from qmimic.cli.output import Output

    out = Output(options)
    flags = [flag for flag in ("bank", "pixels", "stages", "all", "yes") if getattr(options, flag)]
    if options.what[:1] == ["clean"]:
        return _clean(out, options.folder, options.what[1:], flags)
    if flags:
        raise InputError(f"--{flags[0]} is only for `qmimic runs clean`.")
    if len(options.what) > 1:
        raise InputError(f"{options.what[1]} is one argument too many; name only one folder.")
    return _list(out, Path(options.what[0]) if options.what else options.folder)


def _list(out: "Output", folder: Path) -> int:
    from qmimic.cli.output import table
    from qmimic.run.listing import list_runs

    found = list_runs(folder)
    rows = []
    for one in found:
        status = f"{one.status}{': ' if one.status == 'failed' else ', '}{one.detail}" if one.detail else one.status
        score = "" if one.best is None else f"{100 * one.best:.1f} {one.network.replace('_', ' ')}"
        disk = (size(number) for number in (one.disk.stages, one.disk.bank, one.disk.pixels, one.disk.whole))
        rows.append((one.name, status, score, _when(one.changed), *disk))
    heads = ("run", "status", "best mAP", "changed", "stages", "bank", "pixels", "all")
    if found:
        out.result(table(heads, rows, words=3))
        out.say(f"{size(sum(one.disk.whole for one in found))} in all; `qmimic runs clean` deletes banks and pixels.")
    else:
        out.result(f"There are no runs in {folder}.")
    out.end({"folder": folder, "runs": [asdict(one) for one in found]})
    return 0


def _clean(out: "Output", folder: Path, names: list[str], flags: list[str]) -> int:
    from qmimic.run.cleaning import CACHES, PARTS, WHOLE, clean, plan_cleaning

    parts = [part for part in PARTS if part in flags or (part == WHOLE and "all" in flags)] or list(CACHES)
    removals, stays = plan_cleaning(folder, names, parts)
    for sentence in stays:
        out.result(sentence)
    total = sum(one.bytes for one in removals)
    for one in removals:
        out.result(f"{size(one.bytes):>6}  {one.run} {one.part}")
    plain = {"removals": [asdict(one) for one in removals], "freed": 0}
    if not removals:
        out.result("There is nothing to remove.")
    elif "yes" not in flags and not _agreed(f"Remove these {size(total)}? [y/N] "):
        out.result("Nothing was removed.")
    else:
        plain["freed"] = clean(removals)
        out.result(f"{size(total)} freed.")
    out.end(plain)
    return 0


def _agreed(question: str) -> bool:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise InputError("There is no terminal to ask on, so nothing was removed; add --yes to remove without asking.")
    print(question, end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def size(number: float) -> str:
    """A readable number of bytes, in at most six characters."""
    for unit in ("B", "kB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"


def _when(seconds: float) -> str:
    then, now = time.localtime(seconds), time.localtime()
    return time.strftime("%H:%M" if then[:3] == now[:3] else "%d %b" if then[0] == now[0] else "%b %Y", then)
