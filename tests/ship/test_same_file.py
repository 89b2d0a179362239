"""One ONNX file for three engines: ONNX Runtime, OpenCV's DNN module and onnxruntime-web."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from qmimic.errors import InputError
from qmimic.runtime.engine import Engine
from qmimic.runtime.metadata import INPUT, REGIONS
from qmimic.ship.onnx_file import Exported, write
from qmimic.ship.web_file import ONNXRUNTIME, packages
from tiny_detectors import one_stage, some_images

Arrays = list[NDArray[np.float32]]
SCRIPT = """
const [library, file, pixels] = process.argv.slice(1);
const fs = await import("fs");
const ort = await import(library);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(fs.readFileSync(file), { executionProviders: ["wasm"] });
const images = new ort.Tensor("uint8", fs.readFileSync(pixels), [1, 96, 96, 3]);
const found = await session.run({ images });
const plain = ["region_boxes", "region_scores"].map((name) => Array.from(found[name].data));
console.log(JSON.stringify(plain));
"""


def by_opencv(path: Path, pixels: NDArray[np.uint8]) -> Arrays:
    dnn = pytest.importorskip("cv2.dnn", reason="OpenCV is not installed: pip install 'qmimic[video]'")
    net = dnn.readNetFromONNX(str(path))
    net.setInput(pixels, INPUT)
    return list(net.forward(list(REGIONS)))


def by_node(path: Path, pixels: NDArray[np.uint8]) -> Arrays:
    try:
        library = packages(ONNXRUNTIME) / "onnxruntime-web" / "dist" / "ort.node.min.mjs"
    except InputError as error:
        pytest.skip(str(error))
    node = shutil.which("node")
    if not node:
        pytest.skip("there is no node")
    raw = path.with_suffix(".raw")
    raw.write_bytes(pixels.tobytes())
    command = [node, "--input-type=module", "-e", SCRIPT, library.as_uri(), str(path), str(raw)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [np.array(one, np.float32) for one in json.loads(done.stdout)]


@pytest.mark.parametrize("run", [by_opencv, by_node])
@pytest.mark.parametrize("backbone", ["resnet18/16", "repvgg/16", "yunet/32", "vgg16/32"])
def test_they_compute_the_same(backbone: str, run: Callable[[Path, NDArray[np.uint8]], Arrays], tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    write(Exported(one_stage(backbone=backbone).eval(), 1, suppression=False), path)
    pixels = some_images(7, 1).permute(0, 2, 3, 1).contiguous().numpy()
    wanted = Engine(path).run({INPUT: pixels})
    for name, found, limit in zip(REGIONS, run(path, pixels), (0.02, 1e-4), strict=True):
        np.testing.assert_allclose(found.reshape(wanted[name].shape), wanted[name], rtol=0, atol=limit)
