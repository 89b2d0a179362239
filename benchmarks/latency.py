"""Latency on one thread at 320x240, ours and small face detectors with published weights, in one alternating run.

Fresh weights: time hardly depends on them.
`fp32_ms`, `backbone_ms` and the peers are ONNX Runtime's; `int8_ms` is OpenVINO's, the engine whose int8 is fastest on
processors without VNNI, `int8_over_fp32` its gain over float in the same engine. `kb` is the int8 ONNX file's size.

    QMIMIC_DATA=PATH python benchmarks/latency.py --json
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch

from qmimic.api import build_detector
from qmimic.bench.measure import as_run, megapixels
from qmimic.bench.timing import alternate
from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.config import DetectorConfig
from qmimic.detectors.detector import Detector
from qmimic.runtime.engine import Engine
from qmimic.ship import onnx_file, openvino_file
from qmimic.ship.onnx_file import Exported

NETWORKS = {"resnet18/16-faster_rcnn": ("resnet18/16", "faster_rcnn"), "vgg16/32-rfcn": ("vgg16/32", "rfcn")}
PEERS = ("yunet_n", "yunet_s", "rfb320", "slim320")
SIZE = (240, 320)


def backbone_of(model: onnx.ModelProto, channels: int) -> onnx.ModelProto:
    """The graph up to the map that RPN and head see: the input of the RPN's convolution."""
    weights = {one.name: tuple(one.dims) for one in model.graph.initializer}
    rpn = next(
        node
        for node in reversed(model.graph.node)
        if node.op_type == "Conv" and weights[node.input[1]] == (channels, channels, 3, 3)
    )
    made = {name: node for node in model.graph.node for name in node.output}
    needed, waiting = [], [rpn.input[0]]
    while waiting:
        node = made.pop(waiting.pop(), None)
        if node is not None:
            needed.append(node)
            waiting += node.input
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.node[:], part.graph.output[:]
    part.graph.node.extend(node for node in model.graph.node if node in needed)
    part.graph.output.append(onnx.helper.make_tensor_value_info(rpn.input[0], onnx.TensorProto.FLOAT, None))
    used = {name for node in part.graph.node for name in node.input}
    for tensor in [one for one in part.graph.initializer if one.name not in used]:
        part.graph.initializer.remove(tensor)
    return part


def on_noise(detector: Detector) -> Detector:
    """The detector on grids that fit noise."""
    found = prepare_qat(detector)
    generator = torch.Generator().manual_seed(0)
    calibrate(found, [torch.randint(0, 256, (4, 3, *SIZE), generator=generator, dtype=torch.uint8)])
    return found


def load_all(folder: Path, data: Path | None, networks: list[str]) -> tuple[dict[str, Engine], dict[str, float]]:
    """Everything to be timed, by name, and sizes of int8 files in kB."""
    engines, sizes = {}, {}
    for name in networks:
        backbone, architecture = NETWORKS[name]
        path = folder / name.replace("/", "_")
        config = DetectorConfig(architecture=architecture)
        detector = build_detector(backbone, ("object",), SIZE, config=config).eval()
        whole, integer = Exported(detector), Exported(on_noise(detector))
        onnx_file.write(whole, path.with_suffix(".onnx"))
        onnx.save(backbone_of(whole.graph, detector.channels[0]), f"{path}-backbone.onnx")
        onnx_file.write(integer, Path(f"{path}-int8.onnx"))
        openvino_file.write(whole, path.with_suffix(".xml"))
        openvino_file.write(integer, Path(f"{path}-int8.xml"))
        engines[name, "fp32"] = Engine(path.with_suffix(".onnx"))
        engines[name, "backbone"] = Engine(Path(f"{path}-backbone.onnx"))
        engines[name, "int8 of ONNX Runtime"] = Engine(Path(f"{path}-int8.onnx"))
        engines[name, "fp32 of OpenVINO"] = Engine(path.with_suffix(".xml"))
        engines[name, "int8"] = Engine(Path(f"{path}-int8.xml"))
        sizes[name] = Path(f"{path}-int8.onnx").stat().st_size / 1000
    for peer in PEERS if data else ():
        engines[peer, "fp32"] = Engine(data / "peers" / f"{peer}.onnx", 1)
    return engines, sizes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    data = Path(os.environ["QMIMIC_DATA"]) if "QMIMIC_DATA" in os.environ else None
    if not data:
        print("QMIMIC_DATA is not set: without peers.")
    with tempfile.TemporaryDirectory() as folder:
        engines, sizes = load_all(Path(folder), data, options.networks)
        runs = {" ".join(key): as_run(engine) for key, engine in engines.items()}
        seconds = alternate(runs, options.rounds)
    medians = {key: 1000 * float(np.median(seconds[" ".join(key)])) for key in engines}
    found: dict[str, dict[str, float]] = {}
    for (name, what), milliseconds in medians.items():
        low, high = (1000 * np.percentile(seconds[f"{name} {what}"], share) for share in (5, 95))
        print(f"{name + ' ' + what:<45} {milliseconds:6.2f} ms   5 to 95 %: {low:.2f} to {high:.2f}")
        if what == "fp32":
            found[name] = {"ms_per_mpx": milliseconds / megapixels(engines[name, what])}
    for name in sizes:
        own = {what: medians[name, what] for _, what in filter(lambda key: key[0] == name, medians)}
        found[name] |= {
            "fp32_ms": own["fp32"],
            "int8_ms": own["int8"],
            "backbone_ms": own["backbone"],
            "fp32_over_backbone": own["fp32"] / own["backbone"],
            "int8_over_fp32": own["fp32 of OpenVINO"] / own["int8"],
            "onnx_int8_ms": own["int8 of ONNX Runtime"],
            "openvino_fp32_ms": own["fp32 of OpenVINO"],
            "kb": sizes[name],
        }
    if options.json:
        print(json.dumps({name: {key: round(value, 3) for key, value in own.items()} for name, own in found.items()}))


if __name__ == "__main__":
    main()
