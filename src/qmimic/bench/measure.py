"""What a deployed file costs on this machine: time, memory, size, arithmetic; for qmimic's files and any others."""

import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from qmimic.bench.arena import arena_bytes, can_measure
from qmimic.bench.timing import alternate
from qmimic.errors import InputError
from qmimic.runtime.engine import Engine
from qmimic.runtime.formats import Arrays, bytes_of, can_be_opened, format_of, suffixes
from qmimic.runtime.metadata import from_properties
from qmimic.zoo import DEPLOYED, located


@dataclass(frozen=True)
class Cost:
    """What a file costs.

    Attributes:
        path: of the file.
        threads: how many it ran with.
        p50, p95: milliseconds per picture; a file that takes several at once is run on that many.
        megapixels: of one input picture.
        load: milliseconds to load it.
        peak: largest resident memory, MB, of a separate process that loads and runs it, including the engine; 0 if not
            measured.
        kilobytes: size of the file, including a separate weights file.
        parameters, macs: as recorded in files that qmimic wrote; None for others.
        proved: qmimic wrote the file, it passed its proof, and it was not changed since.
        arena: kilobytes of working memory on a microcontroller; None if it was not measured, see `bench.arena`.
    """

    path: Path
    threads: int
    p50: float
    p95: float
    megapixels: float
    load: float
    peak: float
    kilobytes: float
    parameters: int | None
    macs: int | None
    proved: bool = False
    arena: float | None = None

    @property
    def per_second(self) -> float:
        """Pictures per second."""
        return 1000 / self.p50

    @property
    def per_megapixel(self) -> float:
        """Milliseconds per megapixel."""
        return self.p50 / self.megapixels


def measure(
    paths: Sequence[Path],
    threads: Sequence[int],
    rounds: int,
    memory: bool = True,
    watch: Callable[[int], None] = lambda _: None,
) -> list[Cost]:
    """Costs of files, run in turn, for each number of threads.

    Args:
        paths: deployed files, and ONNX files from elsewhere.
        threads: numbers of threads.
        rounds: how often each is run.
        memory: whether to measure memory too, which takes a second or two per file.
        watch: called with the number of rounds done.

    Raises:
        InputError: a file cannot be run.
    """
    peaks = {path: peak_of(path) if memory else 0.0 for path in paths}
    arenas = {path: arena_bytes(path) / 1000 for path in paths if memory and can_measure(path)}
    found = []
    for turn, count in enumerate(threads):
        engines, loads = {}, {}
        for path in paths:
            start = time.perf_counter()
            engines[path] = Engine(path, count, spin=True)
            loads[path] = 1000 * (time.perf_counter() - start)
        runs = {str(path): as_run(engine) for path, engine in engines.items()}
        seconds = alternate(runs, rounds, partial(_after, watch, turn * rounds))
        for path, engine in engines.items():
            own = 1000 * seconds[str(path)] / pictures(engine)
            p50, p95 = (float(np.percentile(own, share)) for share in (50, 95))
            kilobytes = bytes_of(path) / 1000
            pixels, said = megapixels(engine), _said(engine, path)
            costs = p50, p95, pixels, loads[path], peaks[path], kilobytes
            found.append(Cost(path, count, *costs, *said, arenas.get(path)))
    return found


def _after(watch: Callable[[int], None], before: int, done: int) -> None:
    watch(before + done)


def _said(engine: Engine, path: Path) -> tuple[int | None, int | None, bool]:
    """Parameters, multiply-accumulates and whether it passed its proof, if qmimic wrote the file."""
    try:
        metadata = from_properties(engine.properties, path)
        whole = from_properties(engine.properties, path, format_of(path).checksum(path))
    except InputError:
        return None, None, False
    return metadata.parameters, metadata.macs, bool(whole.parity)


def files_of(paths: Sequence[Path]) -> list[Path]:
    """All files to run: files as they are, students of the zoo, and those in folders.

    Raises:
        InputError: a folder holds no file to run.
    """
    found: list[Path] = []
    for path in (located(one, DEPLOYED) for one in paths):
        own = sorted(one for one in path.iterdir() if can_be_opened(one)) if path.is_dir() else [path]
        if not own:
            raise InputError(f"{path} holds no file to run; looked for {' '.join(suffixes())}.")
        found += own
    return list(dict.fromkeys(found))


def as_run(engine: Engine) -> Callable[[], object]:
    """A function without arguments that runs the engine once, on noise."""
    feeds = noise(engine)
    return lambda: engine.run(feeds)


def noise(engine: Engine) -> Arrays:
    """Inputs for an engine: random pixels; one image if the engine takes any number.

    Raises:
        InputError: an axis other than the first is free, so the intended size is unknown; or an input has a type that
            numpy lacks.
    """
    generator = np.random.default_rng(0)
    feeds = {}
    for name, one in engine.inputs.items():
        if None in one.shape[1:]:
            shown = ", ".join(str(side or "any") for side in one.shape)
            raise InputError(
                f"{engine.path.name} takes {name} of any size ([{shown}]), so its time says nothing; export it with "
                "fixed height and width."
            )
        if one.dtype is None:
            raise InputError(f"{engine.path.name} takes {name} as text or bfloat16, which is not timed; leave it out.")
        feeds[name] = generator.integers(0, 256, [side or 1 for side in one.shape]).astype(one.dtype)
    return feeds


def pictures(engine: Engine) -> int:
    """How many pictures an engine's first input takes at once: the first of four axes; 1 if that axis is free."""
    shape = next(iter(engine.inputs.values())).shape
    return shape[0] or 1 if len(shape) == 4 else 1


def megapixels(engine: Engine) -> float:
    """Pixels of one picture of an engine's first input, in millions; colour channels are not counted."""
    shape = [side or 1 for side in next(iter(engine.inputs.values())).shape]
    return math.prod(shape) / pictures(engine) / min(shape[1:] or [1]) / 1e6


def peak_of(path: Path) -> float:
    """Largest resident memory, MB, of a separate process that loads a file and runs it a few times.

    Raises:
        InputError: it cannot be run.
    """
    noise(Engine(path))  # raises here what is wrong with the file
    script = (
        "import sys; from pathlib import Path; from qmimic.bench.measure import Engine, as_run, largest_resident\n"
        "run = as_run(Engine(Path(sys.argv[1]))); [run() for _ in range(5)]\n"
        "print(largest_resident())"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
        raise InputError(f"{path} cannot be run in a separate process ({reason}); check its memory, or leave it out.")
    return float(done.stdout)


def largest_resident() -> float:
    """Largest resident memory of this process so far, MB."""
    status = Path("/proc/self/status")
    if status.exists():  # `resource` may report the peak of the process that started this one
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) / 1000
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1000)
