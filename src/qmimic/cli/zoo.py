"""`qmimic zoo`: the trained students that come with the package."""

import argparse

from qmimic.cli.grammar import Commands, add_json


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    zoo = commands.add_parser("zoo", help="list the trained students that come with qmimic, and their cards")
    zoo.add_argument("name", nargs="?", help="a student, such as pcb or zoo:pcb, to show its whole card")
    add_json(zoo)
    zoo.set_defaults(run=_zoo)


def _zoo(options: argparse.Namespace) -> int:
    from dataclasses import asdict

    from qmimic.cli.output import Output, table
    from qmimic.tables import look_up
    from qmimic.zoo import PREFIX, cards

    out, found = Output(options), cards()
    if options.name is not None:
        name = options.name.removeprefix(PREFIX)
        card = asdict(look_up(found, name, "student of the zoo"))
        out.result(*(f"{key}: {_words(value)}" for key, value in card.items()))
        out.end({"name": name, **card})
        return 0
    rows = [
        (
            f"{PREFIX}{name}",
            one.about,
            f"{one.size[0]}x{one.size[1]}",
            f"{100 * one.map50:.1f}\n{100 * one.low:.1f}-{100 * one.high:.1f}",
            f"{100 * sum(one.map50_of_seeds) / len(one.seeds):.1f}\n{len(one.seeds)}",
            f"{one.parameters:,}",
            f"{one.bytes / 1000:.0f}",
            f"{one.milliseconds:.1f}",
        )
        for name, one in found.items()
    ]
    out.result(
        table(("student", "finds", "pixels", "mAP@0.5\n95 %", "mean\nseeds", "weights", "kB", "ms"), rows, words=2),
        "int8 files, measured on their val splits: the one that ships, with an interval over val's pictures, and the "
        "mean of all seeds. `qmimic zoo NAME` shows a card, `qmimic predict zoo:NAME picture.png` tries it out.",
    )
    out.end({"students": {name: asdict(one) for name, one in found.items()}})
    return 0


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {one}" for key, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
