"""Label files out of detections: qmimic's own readers find the same boxes in them."""

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from serve_cases import noise

from qmimic import load_dataset
from qmimic.cli import main

CLASSES = ["red/cat", "dog & co", "ox"]
NAMES = ["a.b.c.jpg", "päivä kuva.png", "IMG_0001.JPG", "nothing.png"]


def wanted(layout: str, **changes: Any) -> dict[str, Any]:
    """A request: four pictures, one without an object."""
    generator = np.random.default_rng(0)
    pictures = []
    for name in NAMES:
        corners = np.sort(generator.uniform(0, 60, (3, 2, 2)), axis=1).reshape(3, 4).round(2)
        corners[:, 2:] += 2
        objects = [
            {"class": CLASSES[k], "score": 0.5, "box": [float(side) for side in box]} for k, box in enumerate(corners)
        ]
        found = [] if name == "nothing.png" else objects
        pictures.append({"name": name, "width": 90, "height": 70, "detections": found})
    return {"format": layout, "classes": CLASSES, "pictures": pictures, **changes}


@pytest.mark.parametrize(("layout", "folder"), [("coco", "images"), ("yolo", "images/train"), ("voc", "JPEGImages")])
def test_the_boxes_come_back(client: TestClient, tmp_path: Path, layout: str, folder: str) -> None:
    asked = wanted(layout)
    answer = client.post("/api/labels", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-disposition"] == f'attachment; filename="labels-{layout}.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert f"folder {folder}/ " in archive.read("README.txt").decode()
        archive.extractall(tmp_path)
    (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        noise((90, 70)).save(tmp_path / folder / name)
    dataset = load_dataset(tmp_path)
    assert not dataset.defects
    assert set(dataset.classes) == set(CLASSES)
    assert list(dataset.splits) == ["train"]
    samples = {sample.image.name: sample for sample in dataset.splits["train"] if sample.image}
    assert samples.keys() == set(NAMES)
    for picture in asked["pictures"]:
        sample = samples[picture["name"]]
        assert [dataset.classes[k] for k in sample.labels] == [one["class"] for one in picture["detections"]]
        expected = np.array([one["box"] for one in picture["detections"]], np.float32).reshape(-1, 4)
        np.testing.assert_allclose(sample.boxes, expected, atol=1e-4)
    assert main(["data", "check", str(tmp_path)]) == 0


def test_boxes_end_at_the_picture_and_have_area(client: TestClient, tmp_path: Path) -> None:
    boxes = [[0, 70, 30, 70], [-5, 60, 20, 80], [100, 10, 120, 30], [3, 4, 50, 60]]
    found = [{"class": "ox", "score": 0.5, "box": box} for box in boxes]
    picture = {"name": "a.png", "width": 90, "height": 70, "detections": found}
    answer = client.post("/api/labels", json=wanted("coco", pictures=[picture]))
    zipfile.ZipFile(io.BytesIO(answer.content)).extractall(tmp_path)
    (sample,) = load_dataset(tmp_path).splits["train"]
    assert sample.boxes.tolist() == [[0, 60, 20, 70], [3, 4, 50, 60]]


def test_requests_that_cannot_become_labels(client: TestClient) -> None:
    def says(asked: dict[str, Any]) -> str:
        answer = client.post("/api/labels", json=asked)
        assert answer.status_code == 422, answer.text
        assert answer.json().keys() == {"error"}
        sentence: str = answer.json()["error"]
        return sentence

    def named(name: str) -> dict[str, Any]:
        return wanted("coco", pictures=[{**wanted("coco")["pictures"][0], "name": name}])

    def boxed(**changes: object) -> dict[str, Any]:
        one = {"class": "ox", "score": 0.5, "box": [1, 2, 3, 4], **changes}
        return wanted("coco", pictures=[{"name": "a.jpg", "width": 9, "height": 9, "detections": [one]}])

    for name in ("../a.jpg", "/etc/a.jpg", "..\\a.jpg", "c:a.jpg", "a/b.jpg"):
        assert "folder in it; give the file's name alone" in says(named(name))
    for name in ("", "a", ".jpg", "...jpg", "a.exe", "a\n.jpg", "a .jpg", "a\x00.jpg", "x" * 190 + ".j"):
        assert "is not a picture's name" in says(named(name)), name
    assert "'zebra', which is not among" in says(boxed(**{"class": "zebra"}))
    assert "box" in says(boxed(box=[1, 2, 3]))
    assert "score" in says(boxed(score=2))
    assert "format" in says(wanted("tfrecord"))
    assert "a class is named twice" in says(wanted("coco", classes=["ox", "ox"]))
    assert "line break" in says(wanted("coco", classes=["o\nx"]))
    assert "spaces around" in says(wanted("voc", classes=[*CLASSES, " cow"]))
    assert "pictures" in says(wanted("coco", pictures=[]))
    assert "extra" in says(wanted("coco", folder="/etc")).lower()
    for text in ("{", "[]", '{"format": NaN}', "null"):
        answer = client.post("/api/labels", content=text, headers={"content-type": "application/json"})
        assert answer.status_code == 422
        assert answer.json().keys() == {"error"}
    infinite = '{"format": "coco", "classes": ["ox"], "pictures": [{"name": "a.jpg", "width": 9, "height": 9, '
    infinite += '"detections": [{"class": "ox", "score": 0.5, "box": [0, 0, 1e999, 1]}]}]}'
    answer = client.post("/api/labels", content=infinite, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert "finite" in answer.json()["error"]


def test_a_clash_of_names_is_numbered_and_blocks_nothing(client: TestClient, tmp_path: Path) -> None:
    asked = wanted("yolo")
    first = asked["pictures"][0]
    names = ["a.jpg", "a.png", "a-2.jpg", "a.jpg"]
    asked["pictures"] = [{**first, "name": name} for name in names]
    answer = client.post("/api/labels", json=asked)
    assert answer.status_code == 200, answer.text
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        files = [Path(name) for name in archive.namelist()]
        labels = [path.stem for path in files if "labels" in path.parts and path.suffix == ".txt"]
        said = archive.read("README.txt").decode()
    assert sorted(labels) == ["a", "a-2", "a-3", "a-4"]
    assert "Rename a.png to a-3.png" in said
    assert "Rename a.jpg to a-4.jpg" in said
    assert said.count("Rename") == 2
