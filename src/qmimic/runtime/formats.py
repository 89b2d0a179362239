"""The formats in which detectors ship: what each must provide, and their table, the only place for suffixes.

A format is one line in the table and two halves, in one module or two. The half that runs a file needs only numpy and
its engine; the half that writes it needs torch. Each is imported only when it is used.

The half that runs has
    open_file(path, threads, spin) -> Session     InputError: the engine is not installed, or cannot run the file
    checksum(path) -> str                         of the graph and its weights, but not of its properties
The half that writes has
    write(exported, path) -> None                 see `qmimic.ship.onnx_file.Exported`; path has the first suffix
    describe(path, properties) -> None            put properties into such a file; its checksum stays the same
    own_session(path, session) -> Session | None  of formats for other places: a file run by that place's engine, if it
                                                  is installed; `session` is what the other half opened
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from textwrap import indent
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmimic.errors import InputError
from qmimic.extras import extra_of, install
from qmimic.files import OTHER_KIND, is_there, what_is
from qmimic.tables import Table, imported
from qmimic.zoo import is_of_zoo

Arrays = Mapping[str, NDArray[Any]]
TRIAL_SECONDS = 30  # for a separate process to run a file that may crash it
SAID = 150  # characters of the beginning and of the end of an engine's message
UNKNOWN_OPERATOR = (  # ONNX Runtime's words
    "is not a registered function/op",
    "No Op registered for",
    "Could not find an implementation for",
)
ALIVE = "alive"  # the last word of such a process
_SURVIVED: set[bytes] = set()  # contents of files that crashed none


@dataclass(frozen=True)
class Input:
    """What a graph takes: a shape, None for free axes, and a type, None for one that numpy lacks."""

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any] | None

    def __str__(self) -> str:
        """Readable: float32 [1, 3, ?, ?]."""
        return f"{self.dtype or 'other'} [{', '.join('?' if side is None else str(side) for side in self.shape)}]"


@dataclass(frozen=True)
class Session:
    """A file that its engine has loaded.

    Attributes:
        run: from inputs to outputs, by name; several threads may call it at once, and the caller owns the results.
        inputs: by name.
        properties: that the file holds, as text.
        engine: what runs it, in words, where there is a choice.
        shapes: of its outputs, by name, as far as the file says them; empty where its engine does not tell.
    """

    run: Callable[[Arrays], Arrays]
    inputs: Mapping[str, Input]
    properties: Mapping[str, str]
    engine: str = ""
    shapes: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A deployment format.

    Attributes:
        engine: that runs its files, by its usual name.
        suffixes: of its files; the first is that of the file that a runtime opens. No two formats share one, so that
            their files can lie in one folder; the longest matching suffix decides a file's format.
        runs, writes: names of the modules of its two halves.
        integers: whether it can hold a detector on integer grids.
        by_places: it holds no more than a detector's outputs at every place (`Detector.place_outputs`).
        one_picture: whether its files take one picture at a time.
        needs: "module:function" that raises InputError if something to write a detector (`Exported`) is not there.
        elsewhere: its files do not run in this machine's Python: they are proved here by an engine with the same
            operators, and are neither timed nor served.
        content: what `qmimic.files.what_is` calls its files; empty: their first bytes do not identify them.
        package: of the engine, by the name that Python imports; empty: which one is needed depends on the detector.
    """

    engine: str
    suffixes: tuple[str, ...]
    runs: str
    writes: str
    integers: bool = True
    by_places: bool = False
    one_picture: bool = False
    needs: str = ""
    elsewhere: bool = False
    content: str = ""
    package: str = ""

    def require_engine(self) -> None:
        """Raises: InputError: the engine is not installed, as far as that is known without a detector."""
        if self.package and find_spec(self.package) is None:
            raise InputError(f"{self.engine} is not installed: {install(extra_of(self.package))}.")

    def require_detector(self, exported: Any) -> None:
        """Tell what is wrong before anything is written.

        Args:
            exported: a detector on its way into files, `qmimic.ship.onnx_file.Exported`.

        Raises:
            InputError: the format cannot hold it, or something that writing it needs is not there.
        """
        if self.by_places and not exported.detector.place_strides:
            raise InputError(
                f"{self.engine}'s {self.suffixes[0]} holds detectors that say at every place of their maps what lies "
                f"there, and {exported.detector.spec.architecture} does not; train one with "
                "detector.architecture=one_stage, or export to another format."
            )
        if self.one_picture and exported.batch != 1:
            raise InputError(f"A {self.suffixes[0]} file takes one picture at a time; leave --batch at 1.")
        if self.needs:
            imported(self.needs)(exported)

    def open_file(self, path: Path, threads: int, spin: bool) -> Session:
        """Load a file. Raises InputError: the engine is not installed, or cannot run it."""
        session: Session = import_module(self.runs).open_file(path, threads, spin)
        return session

    def checksum(self, path: Path) -> str:
        """Checksum of the graph and its weights, not of the properties."""
        value: str = import_module(self.runs).checksum(path)
        return value

    def write(self, exported: Any, path: Path) -> None:
        """Write a detector (`qmimic.ship.onnx_file.Exported`). Raises InputError: the format cannot hold it."""
        self.require_detector(exported)
        import_module(self.writes).write(exported, path)

    def describe(self, path: Path, properties: Mapping[str, str]) -> None:
        """Put properties into a file."""
        import_module(self.writes).describe(path, properties)

    def own_session(self, path: Path, session: Session) -> Session | None:
        """A file that was written here for another place, run by that place's engine if it is installed."""
        found: Session | None = import_module(self.writes).own_session(path, session)
        return found

    def files(self, path: Path) -> list[Path]:
        """The files that make up one of this format, `path` first."""
        stem = path.name.removesuffix(self.suffixes[0])
        return [path.with_name(stem + suffix) for suffix in self.suffixes]


FORMATS: Table[Format] = Table(
    "--to",
    {
        "onnx": Format(
            "ONNX Runtime",
            (".onnx",),
            "qmimic.runtime.onnx_engine",
            "qmimic.ship.onnx_file",
            content="an ONNX model",
            package="onnxruntime",
        ),
        "openvino": Format(
            "OpenVINO",
            (".xml", ".bin"),
            "qmimic.runtime.openvino_engine",
            "qmimic.ship.openvino_file",
            content="an OpenVINO model",
            package="openvino",
        ),
        "executorch": Format(
            "ExecuTorch",
            (".pte", ".json"),
            "qmimic.runtime.executorch_engine",
            "qmimic.ship.executorch_file",
            integers=False,
            one_picture=True,
            content="an ExecuTorch program",
            package="executorch",
        ),
        "litert": Format(
            "LiteRT",
            (".tflite",),
            "qmimic.runtime.litert_engine",
            "qmimic.ship.litert_file",
            by_places=True,
            one_picture=True,
            content="a TensorFlow Lite model",
            package="ai_edge_litert",
        ),
        "ncnn": Format(
            "ncnn",
            (".ncnn.param", ".ncnn.bin", ".ncnn.json"),
            "qmimic.runtime.ncnn_engine",
            "qmimic.ship.ncnn_file",
            by_places=True,
            one_picture=True,
            package="ncnn",
        ),
        "web": Format(
            "a browser",
            (".web.html",),
            "qmimic.runtime.web_engine",
            "qmimic.ship.web_file",
            one_picture=True,
            needs="qmimic.ship.web_file:engine_for",
            elsewhere=True,
        ),
    },
)


def suffixes() -> list[str]:
    """Suffixes of the files that a runtime opens, for all formats."""
    return [one.suffixes[0] for one in FORMATS.values()]


def can_be_opened(path: Path) -> bool:
    """Whether a file, by its name, is one that this machine can run."""
    return path.name.endswith(tuple(one.suffixes[0] for one in FORMATS.values() if not one.elsewhere))


def is_deployed(path: Path) -> bool:
    """Whether a file is a deployed detector or a part of one, by its name or first bytes; all of the zoo's are."""
    named = is_of_zoo(path) or _ending(path) is not None
    return named or what_is(path) in (one.content for one in FORMATS.values())


def format_of(path: Path) -> Format:
    """The format of a file, by its suffix. Raises InputError: no format has that suffix."""
    suffix, kind = _ending(path) or ("", None)
    if kind is not None and suffix == kind.suffixes[0]:
        return kind
    if kind is not None:
        first = path.with_name(path.name.removesuffix(suffix) + kind.suffixes[0])
        if is_there(first):
            raise InputError(f"{path} belongs to {first.name}; name that file.")
    content = what_is(path)
    ending = next((one.suffixes[0] for one in FORMATS.values() if one.content == content), None)
    if ending:
        raise InputError(f"{path} is {content}, but its name does not end in {ending}; rename it.")
    raise InputError(f"{path} is {content}, not a deployed detector; name one of {' '.join(suffixes())}.")


def _ending(path: Path) -> tuple[str, Format] | None:
    """The longest suffix of a file that belongs to a format, and that format."""
    fitting = [(suffix, one) for one in FORMATS.values() for suffix in one.suffixes if path.name.endswith(suffix)]
    return max(fitting, key=lambda pair: len(pair[0]), default=None)


def refuse_other_kinds(path: Path) -> None:
    """Check that a file is what its name says. Raises InputError: its first bytes say otherwise."""
    kind, meant = what_is(path), format_of(path).content
    if meant and kind not in (meant, OTHER_KIND):
        raise InputError(f"{path} is {kind}, not {meant}; name a file that `qmimic export` wrote.")


def bytes_of(path: Path) -> int:
    """Bytes of a deployed file, including those that belong to it."""
    return sum(part.stat().st_size for part in format_of(path).files(path) if part.is_file())


def require_survival(path: Path, engine: str, script: str, arguments: Sequence[str], *contents: bytes) -> None:
    """Run a script in a separate process, for engines that a damaged file can crash.

    Each content is tried once per process, and never where there is no Python interpreter to start, as in an
    application that was frozen into one file.

    Args:
        path: of the file.
        engine: its name.
        script: Python code. Exceptions do not matter here: the engine raises them again.
        arguments: for `sys.argv`.
        contents: of the file and of those that belong to it; the script reads the first from its standard input.

    Raises:
        InputError: the process crashed, or did not end in time.
    """
    digest = b"".join(hashlib.sha256(one).digest() for one in contents)
    if digest in _SURVIVED or getattr(sys, "frozen", False) or not sys.executable:
        return
    whole = f"try:\n{indent(script, ' ')}\nexcept Exception: pass\nprint('{ALIVE}')"
    command = [sys.executable, "-c", whole, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            command, input=contents[0], capture_output=True, env=environment, timeout=TRIAL_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InputError(f"{engine} does not finish running {path}; copy or export it again.") from error
    if not done.stdout.strip().endswith(ALIVE.encode()):
        raise InputError(f"{path} is damaged and crashes {engine}; copy or export it again.")
    _SURVIVED.add(digest)


def cannot_run(path: Path, engine: str, package: str, error: Exception) -> InputError:
    """The error for a file that an engine refuses. Raises: as `refuse_other_kinds`."""
    refuse_other_kinds(path)
    reason = " ".join(str(error).split())
    # Engines name the file and the operator first and say last what is wrong with it.
    said = reason if len(reason) <= 2 * SAID else f"{reason[:SAID]} .. {reason[-SAID:]}"
    advice = f"copy or export it again, or upgrade {package}"
    if any(sign in reason for sign in UNKNOWN_OPERATOR):
        advice = (
            f"{engine} lacks one of its operators, or has it for other types: export it in float32, without those of "
            f"other engines, or upgrade {package}"
        )
    return InputError(f"{path} cannot be run by {engine} ({said}); {advice}.")
