"""The one exception meant for users to read, and notices that are not exceptions."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


def printable(text: str) -> str:
    """A text for a terminal: characters that act there (escape sequences, direction marks and the like) become their
    codes; line breaks stay. A stranger's file and class names may hold any of them."""
    if text.isprintable():
        return text
    return "".join(s if s.isprintable() or s == "\n" else s.encode("unicode_escape").decode() for s in text)


def single_line(text: str) -> str:
    """The same on one line."""
    return printable(" ".join(text.splitlines()))


class InputError(Exception):
    """Bad input: one sentence that names the culprit and the fix.

    The command line prints it and exits with code 2, without a traceback.
    """


class Notice(UserWarning):
    """One sentence for the user: what was done is not exactly what was asked for."""


@contextmanager
def notices_said() -> Iterator[None]:
    """Print each distinct notice once, as a line on stderr; other warnings as usual."""
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
