"""A folder as a run leaves it, with detectors that find something everywhere, and pictures for them."""

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serve_cases import served

from qmimic.detectors.files import save_detector
from qmimic.runtime.formats import FORMATS
from qmimic.serve.app import application
from qmimic.serve.limits import Limits
from qmimic.serve.models import Shelf, collect
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, label, write_described
from tiny_detectors import lively, some_images, tiny_spec


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pets/`: teacher, student, and the student as two ONNX files.

    One of these says of itself that it is int8. It is not, since a second export takes long; nothing here is of numbers
    in int8.
    """
    folder = tmp_path_factory.mktemp("runs") / "pets"
    (folder / "deploy").mkdir(parents=True)
    student = lively(tiny_spec()).eval()
    save_detector(lively(tiny_spec(backbone="resnet18/8"), 1), folder / "teacher.safetensors", {"map50": 0.75})
    save_detector(student, folder / "student.safetensors", {"map50": 0.5})
    shipped, other = folder / "deploy" / "student.onnx", folder / "deploy" / "student-int8.onnx"
    description = describe(student, {"map50": 0.5})
    write_described(Exported(student), FORMATS["onnx"], description, shipped)
    shutil.copyfile(shipped, other)
    label(other, FORMATS["onnx"], replace(description, precision="int8"))
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


@pytest.fixture(scope="session")
def address(run: Path) -> Iterator[str]:
    """Of `qmimic serve` on the run, a process of its own."""
    with served(run) as (_, found):
        yield found
