"""What a command shows: tables of 80 columns, progress unless it is quiet, and one JSON object for scripts."""

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.table import Table
from rich.text import Text

from qmimic.cli.grammar import QUIET, USUAL, VERBOSE
from qmimic.errors import printable
from qmimic.training.progress import Bar, Screen, Silent


class Output:
    """Where a command prints.

    Args:
        options: of the command line; with `json`, stdout holds only the object.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        loudness = getattr(options, "loudness", USUAL)
        self.quiet, self.verbose = loudness == QUIET, loudness == VERBOSE
        self.json: bool = options.json
        self.console = Screen(stderr=self.json)

    @contextmanager
    def watching(self) -> Iterator[Bar | Silent]:
        """A watcher for progress."""
        if self.quiet:
            yield Silent()
            return
        with Bar(self.console, timed=self.verbose) as bar:
            yield bar

    def detail(self, text: str) -> None:
        """A text for --verbose only."""
        if self.verbose:
            self._print(text)

    def say(self, text: str) -> None:
        """A sentence that is not the result."""
        if not self.quiet:
            self._print(text)

    def result(self, *shown: Table | str) -> None:
        """The result that the command was called for."""
        for one in () if self.json and self.quiet else shown:
            if isinstance(one, str):
                self._print(one)
            else:
                self.console.print(one)

    def end(self, plain: dict[str, Any]) -> None:
        """The object for scripts, last."""
        if self.json:
            print(json.dumps(plain, default=str))

    def _print(self, text: str) -> None:
        # On a terminal, sentences wrap at words; elsewhere each is one line.
        self.console.print(printable(text), highlight=False, soft_wrap=not self.console.is_terminal, markup=False)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], title: str = "", words: int = 1) -> Table:
    """A table without rules for 80 columns: the first `words` columns are text and wrap, the others are numbers."""
    made = Table(
        box=None, padding=(0, 2, 0, 0), title=Text(title) if title else None, title_justify="left", pad_edge=False
    )
    for place, head in enumerate(heads):
        number = place >= words
        made.add_column(Text(head), justify="right" if number else "left", no_wrap=number, overflow="fold")
    for row in rows:
        made.add_row(*map(Text, map(printable, row)))  # text from data is never markup
    return made
