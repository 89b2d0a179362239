"""Files that a stranger made worse and gave the right checksums end no process but the one that tries them."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.runtime.formats import FORMATS
from qmimic.runtime.metadata import GRAPH_SUM
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, label, write_described
from tiny_detectors import one_stage, some_images

COUNT = 30
OPENS = """
import sys, warnings
from pathlib import Path
import numpy as np
from qmimic.errors import InputError
from qmimic.runtime import Detector
warnings.simplefilter("ignore")
refused = ran = broken = 0
for path in sorted(Path(sys.argv[1]).glob(sys.argv[2])):
    try:
        detector = Detector(path)
        assert not detector.metadata.changed, path
        detector.raw(np.random.default_rng(0).integers(0, 256, (1, 96, 96, 3), dtype=np.uint8))
        ran += 1
    except InputError as error:
        assert path.name in str(error), error
        refused += 1
        broken += "crashes" in str(error)
print(refused, ran, broken)
"""


def opened(folder: Path, pattern: str) -> tuple[int, int, int]:
    """How many files were refused, how many ran, and how many were refused because they end a process.

    The process that opened them all came to its end.
    """
    done = subprocess.run(
        [sys.executable, "-c", OPENS, str(folder), pattern],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, ran, broken = map(int, done.stdout.split())
    return refused, ran, broken


@pytest.mark.parametrize("integers", [False, True])
def test_mutated_models_of_litert(integers: bool, tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert")
    from qmimic.runtime.litert_engine import parse
    from qmimic.ship.litert_model import packed

    detector = one_stage(backbone="yunet/32").eval()
    if integers:
        detector = prepare_qat(detector)
        calibrate(detector, [some_images(7, 4)])
    metadata = describe(detector, {})
    write_described(Exported(detector), FORMATS["litert"], metadata, tmp_path / "whole.tflite")
    content = (tmp_path / "whole.tflite").read_bytes()
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        model = parse(content, tmp_path)
        graph = model.subgraphs[0]
        tensor = graph.tensors[generator.integers(len(graph.tensors))]
        operator = graph.operators[generator.integers(len(graph.operators))]
        match number % 6:
            case 0:
                tensor.shape = [*tensor.shape]
                tensor.shape[generator.integers(len(tensor.shape))] = int(generator.choice([0, 1, 7, 10**6, -3]))
            case 1:
                operator.inputs = [*operator.inputs]
                operator.inputs[generator.integers(len(operator.inputs))] = int(generator.integers(len(graph.tensors)))
            case 2:
                options = vars(operator.builtinOptions) if operator.builtinOptions else {"none": 0}
                whole = sorted(name for name, value in options.items() if type(value) is int)
                options[str(generator.choice(whole or ["none"]))] = int(generator.choice([0, -1, 3, 1000]))
            case 3:
                operator.opcodeIndex = int(generator.integers(len(model.operatorCodes)))
            case 4:
                buffer = model.buffers[generator.integers(1, len(model.buffers) // 2)]
                buffer.data = buffer.data[: len(buffer.data) // 2]
            case 5:
                several = [one for one in graph.operators if len(one.inputs) > 1]
                operator = several[generator.integers(len(several))]
                operator.inputs = [*operator.inputs][:-1]
        path = tmp_path / f"m{number:02}.tflite"
        try:
            path.write_bytes(packed(model))
            label(path, FORMATS["litert"], metadata)
        except Exception:  # the format itself cannot say it
            path.unlink(missing_ok=True)
    refused, ran, broken = opened(tmp_path, "m*.tflite")
    assert refused > COUNT / 4
    assert broken
    assert refused + ran > COUNT / 2


def test_mutated_files_of_ncnn(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    kind = FORMATS["ncnn"]
    detector = one_stage(backbone="yunet/32").eval()
    write_described(Exported(detector), kind, describe(detector, {}), tmp_path / "whole.ncnn.param")
    layers = (tmp_path / "whole.ncnn.param").read_text()
    weights, said = ((tmp_path / f"whole.ncnn.{one}").read_bytes() for one in ("bin", "json"))
    numbers = list(re.finditer(r"(?<==)-?\d+\b", layers))
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        path = tmp_path / f"m{number:02}.ncnn.param"
        found = numbers[generator.integers(len(numbers))]
        other = generator.choice(["0", "-1", "3", "4096", "77777", "1e9"])
        worse = layers[: found.start()] + other + layers[found.end() :]
        path.write_text(re.sub(r"-233(\d\d)=", r"\1=", worse) if number % 4 == 0 else worse)
        flipped = bytearray(weights)
        flipped[generator.integers(len(weights))] ^= 255
        path.with_suffix(".bin").write_bytes(flipped if number % 2 else weights)
        properties = {name: value for name, value in json.loads(said).items() if name != GRAPH_SUM}
        kind.describe(path, properties)
        kind.describe(path, {**properties, GRAPH_SUM: kind.checksum(path)})
    refused, ran, broken = opened(tmp_path, "m*.ncnn.param")
    assert refused > COUNT / 8
    assert broken
    assert refused + ran == COUNT


def test_a_file_is_tried_once_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ai_edge_litert")
    from qmimic.runtime import Detector, formats

    detector = one_stage(seed=9, backbone="yunet/32").eval()
    metadata = replace(describe(detector, {}), version="tried once")
    write_described(Exported(detector), FORMATS["litert"], metadata, tmp_path / "a.tflite")
    Detector(tmp_path / "a.tflite")
    monkeypatch.setattr(formats.subprocess, "run", None)
    Detector(tmp_path / "a.tflite")
