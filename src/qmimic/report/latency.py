"""Times of a run's networks on equal terms: their float ONNX files and all deployed files, in one alternating run."""

import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qmimic.bench.measure import measure
from qmimic.bench.timing import is_busy
from qmimic.errors import InputError
from qmimic.report.kept import FOLDER, kept_value
from qmimic.report.networks import DeployedFile, detector_of
from qmimic.run.folder import FinishedRun
from qmimic.run.keys import network_key, timing_key
from qmimic.runtime.formats import FORMATS
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, write_described

ROUNDS = 60
FILE = "latency.json"


@dataclass(frozen=True)
class Timing:
    """Times from one alternating run on one thread.

    Attributes:
        cpu: name of the processor.
        rounds: how often each network ran.
        milliseconds: median per picture, by title of the network or the deployed file.
        reasons: by title, why a network has no time.
        busy: whether other programs kept the machine busy, so that times are too long.
    """

    cpu: str
    rounds: int
    milliseconds: dict[str, float]
    reasons: dict[str, str]
    busy: bool


def timing(run: FinishedRun, deployed: Sequence[DeployedFile], say: Callable[[str], None]) -> Timing:
    """Time all networks of a run, or reuse times kept for the same networks, files and machine.

    Networks of the same description cost the same, whatever their weights: they share one file and one time.

    Raises:
        InputError: a network cannot be read, or a file cannot be run.
    """
    networks, files = [result.key for result in run.results], [(file.title, file.sum) for file in deployed]
    key = timing_key(cpu_name(), networks, files)
    return kept_value(run.folder / FOLDER / FILE, key, Timing, lambda: _measure(run, deployed, say))


def _measure(run: FinishedRun, deployed: Sequence[DeployedFile], say: Callable[[str], None]) -> Timing:
    say("The report times every network.")
    busy = is_busy()
    files: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        written: dict[str, Path] = {}
        for result in run.results:
            detector = detector_of(run, result)
            same = network_key(detector.spec, detector.quantizer.config if detector.quantizer else None)
            if same not in written:
                path = Path(folder) / f"{same}.onnx"
                try:
                    write_described(Exported(detector), FORMATS["onnx"], describe(detector, {}), path)
                except InputError as error:
                    reasons[result.title] = str(error)
                    continue
                written[same] = path
            files[result.title] = written[same]
        files |= {file.title: file.path for file in deployed}
        costs = {cost.path: cost.p50 for cost in measure(list(dict.fromkeys(files.values())), [1], ROUNDS, False)}
        milliseconds = {title: costs[path] for title, path in files.items()}
    return Timing(cpu_name(), ROUNDS, milliseconds, reasons, busy)


def cpu_name() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
