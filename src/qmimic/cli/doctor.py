"""`qmimic doctor`: what this machine and this installation can do."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from qmimic.cli.grammar import Commands, add_json

if TYPE_CHECKING:
    from qmimic.cli.installation import Diagnosis


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    doctor = commands.add_parser("doctor", help="what this machine and this installation can do, and what is missing")
    add_json(doctor)
    doctor.set_defaults(run=_doctor)


def _doctor(options: argparse.Namespace) -> int:
    from qmimic.cli.installation import examine

    found = examine(Path("runs"))
    if options.json:
        print(json.dumps({**asdict(found), "ok": not found.broken}, default=str))
    else:
        print("\n".join(_lines(found)))
    return int(bool(found.broken))


def _lines(found: "Diagnosis") -> list[str]:
    """Plain text of 80 columns: the library for tables may be missing."""
    from textwrap import wrap

    from qmimic.extras import install

    def entry(head: str, text: str) -> list[str]:
        return wrap(text, 80, initial_indent=f"{head:<12}", subsequent_indent=" " * 12, break_on_hyphens=False)

    gigabyte = 1e9
    allowed = f"{found.allowed:g} of {found.cores} available"
    torch = "" if found.threads is None else f"; torch uses {found.threads} threads"
    lines = [
        *entry("versions", ", ".join(f"{name} {own or 'missing'}" for name, own in found.versions.items())),
        *entry("system", found.system),
        *entry("processor", found.processor),
        *entry("cores", allowed + torch),
        *entry("features", ", ".join(found.features) or "not known"),
        *(line for sentence in found.follows for line in entry("", sentence)),
        *entry("GPU", ", ".join(found.gpus) or "none that torch sees"),
        *entry("memory", f"{found.memory / gigabyte:.1f} GB, {found.free_memory / gigabyte:.1f} GB free"),
        *entry("disk", f"{found.free_disk / gigabyte:.1f} GB free in {found.folder}"),
        "extras",
    ]
    for extra in found.extras:
        missing = [name for name, own in extra.packages.items() if own is None]
        if extra.name and not missing:
            lines.append(f"  {extra.name:<12}here")
        elif extra.name:
            lines.append(f"  {extra.name:<12}missing: {install(extra.name)}")
    for sentence in found.advice:
        lines += ["", *wrap(sentence, 80)]
    for sentence in found.broken:
        lines += ["", *wrap(f"Broken: {sentence}", 80, break_on_hyphens=False, break_long_words=False)]
    return lines if found.broken else [*lines, "", "Training works here."]
