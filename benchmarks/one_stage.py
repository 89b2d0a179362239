"""One-stage detectors on one thread at 320x320, beside YuNet with published weights, in one alternating run.

Fresh weights, whose outputs are amplified so that suppression has work: about a hundred detections in noise.
`fp32_ms`, `convolutions_ms` (the same graph up to its last convolutions) and the peers are ONNX Runtime's;
`int8_over_fp32` is what OpenVINO gains by int8 over its own float.

    QMIMIC_DATA=PATH python benchmarks/one_stage.py --json
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import torch

from qmimic.api import build_detector
from qmimic.bench.measure import as_run, megapixels
from qmimic.bench.timing import alternate
from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.config import DetectorConfig
from qmimic.detectors.build import parameter_count
from qmimic.detectors.one_stage import OneStage
from qmimic.runtime.engine import Engine
from qmimic.ship import onnx_file, openvino_file
from qmimic.ship.onnx_file import Exported

BACKBONES = ("resnet18/16", "repvgg/16", "repvgg/24", "yunet/16")
PEERS = ("yunet_n", "yunet_s")
SIZE = (320, 320)
LEVELS = (8, 16, 32)
CLASSES = ("a", "b", "c", "d", "e", "f")


def lively(backbone: str) -> OneStage:
    """A detector with fresh weights that finds something everywhere."""
    config = DetectorConfig(architecture="one_stage", levels=LEVELS)
    detector = build_detector(backbone, CLASSES, SIZE, config=config).eval()
    assert isinstance(detector, OneStage)
    with torch.no_grad():
        for out in detector.head.out:
            out.weight *= 20
    return detector


def up_to_the_last_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph without what comes after its last convolutions, whose outputs are its own."""
    leads_to_one: set[str] = set()  # values that a convolution depends on
    for node in reversed(model.graph.node):
        if node.op_type == "Conv" or leads_to_one & set(node.output):
            leads_to_one |= set(node.input)
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.output[:]
    for node in model.graph.node:
        last = node.op_type == "Conv" and node.output[0] not in leads_to_one
        if last or leads_to_one & set(node.output):
            part.graph.node.append(node)
        if last:
            part.graph.output.append(onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None))
    used = {name for node in part.graph.node for name in node.input}
    for tensor in [one for one in part.graph.initializer if one.name not in used]:
        part.graph.initializer.remove(tensor)
    return part


def load_all(
    folder: Path, data: Path | None, backbones: Sequence[str]
) -> tuple[dict[tuple[str, str], Engine], dict[str, dict[str, float]]]:
    """Everything to be timed by name and kind, and what is known of our networks without timing them."""
    engines: dict[tuple[str, str], Engine] = {}
    known: dict[str, dict[str, float]] = {}
    noise = torch.randint(0, 256, (4, 3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for backbone in backbones:
        path = folder / backbone.replace("/", "_")
        detector = lively(backbone)
        integer = prepare_qat(detector)
        calibrate(integer, [noise])
        whole = Exported(detector)
        onnx_file.write(whole, Path(f"{path}.onnx"))
        onnx.save(up_to_the_last_convolutions(whole.graph), f"{path}-convolutions.onnx")
        openvino_file.write(whole, Path(f"{path}.xml"))
        onnx_file.write(Exported(integer), Path(f"{path}-int8.onnx"))
        openvino_file.write(Exported(integer), Path(f"{path}-int8.xml"))
        engines[backbone, "fp32"] = Engine(Path(f"{path}.onnx"))
        engines[backbone, "convolutions"] = Engine(Path(f"{path}-convolutions.onnx"))
        engines[backbone, "fp32 of OpenVINO"] = Engine(Path(f"{path}.xml"))
        engines[backbone, "int8"] = Engine(Path(f"{path}-int8.xml"))
        kilobytes = Path(f"{path}-int8.onnx").stat().st_size / 1000
        known[backbone] = {"weights": parameter_count(detector), "int8_kb": kilobytes}
    for peer in PEERS if data else ():
        engines[peer, "fp32"] = Engine(data / "peers" / f"{peer}.onnx")
    return engines, known


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(os.environ["QMIMIC_DATA"]) if "QMIMIC_DATA" in os.environ else None
    if not data:
        print("QMIMIC_DATA is not set: without peers.")
    with tempfile.TemporaryDirectory() as folder:
        engines, found = load_all(Path(folder), data, options.backbones)
        seconds = alternate({" ".join(key): as_run(engine) for key, engine in engines.items()}, options.rounds)
    medians = {key: 1000 * float(np.median(seconds[" ".join(key)])) for key in engines}
    for (name, what), milliseconds in medians.items():
        low, high = (1000 * np.percentile(seconds[f"{name} {what}"], share) for share in (5, 95))
        print(f"{name + ' ' + what:<32} {milliseconds:6.2f} ms   5 to 95 %: {low:.2f} to {high:.2f}")
        if what == "fp32":
            found.setdefault(name, {})["ms_per_mpx"] = milliseconds / megapixels(engines[name, what])
    for name in options.backbones:
        found[name] |= {
            "fp32_ms": medians[name, "fp32"],
            "convolutions_ms": medians[name, "convolutions"],
            "fp32_over_convolutions": medians[name, "fp32"] / medians[name, "convolutions"],
            "int8_ms": medians[name, "int8"],
            "int8_over_fp32": medians[name, "fp32 of OpenVINO"] / medians[name, "int8"],
        }
    if options.json:
        print(json.dumps({name: {key: round(value, 3) for key, value in own.items()} for name, own in found.items()}))


if __name__ == "__main__":
    main()
