"""`qmimic bench`: what deployed files cost on this machine."""

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from qmimic.cli.grammar import Commands, add_json
from qmimic.errors import InputError


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    bench = commands.add_parser("bench", help="time deployed files on this machine, beside any other ONNX files")
    bench.add_argument("files", type=Path, nargs="+", help="deployed files, folders of them, or zoo:NAME")
    bench.add_argument("--against", type=Path, nargs="*", default=[], help="other files for the same run")
    bench.add_argument("--threads", type=int, nargs="+", default=[1])
    bench.add_argument("--rounds", type=int, default=100, help="how often each file runs")
    add_json(bench)
    bench.set_defaults(run=_bench)


def _bench(options: argparse.Namespace) -> int:
    from rich.progress import Progress

    from qmimic.bench.measure import files_of, measure
    from qmimic.cli.output import Output, table

    if min(options.threads) < 1 or options.rounds < 1:
        raise InputError("--threads and --rounds need 1 or more.")
    files = files_of([*options.files, *options.against])
    out = Output(options)
    hidden = out.quiet or not out.console.is_terminal
    with Progress(console=out.console, transient=True, disable=hidden) as bar:
        task = bar.add_task("rounds", total=options.rounds * len(options.threads))
        costs = measure(files, options.threads, options.rounds, watch=lambda done: bar.update(task, completed=done))
    heads: tuple[str, ...] = (
        "file",
        "\nthr.",
        "p50\nms",
        "p95\nms",
        "ms/\nMpx",
        "\n1/s",
        "load\nms",
        "peak\nMB",
        "\nkB",
        "\nMMACs",
    )
    arenas = any(one.arena for one in costs)
    heads = (*heads, "arena\nkB") if arenas else heads
    names = Counter(path.name for path in files)
    rows = []
    for one in costs:
        times = (f"{one.p50:.2f}", f"{one.p95:.2f}", f"{one.per_megapixel:.1f}", f"{one.per_second:.0f}")
        rest = (f"{one.load:.0f}", f"{one.peak:.0f}", f"{one.kilobytes:.0f}")
        macs = f"{one.macs / 1e6:.1f}" if one.macs else "-"
        name = str(one.path) if names[one.path.name] > 1 else one.path.name
        arena = (f"{one.arena:.0f}" if one.arena else "-",) if arenas else ()
        rows.append((name, str(one.threads), *times, *rest, macs, *arena))
    own = [one for one in costs if one.macs is not None]
    best = min((one for one in own if one.proved), key=lambda one: one.p50, default=None)
    said = []
    if best and len(own) > 1:
        time = f"{best.p50:.2f} ms, {best.threads} thread(s)"
        said.append(f"Of your files, {best.path.name} is the fastest here: {time}.")
    if unproved := dict.fromkeys(one.path.name for one in own if not one.proved):
        said.append(f"Without a proof, or changed since, and so not recommended: {', '.join(unproved)}.")
    out.result(table(heads, rows), *([" ".join(said)] if said else []))
    fastest = best.path if best else None
    out.end({"files": [{**asdict(one), "ms_per_mpx": one.per_megapixel} for one in costs], "fastest": fastest})
    return 0
