"""`qmimic bench`: what deployed files cost on this machine."""

import argparse
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from qmimic.cli.grammar import Commands
from qmimic.errors import InputError


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    bench = commands.add_parser("bench", help="time deployed files on this machine, beside any other ONNX files")
    bench.add_argument("files", type=Path, nargs="+", help=".onnx or .xml files, or folders of them")
    bench.add_argument("--against", type=Path, nargs="*", default=[], help="other files for the same run")
    bench.add_argument("--threads", type=int, nargs="+", default=[1])
    bench.add_argument("--rounds", type=int, default=100, help="how often each file is run")
    bench.add_argument("--json", action="store_true", help="print one JSON object a file instead of a table")
    bench.set_defaults(run=_bench)


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
