"""The tutorial's table of labelling tools: a folder as each of them exports it, changed as the table says, is read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from pages import ROOT

from folders import contents, picture, voc_object, voc_xml
from qmimic.data.check import check
from qmimic.data.formats import load_dataset

BOX = [("cat", (10.0, 8.0, 60.0, 48.0), False, False)]  # in a picture of 100 x 80
LINE = "0 0.35 0.35 0.5 0.5\n"


def coco(path: Path, file_name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = [[10, 8, 60, 8, 60, 48, 10, 48]]  # a polygon beside the box
    note = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 8, 50, 40], "area": 2000, "segmentation": shape}
    images = [{"id": 1, "file_name": file_name, "width": 100, "height": 80}]
    path.write_text(
        json.dumps({"images": images, "annotations": [note], "categories": [{"id": 1, "name": "cat"}], "info": {}})
    )


def label_studio_yolo(root: Path) -> None:
    picture(root / "images" / "a1b2-photo.jpg")
    (root / "labels").mkdir()
    (root / "labels" / "a1b2-photo.txt").write_text(LINE)
    (root / "classes.txt").write_text("cat\n")
    (root / "notes.json").write_text("{}")


def label_studio_coco(root: Path) -> None:
    picture(root / "images" / "a1b2-photo.jpg")
    coco(root / "result.json", "images/a1b2-photo.jpg")
    (root / "result.json").rename(root / "instances_train.json")


def cvat_coco(root: Path) -> None:
    picture(root / "images" / "default" / "photo.jpg")
    coco(root / "annotations" / "instances_default.json", "photo.jpg")


def cvat_coco_flat(root: Path) -> None:
    picture(root / "images" / "photo.jpg")
    coco(root / "annotations" / "instances_default.json", "photo.jpg")


def cvat_voc(root: Path) -> None:
    picture(root / "JPEGImages" / "photo.jpg")
    voc_xml(root, "photo", voc_object("cat", 11, 9, 60, 48))
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "default.txt").write_text("photo\n")
    (root / "labelmap.txt").write_text("# label:color_rgb:parts:actions\ncat:1,2,3::\n")


def labelimg_yolo(root: Path) -> None:
    picture(root / "images" / "photo.jpg")
    (root / "labels").mkdir()
    (root / "labels" / "photo.txt").write_text(LINE)
    (root / "classes.txt").write_text("cat\n")


def labelimg_voc(root: Path) -> None:
    picture(root / "JPEGImages" / "photo.jpg")
    voc_xml(root, "photo", voc_object("cat", 11, 9, 60, 48), head='<?xml version="1.0"?>')


def roboflow_coco(root: Path) -> None:
    for split in ("train", "valid", "test"):
        picture(root / split / f"{split}_jpg.rf.0.jpg", seed=sum(map(ord, split)))
        coco(root / split / "_annotations.coco.json", f"{split}_jpg.rf.0.jpg")


def roboflow_yolo(root: Path) -> None:
    for split in ("train", "valid"):
        picture(root / split / "images" / f"{split}_jpg.rf.0.jpg", seed=sum(map(ord, split)))
        (root / split / "labels").mkdir()
        (root / split / "labels" / f"{split}_jpg.rf.0.txt").write_text(LINE)
    text = "train: ../train/images\nval: ../valid/images\n\nnc: 1\nnames: ['cat']\n"
    (root / "data.yaml").write_text(text.replace("../", ""))


TOOLS: dict[Callable[[Path], None], tuple[str, set[str]]] = {
    label_studio_yolo: ("Label Studio, YOLO", {"train"}),
    label_studio_coco: ("Label Studio, COCO", {"train"}),
    cvat_coco: ("CVAT, COCO 1.0", {"default"}),
    cvat_coco_flat: ("CVAT, COCO 1.0", {"default"}),
    cvat_voc: ("CVAT, Pascal VOC 1.1", {"default"}),
    labelimg_yolo: ("LabelImg, YOLO", {"train"}),
    labelimg_voc: ("LabelImg, Pascal VOC", {"train"}),
    roboflow_coco: ("Roboflow, COCO", {"train", "valid", "test"}),
    roboflow_yolo: ("Roboflow, YOLO", {"train", "val"}),
}


@pytest.mark.parametrize("make", TOOLS, ids=lambda make: make.__name__)
def test_an_export_is_read(make: Callable[[Path], None], tmp_path: Path) -> None:
    _, splits = TOOLS[make]
    make(tmp_path)
    dataset = load_dataset(tmp_path)
    assert set(dataset.splits) == splits
    for split, images in contents(dataset).items():
        assert len(images) == 1, split
        ((_, box, *flags),) = next(iter(images.values()))
        assert box == pytest.approx(BOX[0][1], abs=1e-4)
        assert flags == [False, False]
    assert dataset.classes == ("cat",)
    assert check(dataset, (64, 64)).defects == ()


def test_the_table_names_these(tmp_path: Path) -> None:
    rows = [line for line in (ROOT / "docs" / "tutorial.md").read_text().splitlines() if line.startswith("| ")]
    assert {row.split("|")[1].strip() for row in rows[1:]} == {name for name, _ in TOOLS.values()}
