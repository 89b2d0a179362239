"""A deployed file, loaded: from named arrays to named arrays, in any thread, copy or process."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from qmimic.errors import InputError
from qmimic.files import is_there, open_file
from qmimic.runtime.formats import Arrays, Input, Session, format_of


class Engine:
    """Runs a deployed file. Threads may share it; a copy, or one that was pickled, loads the file again.

    Args:
        path: of the file.
        threads: on which one run is computed.
        spin: whether waiting threads keep a core busy, which saves some microseconds per run.

    Attributes:
        inputs: by name.
        properties: that the file holds, as text.
        session: that runs it. Another session of the same file may replace it; copies and forks do not keep that one.

    Raises:
        InputError: there is no such file, or its engine is not installed or cannot run it.
    """

    inputs: Mapping[str, Input]
    properties: Mapping[str, str]

    def __init__(self, path: Path, threads: int = 1, spin: bool = False) -> None:
        if not isinstance(threads, int | np.integer) or threads < 1:
            raise InputError(f"{threads!r} is not a number of threads; give 1 or more.")
        self.path = Path(path).absolute()
        self._options = threads, spin
        self._open(path)

    def _open(self, path: Path) -> None:
        own = format_of(path)
        if not is_there(path):
            raise InputError(f"There is no file {path}; name a file that `qmimic export` wrote.")
        open_file(path).close()  # an engine would wait on a named pipe for ever
        self.session = own.open_file(path, *self._options)
        self._process = os.getpid()
        self.inputs, self.properties = self.session.inputs, self.session.properties

    def run(self, feeds: Arrays) -> Arrays:
        """Outputs by name, from inputs by name. A fork of the process that loaded the file first loads it again."""
        if self._process != os.getpid():
            _LEFT_BEHIND.append(self.session)
            self._open(self.path)
        return self.session.run(feeds)

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.path, *self._options, dict(self.properties))


_LEFT_BEHIND: list[Session] = []  # of a fork's parent: ending one would wait for threads that only the parent has


def _again(path: Path, threads: int, spin: bool, properties: Mapping[str, str]) -> Engine:
    """The engine of a file that must not have changed."""
    engine = Engine(path, threads, spin)
    if dict(engine.properties) != properties:
        raise InputError(f"{path} has changed since its detector was copied; load it again.")
    return engine
