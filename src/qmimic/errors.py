"""The one exception that a user is meant to read, and what a user is told without one."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def printable(text: str) -> str:
    """A text for a terminal: signs that do something there, such as escape sequences and marks that turn the direction
    of writing, are shown by their codes; line breaks stay. Names of a stranger's files and classes may hold any."""
    if text.isprintable():
        return text
    return "".join(s if s.isprintable() or s == "\n" else s.encode("unicode_escape").decode() for s in text)


def single_line(text: str) -> str:
    """The same in one line."""
    return printable(" ".join(text.splitlines()))


class InputError(Exception):
    """Bad input: one sentence that names the culprit and the fix.

    The command line prints it and exits with code 2, without a traceback.
    """


class Notice(UserWarning):
    """One sentence for the user: what was done is not quite what was asked for."""


@contextmanager
def notices_said() -> Iterator[None]:
    """Print each different notice once, as a line on stderr; other warnings as ever."""
    with warnings.catch_warnings():
        usual, said = warnings.showwarning, set[str]()

        def show(message: Warning | str, category: type[Warning], *place: object) -> None:
            if not issubclass(category, Notice):
                usual(message, category, *place)  # type: ignore[arg-type]
            elif str(message) not in said:
                said.add(str(message))
                print(f"qmimic: {single_line(str(message))}", file=sys.stderr)

        warnings.showwarning = show  # type: ignore[assignment]
        warnings.simplefilter("always", Notice)
        yield
