"""Looking a name up in the one table that knows it."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TypeVar

from qmimic.errors import InputError

Entry = TypeVar("Entry")


def look_up(table: Mapping[str, Entry], name: str, what: str) -> Entry:
    """The entry of a name.

    Args:
        table: by name.
        name: as a person wrote it.
        what: it names, for the message: "backbone", "mimic.distance".

    Raises:
        InputError: the table does not have the name; the message gives the nearest one and all others.
    """
    if name in table:
        return table[name]
    near = get_close_matches(name, table, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"Unknown {what} {name[:100]!r}; {hint}Known: {', '.join(table)}.")
