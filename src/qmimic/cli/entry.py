"""The console script: it finds the command, runs it, and says in a sentence what went wrong."""

import argparse
import io
import signal
import sys
from collections.abc import Sequence

from qmimic.cli import bench, cost, data, evaluate, export, fit, predict, serve, study, train
from qmimic.cli.grammar import Parser
from qmimic.errors import InputError
from qmimic.memory import is_lack_of_memory

EXIT_BAD_INPUT = 2
EXTRAS = {"fastapi": "serve", "starlette": "serve", "uvicorn": "serve"}  # a missing package's extra; others: train
COMMANDS = (data, train, cost, study, evaluate, export, bench, fit, predict, serve)  # in the order of `qmimic --help`


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the console script of the package.

    Returns:
        0; 1 if `data check` found something to mend; 2 after bad input or Ctrl-C, with one sentence on stderr.
    """
    goes_on = ""
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be printable
        options = parser().parse_args(arguments)
        if options.resumes:
            goes_on = "; the last checkpoint is kept, the same command goes on from it"
        code: int = options.run(options)
        print(end="", flush=True)  # what cannot be written is to fail here
        return code
    except InputError as error:
        _complain(str(error))
    except KeyboardInterrupt:
        _complain(f"interrupted{goes_on}.")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("qmimic"):
            raise
        extra = EXTRAS.get((error.name or "").partition(".")[0], "train")
        _complain(f"{error.name} is not installed, which this command needs: pip install 'qmimic[{extra}]'.")
    except BrokenPipeError:  # the reader of our output has gone
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        sys.stderr.close()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _complain(f"{where}{error.strerror or error}; check the path, its permissions and the disk.")
    except (MemoryError, RuntimeError) as error:
        from qmimic.processes import is_loss_of_process  # torch is here by now, else nothing raised this

        if is_lack_of_memory(error):
            _complain(
                "there is not enough memory; lower batch_size, data.size or the networks' widths, or close programs."
            )
        elif is_loss_of_process(error):
            _complain(f"another process of this run has gone, see what it said{goes_on}.")
        else:
            raise
    return EXIT_BAD_INPUT


def _complain(sentence: str) -> None:
    # Names of files may hold line breaks, and a complaint is one line.
    print(f"qmimic: {' '.join(sentence.splitlines())}", file=sys.stderr)


def parser() -> argparse.ArgumentParser:
    """The command line's grammar."""
    top = Parser(prog="qmimic", description="Very tiny object detectors by quantization mimic.")
    top.set_defaults(resumes=False)
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return top
