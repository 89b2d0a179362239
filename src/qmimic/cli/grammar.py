"""What the commands' arguments have in common."""

import argparse
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn, TypeAlias

from qmimic.errors import InputError

OVERRIDES = "key.sub=value"
USUAL, QUIET, VERBOSE = "usual", "quiet", "verbose"
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"  # where a command adds its parser


class Parser(argparse.ArgumentParser):
    """Bad arguments are bad input like any other: one sentence, without the grammar above it.

    Every command, and `qmimic` before it, takes --quiet and --verbose.

    Args:
        more: the end of the help, made when somebody asks for it.
    """

    def __init__(self, *arguments: Any, more: Callable[[], str] | None = None, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._more = more
        loudness = self.add_mutually_exclusive_group()
        for flag, const, text in (
            ("-q", QUIET, "only the result and errors"),
            ("-v", VERBOSE, "also what is resolved, where time goes, and where an error came from"),
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
    """Choices that are the names of a table; it is imported when they are needed, for its libraries may be missing."""

    def __init__(self, table: Callable[[], Iterable[str]]) -> None:
        self._table = table

    def __iter__(self) -> Iterator[str]:
        return iter(self._table())

    def __contains__(self, name: object) -> bool:
        return name in list(self)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add --json: one object is the last line of stdout."""
    parser.add_argument("--json", action="store_true", help="print one JSON object as the last line of stdout")


def targets(text: str) -> list[str]:
    """Names of formats to ship in, from `--to`. Raises InputError: one of them is unknown."""
    from qmimic.runtime.formats import FORMATS  # numpy is slow to import
    from qmimic.tables import look_up

    names = list(dict.fromkeys(text.split(",")))
    for name in names:
        look_up(FORMATS, name, "--to")
    return names
