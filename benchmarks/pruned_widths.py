"""What it brings in deployed files that pruned layers keep a multiple of 8 channels: one alternating run, one thread.

Teachers with fresh weights are pruned to the cost of `resnet18/16` by a random criterion, once channel by channel and
once by eights; the time depends on the widths alone. ONNX Runtime times all of them beside `resnet18/16` itself.

    python benchmarks/pruned_widths.py --json
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch

from qmimic.api import build_detector
from qmimic.bench.measure import as_run
from qmimic.bench.timing import alternate
from qmimic.compress.cost import Cost, equal_share
from qmimic.compress.taylor import least, unit
from qmimic.config import PruningConfig
from qmimic.detectors.build import mac_count
from qmimic.detectors.channels import channel_groups, keep_channels, widths
from qmimic.detectors.detector import Detector
from qmimic.runtime.engine import Engine
from qmimic.ship import onnx_file
from qmimic.ship.onnx_file import Exported

TEACHERS = ("resnet18/4", "timm:tf_efficientnet_lite0", "timm:mobilenetv3_small_100")
STUDENT = "resnet18/16"
SIZE = (192, 192)
CLASSES = ("a", "b", "c", "d", "e")
MULTIPLES = (1, 4, 8)


def pruned(teacher: str, macs: int, multiple: int) -> Detector:
    """A teacher at this cost; the same random channels matter for every multiple."""
    detector = build_detector(teacher, CLASSES, SIZE).eval()
    generator = torch.Generator().manual_seed(0)
    found = widths(detector, channel_groups(detector))
    criterion = {name: 1 + torch.rand(count, generator=generator) for name, count in found.items()}
    equal = equal_share(detector, macs)
    # The least that equal pruning leaves, halved: widths then differ from layer to layer, as pruning makes them.
    floor = {name: max(1, count // 2) for name, count in equal.items()}
    units = {name: unit(multiple, count) for name, count in equal.items()}
    weight = PruningConfig().cost_weight
    keep_channels(detector, least(criterion, Cost(detector), macs, macs, weight, floor, [units]))
    return detector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", nargs="+", default=TEACHERS)
    parser.add_argument("--multiples", nargs="+", type=int, default=MULTIPLES, help="channels taken away at once")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    torch.set_num_threads(1)
    student = build_detector(STUDENT, CLASSES, SIZE).eval()
    detectors = {STUDENT: student} | {
        f"{teacher} by {multiple}": pruned(teacher, mac_count(student), multiple)
        for teacher in options.teachers
        for multiple in options.multiples
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{place}.onnx" for place, name in enumerate(detectors)}
        for name, detector in detectors.items():
            onnx_file.write(Exported(detector), files[name])
        engines = {name: Engine(path) for name, path in files.items()}
        seconds = alternate({name: as_run(engine) for name, engine in engines.items()}, options.rounds)
        kilobytes = {name: path.stat().st_size / 1000 for name, path in files.items()}
    medians = {name: 1000 * float(np.median(own)) for name, own in seconds.items()}
    found = {
        name: {
            "mmacs": mac_count(detector) / 1e6,
            "kb": kilobytes[name],
            "ms": medians[name],
            "over_student": medians[name] / medians[STUDENT],
        }
        for name, detector in detectors.items()
    }
    for name, own in found.items():
        print(
            f"{name:<36} {own['mmacs']:6.1f} MMACs {own['kb']:6.0f} kB {own['ms']:6.2f} ms "
            f"{own['over_student']:5.2f} times {STUDENT}"
        )
    if options.json:
        print(json.dumps({name: {key: round(value, 3) for key, value in own.items()} for name, own in found.items()}))


if __name__ == "__main__":
    main()
