"""The memory that a microcontroller needs for a `.tflite`: TensorFlow Lite Micro's arena, by its own count."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from qmimic.errors import InputError

SUFFIX = ".tflite"
LARGEST = 64 << 20  # bytes; more than any microcontroller has
SECONDS = 120
SCRIPT = (
    "import sys; from tflite_micro import runtime\n"
    "runtime.Interpreter.from_bytes(open(sys.argv[1], 'rb').read(), arena_size=int(sys.argv[2])).print_allocations()"
)
TOTAL = re.compile(r"Arena allocation total (\d+) bytes")


def can_measure(path: Path) -> bool:
    """Whether a file has an arena, and the interpreter that measures it is installed."""
    return path.suffix == SUFFIX and importlib.util.find_spec("tflite_micro") is not None


def arena_bytes(path: Path) -> int:
    """Bytes of working memory, for the maps and the interpreter's own tables; the weights are in flash.

    The interpreter runs in a separate process, which a damaged model may crash. It is a desktop build: pointers have
    eight bytes here and four on a microcontroller, so the figure is slightly above what a microcontroller needs.

    Raises:
        InputError: the interpreter is not installed, cannot load the model, or does not report its memory.
    """
    if importlib.util.find_spec("tflite_micro") is None:
        raise InputError(
            "TensorFlow Lite Micro is not installed, so the arena is unknown: pip install 'qmimic[micro]'."
        )
    command = [sys.executable, "-c", SCRIPT, str(path.absolute()), str(LARGEST)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise InputError(f"TensorFlow Lite Micro takes over {SECONDS} s to load {path}; export it again.") from error
    said = done.stdout + done.stderr
    total = TOTAL.search(said)
    if done.returncode or total is None:
        reason = next((line for line in said.strip().splitlines()[::-1] if line.strip()), "no reason given")
        raise InputError(f"TensorFlow Lite Micro cannot load {path} ({reason[:160]}); export it again.")
    return int(total[1])
