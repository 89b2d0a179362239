"""The example in C++ detects with ncnn what the runtime detects."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qmimic.runtime import Detector
from qmimic.runtime.formats import FORMATS
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, ship
from tiny_detectors import one_stage, some_images

SOURCE = Path(__file__).parents[2] / "examples" / "detect_ncnn.cpp"


def flags() -> list[str]:
    """Of the compiler, for ncnn: pkg-config's, or those of the folder that NCNN_HOME names."""
    home = os.environ.get("NCNN_HOME")
    if home:
        return [f"-I{home}/include/ncnn", f"{home}/lib/libncnn.a"]
    known = shutil.which("pkg-config") and subprocess.run(
        ["pkg-config", "--cflags", "--libs", "ncnn"], capture_output=True, text=True, check=False
    )
    if not known or known.returncode:
        pytest.skip(
            "there is no ncnn library (Debian: apt install libncnn-dev; or NCNN_HOME); the wheel has no headers"
        )
    return known.stdout.split()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("c++")
    if not compiler:
        pytest.skip("there is no C++ compiler")
    target = tmp_path_factory.mktemp("cpp") / "detect_ncnn"
    strict = ["-std=c++17", "-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *strict, str(SOURCE), "-o", str(target), *flags(), "-fopenmp"], check=True)
    return target


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("ncnn")
    detector = one_stage().eval()
    folder = tmp_path_factory.mktemp("files")
    return ship(Exported(detector), describe(detector, {}), FORMATS["ncnn"], folder / "a", lambda *_: {})


def test_it_finds_what_the_runtime_finds(program: Path, files: Path, tmp_path: Path) -> None:
    picture = Image.fromarray(some_images(7, 1)[0].permute(1, 2, 0)[:80].contiguous().numpy())
    picture.save(tmp_path / "p.ppm")
    iou = Detector(files).metadata.nms_threshold
    command = [program, files, tmp_path / "p.ppm", "0.2", str(iou)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = np.array([line.split() for line in done.stdout.splitlines()], np.float64)
    found = Detector(files)(picture, min_score=0.2)
    assert len(rows) == len(found.scores) > 3
    np.testing.assert_array_equal(rows[:, 0], found.labels)
    np.testing.assert_allclose(rows[:, 1], found.scores, atol=1e-3)
    # The runtime cuts boxes to the picture; the rest of the input is padding.
    rows[:, [3, 5]] = np.minimum(rows[:, [3, 5]], 80)
    np.testing.assert_allclose(rows[:, 2:], found.boxes, atol=0.1)


def test_bad_input(program: Path, files: Path, tmp_path: Path) -> None:
    def said(*arguments: object) -> str:
        done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False)
        assert done.returncode == 2
        return done.stderr.splitlines()[-1]  # ncnn says its own word first

    (tmp_path / "text.ppm").write_text("no picture")
    Image.new("RGB", (200, 10)).save(tmp_path / "wide.ppm")
    assert "usage: detect_ncnn MODEL" in said()
    assert "cannot load the layers" in said(tmp_path / "none.ncnn.param", tmp_path / "text.ppm", 0.5, 0.5)
    assert "is no .param file" in said(tmp_path / "none.onnx", tmp_path / "text.ppm", 0.5, 0.5)
    shutil.copy(files, tmp_path / "alone.ncnn.param")
    assert "cannot load the weights" in said(tmp_path / "alone.ncnn.param", tmp_path / "text.ppm", 0.5, 0.5)
    for name, text in (("text", "is no binary PPM"), ("wide", "is larger than")):
        assert text in said(files, tmp_path / f"{name}.ppm", 0.5, 0.5)
