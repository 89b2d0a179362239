"""The example in C on LiteRT's own library detects what the runtime detects, with the exported C source around it."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.runtime import Detector
from qmimic.runtime.formats import FORMATS
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, write_described
from tiny_detectors import one_stage, some_images

EXAMPLES = Path(__file__).parents[2] / "examples"
CAMERA = 120, 160  # height and width


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    litert = pytest.importorskip("ai_edge_litert")
    from qmimic.ship.c_source import write_c

    home = Path(litert.__path__[0])
    compiler = shutil.which("cc")
    if not compiler or not (home / "libLiteRt.so").is_file():
        pytest.skip("there is no C compiler, or no libLiteRt.so in the wheel")
    folder = tmp_path_factory.mktemp("litert")
    detector = prepare_qat(one_stage().eval())
    calibrate(detector, [some_images(7, 4)])
    write_described(Exported(detector), FORMATS["litert"], describe(detector, {}), folder / "student-int8.tflite")
    sources = [one for one in write_c(folder / "student-int8.tflite", CAMERA) if one.suffix == ".c"]
    strict = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", f"-I{folder}"]
    linked = [str(home / "libLiteRt.so"), f"-Wl,-rpath,{home}"]
    code = [str(EXAMPLES / "detect_litert.c"), *map(str, sources)]
    subprocess.run([compiler, *strict, *code, "-o", str(folder / "detect"), *linked], check=True)
    return folder / "detect"


def test_it_finds_what_the_runtime_finds(program: Path, tmp_path: Path) -> None:
    picture = Image.fromarray(some_images(7, 1)[0].permute(1, 2, 0).contiguous().numpy()).resize(CAMERA[::-1])
    picture.save(tmp_path / "p.ppm")
    done = subprocess.run([program, tmp_path / "p.ppm", "0.2"], capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()]
    detector = Detector(program.parent / "student-int8.tflite")
    found = detector(picture, min_score=0.2)
    assert len(rows) == len(found.scores) > 3
    assert [row[0] for row in rows] == [detector.classes[label] for label in found.labels]
    np.testing.assert_allclose([float(row[1]) for row in rows], found.scores, atol=1e-3)
    boxes = np.array([row[2:] for row in rows], np.float64)
    boxes[:, [1, 3]] = np.minimum(boxes[:, [1, 3]], CAMERA[0])  # the runtime cuts boxes to the picture
    np.testing.assert_allclose(boxes, found.boxes, atol=0.1)


def test_bad_input(program: Path, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        return done.stderr

    (tmp_path / "text.ppm").write_text("no picture")
    (tmp_path / "short.ppm").write_bytes(b"P6 160 120 255\n\0\0\0")
    Image.new("RGB", (200, 10)).save(tmp_path / "wide.ppm")
    assert "usage: detect_litert PICTURE" in said()
    assert "cannot open" in said(tmp_path / "none.ppm", 0.5)
    for name, text in (("text", "is no binary PPM"), ("short", "ends too early"), ("wide", "not of the camera's size")):
        assert text in said(tmp_path / f"{name}.ppm", 0.5)
