"""What the commands' parsers have in common."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeAlias

from qmimic.errors import InputError

OVERRIDES = "key.sub=value"
USUAL, QUIET, VERBOSE = "usual", "quiet", "verbose"
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # where a command adds its parser


class Parser(argparse.ArgumentParser):
    """A parser that reports bad arguments like any other bad input: in one sentence, without the usage above it.

    Every command, and `qmimic` before it, takes --quiet and --verbose.

    Args:
        more: makes the end of the help, only when it is printed.
    """

    def __init__(self, *arguments: Any, more: Callable[[], str] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._more = more
        loudness = self.add_mutually_exclusive_group()
        for flag, const, text in (
            ("-q", QUIET, "print only the result and errors"),
            ("-v", VERBOSE, "also print resolved settings, times, and the origin of errors"),
        ):
            loudness.add_argument(
                flag,
                f"--{const}",
                action="store_const",
                const=const,
                dest="loudness",
                default=argparse.SUPPRESS,
                help=text,
            )

    def error(self, message: str) -> NoReturn:
        """See `argparse`."""
        raise InputError(f"{message}; see `{self.prog} --help`.")

    def format_help(self) -> str:
        """See `argparse`."""
        return super().format_help() + (f"\n{self._more()}\n" if self._more else "")


class Names:
    """Choices that are the names of a table, which is imported only when needed: its libraries may be missing."""

    def __init__(self, table: Callable[[], Iterable[str]]) -> None:
        self._table = table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table())

    def __contains__(self, name: object) -> bool:
        return name in list(self)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json: the last line of stdout is one object."""
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")


def targets(text: str) -> list[str]:
    """Names of formats from `--to`. Raises InputError: one of them is unknown, or its engine is not installed."""
    from qmimic.runtime.formats import FORMATS  # numpy is slow to import
    from qmimic.tables import look_up

    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        look_up(FORMATS, name, "--to").require_engine()
    return names
