"""The console script: finds the command, runs it, and says in one sentence what went wrong."""

import argparse
import io
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from importlib.metadata import version

from qmimic.cli import (
    bench,
    completion,
    cost,
    data,
    doctor,
    evaluate,
    export,
    fit,
    predict,
    report,
    runs,
    serve,
    start,
    study,
    train,
    zoo,
)
from qmimic.cli.grammar import QUIET, USUAL, VERBOSE, Parser
from qmimic.errors import InputError, notices_said, single_line
from qmimic.extras import extra_of, install
from qmimic.run.memory import is_lack_of_memory

EXIT_BAD_INPUT, EXIT_SIGNAL = 2, 128
STOPS = (signal.SIGTERM, signal.SIGHUP)  # polite requests to end, besides Ctrl-C
# In the order of `qmimic --help`, which is the order of work.
COMMANDS = (
    data,
    train,
    evaluate,
    predict,
    zoo,
    report,
    serve,
    export,
    bench,
    fit,
    study,
    cost,
    runs,
    doctor,
    completion,
)


class _Stopped(KeyboardInterrupt):  # so that code that cleans up after Ctrl-C also does after these
    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = signal.Signals(number)


def _stop(number: int, _: object) -> None:
    raise _Stopped(number)


def _heed(handler: "Callable[[int, object], None] | signal.Handlers") -> None:
    """Let signals end this process as Ctrl-C does, or by default; signals that are ignored stay ignored."""
    if threading.current_thread() is threading.main_thread():
        for number in STOPS:
            if signal.getsignal(number) in (signal.SIG_DFL, _stop):
                signal.signal(number, handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command: the package's console script. Without arguments, say how to start.

    Returns:
        0; 1 if `data check` or `doctor` found something to fix; 2 after bad input, 128 + n after a signal such as
        Ctrl-C, with one sentence on stderr.
    """
    goes_on, loudness, began = "", USUAL, time.monotonic()
    # Waiting torch threads should sleep: on a busy machine, two spinning threads are a hundred times slower than one.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        _heed(_stop)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be printable
        if completion.asked():
            completion.answer(parser())
        if not (sys.argv[1:] if arguments is None else arguments):
            print(start.text())
            return 0
        options = _parsed(arguments)
        loudness = options.loudness
        if options.resumes:
            goes_on = "; the last checkpoint is kept, and the same command continues from it"
        with notices_said():
            if loudness != USUAL:
                warnings.simplefilter("ignore" if loudness == QUIET else "default")
            warnings.filterwarnings("ignore", module=r"PIL\.")  # we report what is wrong with a picture
            code: int = options.run(options)
        print(end="", flush=True)  # failures to write the output should surface here
        if loudness == VERBOSE:
            print(f"qmimic: {time.monotonic() - began:.1f} s in all.", file=sys.stderr)
        return code
    except KeyboardInterrupt as error:
        number = error.number if isinstance(error, _Stopped) else signal.SIGINT
        _complain(f"{'interrupted' if number == signal.SIGINT else f'stopped by {number.name}'}{goes_on}.")
        return EXIT_SIGNAL + number
    except BrokenPipeError:  # the reader of our output is gone
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        sys.stderr.close()
    except Exception as error:
        said = _explained(error, goes_on)
        if said is None:
            raise
        if isinstance(error, InputError) and loudness == VERBOSE:
            traceback.print_exception(error)
        _complain(said)
    finally:
        _heed(signal.SIG_DFL)
    return EXIT_BAD_INPUT


def _explained(error: Exception, goes_on: str) -> str | None:
    """An exception as a sentence for the user; None for a bug."""
    if isinstance(error, InputError):
        return str(error)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("qmimic"):
        name = (error.name or "").partition(".")[0]
        return f"{name} is needed by this command but is not installed: {install(extra_of(name))}."
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror or error}; check the path, its permissions and the disk."
    if isinstance(error, MemoryError | RuntimeError):
        from qmimic.processes import is_loss_of_process  # torch is imported already, or nothing would have raised this

        if is_lack_of_memory(error):
            return "there is not enough memory; lower batch_size, data.size or the networks' widths, or close programs."
        if is_loss_of_process(error):
            return f"another process of this run has ended (see its output){goes_on}."
    return None


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    grammar = parser()
    options, rest = grammar.parse_known_args(arguments)
    # argparse accepts no overrides after an option that follows earlier ones.
    late = [one for one in rest if "=" in one and not one.startswith("-")] if "overrides" in options else []
    unknown = [one for one in rest if one not in late]
    if unknown:
        grammar.error(f"unrecognized arguments: {' '.join(unknown)}")
    if late:
        options.overrides = [*options.overrides, *late]
    return options


def _complain(sentence: str) -> None:
    # File names may hold line breaks, but a complaint is one line.
    print(f"qmimic: {single_line(sentence)}", file=sys.stderr)


def parser() -> Parser:
    """The command line's grammar."""
    top = Parser(prog="qmimic", description="Very tiny object detectors by quantization mimic.")
    top.add_argument("--version", action="version", version=f"qmimic {version('qmimic')}")
    top.set_defaults(resumes=False, loudness=USUAL)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top
