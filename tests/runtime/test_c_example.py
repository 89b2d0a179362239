"""The example in plain C detects what the runtime detects."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qmimic.runtime import Detector
from qmimic.runtime.formats import FORMATS
from qmimic.ship.onnx_file import Exported, write
from qmimic.ship.write import describe, ship
from tiny_detectors import lively, some_images, tiny_spec

SOURCE = Path(__file__).parents[2] / "examples" / "detect.c"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openvino = pytest.importorskip("openvino")
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("there is no C compiler")
    home = Path(openvino.__path__[0])
    target = tmp_path_factory.mktemp("c") / "detect"
    library = next((home / "libs").glob("libopenvino_c.so*"))
    strict = ["-std=c11", "-Wall", "-Wextra", "-Werror"]
    linked = [f"-I{home / 'include'}", str(library), f"-Wl,-rpath,{home / 'libs'}"]
    subprocess.run([compiler, *strict, str(SOURCE), "-o", str(target), *linked], check=True)
    return target


@pytest.mark.parametrize("target", ["onnx", "openvino"])
def test_it_finds_what_the_runtime_finds(target: str, program: Path, tmp_path: Path) -> None:
    detector = lively(tiny_spec()).eval()
    path = ship(Exported(detector), describe(detector, {}), FORMATS[target], tmp_path / "a", lambda *_: {})
    picture = Image.fromarray(some_images(7, 1)[0].permute(1, 2, 0)[:80].contiguous().numpy())
    picture.save(tmp_path / "p.ppm")
    done = subprocess.run([program, path, tmp_path / "p.ppm", "0.2"], capture_output=True, text=True, check=True)
    rows = np.array([line.split() for line in done.stdout.splitlines()], np.float64)
    found = Detector(path)(picture, min_score=0.2)
    assert len(rows) == len(found.scores) > 3
    np.testing.assert_array_equal(rows[:, 0], found.labels)
    np.testing.assert_allclose(rows[:, 1], found.scores, atol=1e-3)
    # The runtime cuts boxes to the picture; the rest of the input is padding.
    rows[:, [3, 5]] = np.minimum(rows[:, [3, 5]], 80)
    np.testing.assert_allclose(rows[:, 2:], found.boxes, atol=0.1)


def test_bad_input(program: Path, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        return done.stderr

    write(Exported(lively(tiny_spec()).eval()), tmp_path / "a.onnx")
    (tmp_path / "text.ppm").write_text("no picture")
    Image.new("RGB", (200, 10)).save(tmp_path / "wide.ppm")
    (tmp_path / "short.ppm").write_bytes(b"P6 9 9 255\n\0\0\0")
    assert "usage: detect MODEL" in said()
    assert "cannot load the model" in said(tmp_path / "none.onnx", tmp_path / "text.ppm", 0.5)
    for name, text in (("text", "is no binary PPM"), ("wide", "is larger than"), ("short", "ends too early")):
        assert text in said(tmp_path / "a.onnx", tmp_path / f"{name}.ppm", 0.5)
    assert "cannot open" in said(tmp_path / "a.onnx", tmp_path / "none.ppm", 0.5)
