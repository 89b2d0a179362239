"""A folder as a run leaves it, with detectors of fresh weights that find something everywhere, and pictures for them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from qmimic.export.onnx_file import Exported, describe_onnx, write_onnx
from qmimic.export.ship import describe
from qmimic.models.checkpoint import save_detector
from qmimic.models.fake_quantize import calibrate, on_grids
from qmimic.models.two_stage import Detector
from qmimic.runtime.metadata import as_properties
from qmimic.serve.app import application
from qmimic.serve.limits import Limits
from qmimic.serve.models import Shelf, collect
from tiny_detectors import lively, some_images, tiny_spec


def onnx(detector: Detector, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    write_onnx(Exported(detector), path)
    describe_onnx(path, as_properties(describe(detector, {"map50": 0.5})))


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pets/`: teacher, student, and the student as ONNX files, float and int8."""
    folder = tmp_path_factory.mktemp("runs") / "pets"
    folder.mkdir()
    student = lively(tiny_spec()).eval()
    save_detector(lively(tiny_spec(backbone="resnet18/8"), 1), folder / "teacher.safetensors", {"map50": 0.75})
    save_detector(student, folder / "student.safetensors", {"map50": 0.5})
    onnx(student, folder / "deploy" / "student.onnx")
    integers = on_grids(student)
    calibrate(integers, [some_images(5, 4)])
    onnx(integers, folder / "deploy" / "student-int8.onnx")
    return folder


@pytest.fixture(scope="session")
def shelf(run: Path) -> Shelf:
    return collect([run])


@pytest.fixture(scope="session")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
def client(shelf: Shelf, pool: ThreadPoolExecutor) -> TestClient:
    """The application without a socket; faults of the server are answers, as over a socket."""
    limits = Limits(bytes=1 << 20, pixels=1_000_000)
    app = application(shelf, limits, pool, "127.0.0.1")
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pale.png`, `wide.jpg` and `turned.jpg`, which lies on its side."""
    folder = tmp_path_factory.mktemp("photos")
    images = [Image.fromarray(one.permute(1, 2, 0).numpy()) for one in some_images(1, 3)]
    images[0].save(folder / "pale.png")
    images[1].resize((300, 160)).save(folder / "wide.jpg", quality=95)
    exif = Image.Exif()
    exif[0x0112] = 6
    images[2].resize((400, 240)).save(folder / "turned.jpg", exif=exif, quality=95)
    return folder


def noise(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Width and height in pixels."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
