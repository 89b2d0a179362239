"""Exports of labelling tools, built file by file as those tools write them, are read as they are."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from folders import picture
from qmimic.data.check import check
from qmimic.data.convert import convert
from qmimic.data.formats import load_dataset
from qmimic.data.sample import NOTES
from qmimic.errors import InputError

SIZE = (100, 80)
BOXES = {"cat": (10.0, 20.0, 40.0, 60.0), "dog": (50.0, 8.0, 90.0, 24.0)}  # in every picture
YOLO = "0 0.25 0.5 0.3 0.5\n1 0.7 0.2 0.4 0.2\n"
NAMES = ("a", "b", "c")


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def photos(root: Path, pattern: str, names: tuple[str, ...] = NAMES) -> None:
    for name in names:
        picture(root / pattern.format(name), SIZE, sum(map(ord, str(pattern) + name)))


def xml(filename: str, first: int = 1, folder: str = "x", number: Callable[[float], object] = int) -> str:
    things = "".join(
        f"<object><name>{name}</name><pose>Unspecified</pose><truncated>0</truncated><difficult>0</difficult><bndbox>"
        f"<xmin>{number(x1 + first)}</xmin><ymin>{number(y1 + first)}</ymin>"
        f"<xmax>{number(x2)}</xmax><ymax>{number(y2)}</ymax></bndbox></object>"
        for name, (x1, y1, x2, y2) in BOXES.items()
    )
    size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height><depth>3</depth></size>"
    head = f"<folder>{folder}</folder><filename>{filename}</filename><path>C:\\Users\\me\\{filename}</path>"
    source = "<source><database>Unknown</database></source>"
    return f"<annotation>{head}{source}{size}<segmented>0</segmented>{things}</annotation>"


def coco_text(files: list[str], first: int = 1, more: list[dict[str, object]] | None = None) -> str:
    images = [{"id": k, "file_name": f, "width": SIZE[0], "height": SIZE[1]} for k, f in enumerate(files)]
    boxes = [
        {"id": 10 * k + label, "image_id": k, "category_id": first + label, "bbox": [x1, y1, x2 - x1, y2 - y1],
         "area": 1, "iscrowd": 0, "segmentation": [], "ignore": 0}
        for k in range(len(files)) for label, (x1, y1, x2, y2) in enumerate(BOXES.values())
    ]  # fmt: skip
    names = [{"id": first + k, "name": name, "supercategory": "animals"} for k, name in enumerate(BOXES)]
    return json.dumps(
        {"info": {}, "licenses": [], "images": images, "annotations": boxes, "categories": (more or []) + names}
    )


def label_studio_coco(root: Path) -> dict[str, int]:
    photos(root, "images/1f-{}.jpg")
    write(root, "result.json", coco_text([f"images\\/1f-{n}.jpg".replace("\\/", "/") for n in NAMES], 0))
    return {"train": 3}


def label_studio_yolo(root: Path) -> dict[str, int]:
    photos(root, "images/1f-{}.jpg")
    for name in NAMES:
        write(root, f"labels/1f-{name}.txt", YOLO)
    write(root, "classes.txt", "cat\ndog\n")
    write(root, "notes.json", '{"categories": [{"id": 0, "name": "cat"}], "info": {"year": 2024}}')
    return {"train": 3}


def label_studio_voc(root: Path) -> dict[str, int]:
    photos(root, "images/1f-{}.jpg")
    for name in NAMES:
        write(root, f"Annotations/1f-{name}.xml", xml(f"1f-{name}"))
    return {"train": 3}


def cvat_coco(root: Path) -> dict[str, int]:
    photos(root, "images/default/shelf/{}.jpg")
    write(root, "annotations/instances_default.json", coco_text([f"shelf/{n}.jpg" for n in NAMES]))
    return {"default": 3}


def cvat_voc(root: Path) -> dict[str, int]:
    photos(root, "JPEGImages/shelf/{}.jpg")
    photos(root, "SegmentationClass/shelf/{}.png")
    for name in NAMES:
        write(root, f"Annotations/shelf/{name}.xml", xml(f"shelf/{name}.jpg", number=float))
    write(root, "ImageSets/Main/default.txt", "".join(f"shelf/{name}\n" for name in NAMES))
    write(root, "labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:1,2,3::\ndog:4,5,6::\n")
    return {"default": 3}


def cvat_yolo(root: Path) -> dict[str, int]:
    photos(root, "obj_train_data/{}.jpg")
    for name in NAMES:
        write(root, f"obj_train_data/{name}.txt", YOLO)
    write(root, "obj.names", "cat\ndog\n")
    write(root, "obj.data", "classes = 2\ntrain = data/train.txt\nnames = data/obj.names\nbackup = backup/\n")
    write(root, "train.txt", "".join(f"data/obj_train_data/{name}.jpg\n" for name in NAMES))
    return {"train": 3}


def cvat_ultralytics(root: Path) -> dict[str, int]:
    for split, names in (("train", NAMES), ("val", ("d",))):
        photos(root, f"images/{split}/{{}}.jpg", names)
        for name in names:
            write(root, f"labels/{split}/{name}.txt", YOLO)
        write(root, f"{split}.txt", "".join(f"data/images/{split}/{name}.jpg\n" for name in names))
    write(root, "data.yaml", "names:\n  0: cat\n  1: dog\npath: .\ntrain: train.txt\nval: val.txt\n")
    return {"train": 3, "val": 1}


def labelimg_yolo(root: Path) -> dict[str, int]:
    photos(root, "{}.jpg")
    for name in NAMES:
        write(root, f"{name}.txt", YOLO)
    write(root, "classes.txt", "cat\ndog\n")
    return {"train": 3}


def labelimg_yolo_apart(root: Path) -> dict[str, int]:
    photos(root, "images/{}.jpg")
    for name in NAMES:
        write(root, f"labels/{name}.txt", YOLO)
    write(root, "labels/classes.txt", "cat\ndog\n")
    return {"train": 3}


def labelimg_voc(root: Path) -> dict[str, int]:
    photos(root, "{}.JPG")
    for name in NAMES:
        write(root, f"{name}.xml", xml(f"{name}.JPG"))
    return {"train": 3}


def roboflow_coco(root: Path) -> dict[str, int]:
    parent: list[dict[str, object]] = [{"id": 0, "name": "animals", "supercategory": "none"}]
    for split, names in (("train", NAMES), ("valid", ("d",)), ("test", ("e",))):
        photos(root, f"{split}/{{}}_jpg.rf.0a1b.jpg", names)
        write(root, f"{split}/_annotations.coco.json", coco_text([f"{n}_jpg.rf.0a1b.jpg" for n in names], 1, parent))
    write(root, "README.roboflow.txt", "animals - v1\n")
    return {"train": 3, "valid": 1, "test": 1}


def roboflow_yolo(root: Path) -> dict[str, int]:
    for split, names in (("train", NAMES), ("valid", ("d",)), ("test", ("e",))):
        photos(root, f"{split}/images/{{}}_jpg.rf.0a1b.jpg", names)
        for name in names:
            write(root, f"{split}/labels/{name}_jpg.rf.0a1b.txt", YOLO)
    paths = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
    write(root, "data.yaml", f"{paths}\nnc: 2\nnames: ['cat', 'dog']\n\nroboflow:\n  workspace: me\n  version: 1\n")
    write(root, "README.dataset.txt", "animals\n")
    write(root, "README.roboflow.txt", "animals - v1\n")
    return {"train": 3, "val": 1, "test": 1}


def roboflow_voc(root: Path) -> dict[str, int]:
    for split, names in (("train", NAMES), ("valid", ("d",)), ("test", ("e",))):
        photos(root, f"{split}/{{}}_jpg.rf.0a1b.jpg", names)
        for name in names:
            write(root, f"{split}/{name}_jpg.rf.0a1b.xml", xml(f"{name}_jpg.rf.0a1b.jpg"))
    write(root, "README.roboflow.txt", "animals - v1\n")
    return {"train": 3, "valid": 1, "test": 1}


def vott_voc(root: Path) -> dict[str, int]:
    export = root / "pets-PascalVOC-export"
    photos(export, "JPEGImages/{}.jpg", (*NAMES, "d"))
    for name in (*NAMES, "d"):
        write(export, f"Annotations/{name}.xml", xml(f"{name}.jpg", folder="Annotation"))
    for label in BOXES:
        write(export, f"ImageSets/Main/{label}_train.txt", "".join(f"{name}.jpg 1\n" for name in NAMES))
        write(export, f"ImageSets/Main/{label}_val.txt", "d.jpg 1\n")
    write(export, "pascal_label_map.pbtxt", "item {\n id: 1\n name: 'cat'\n}\n")
    return {"train": 3, "val": 1}


def fiftyone_coco(root: Path) -> dict[str, int]:
    photos(root, "data/{}.jpg")
    write(root, "labels.json", coco_text([f"{n}.jpg" for n in NAMES], 0))
    return {"train": 3}


def fiftyone_yolo(root: Path) -> dict[str, int]:
    for split, names in (("train", NAMES), ("val", ("d",))):
        photos(root, f"images/{split}/{{}}.jpg", names)
        for name in names:
            write(root, f"labels/{split}/{name}.txt", YOLO)
    write(
        root,
        "dataset.yaml",
        "names:\n  0: cat\n  1: dog\npath: /home/me/export\ntrain: ./images/train/\nval: ./images/val/\n",
    )
    return {"train": 3, "val": 1}


def fiftyone_voc(root: Path) -> dict[str, int]:
    photos(root, "data/{}.jpg")
    for name in NAMES:
        write(root, f"labels/{name}.xml", xml(f"{name}.jpg", folder=""))
    return {"train": 3}


def lower_case_voc(root: Path) -> dict[str, int]:
    photos(root, "images/{}.png")
    for name in NAMES:
        write(root, f"annotations/{name}.xml", xml(f"{name}.png", folder="images"))
    return {"train": 3}


def gbk_voc(root: Path) -> dict[str, int]:
    photos(root, "JPEGImages/{}.jpg")
    for name in NAMES:
        (root / "Annotations").mkdir(exist_ok=True)
        text = f'<?xml version="1.0" encoding="gb2312"?>{xml(f"{name}.jpg", folder="图片")}'
        (root / "Annotations" / f"{name}.xml").write_bytes(text.encode("gb2312"))
    return {"train": 3}


TOOLS = [
    label_studio_coco, label_studio_yolo, label_studio_voc, cvat_coco, cvat_voc, cvat_yolo, cvat_ultralytics,
    labelimg_yolo, labelimg_yolo_apart, labelimg_voc, roboflow_coco, roboflow_yolo, roboflow_voc, vott_voc,
    fiftyone_coco, fiftyone_yolo, fiftyone_voc, lower_case_voc, gbk_voc,
]  # fmt: skip


@pytest.mark.parametrize("build", TOOLS, ids=lambda build: build.__name__)
def test_an_export_is_read_as_it_is(tmp_path: Path, build: Callable[[Path], dict[str, int]]) -> None:
    root = tmp_path / "export"
    root.mkdir()
    splits = build(root)
    dataset = load_dataset(root)
    assert dataset.classes == ("cat", "dog")
    assert {split: len(samples) for split, samples in dataset.splits.items()} == splits
    for samples in dataset.splits.values():
        for sample in samples:
            found = dict(zip((dataset.classes[k] for k in sample.labels), sample.boxes, strict=True))
            for name, box in BOXES.items():
                np.testing.assert_allclose(found[name], box, atol=1e-3)
    report = check(dataset, (64, 64))
    assert [defect for defect in report.defects if defect.kind not in NOTES] == []
    assert report.accounted is not None
    assert report.accounted.labels.used == sum(splits.values()) == report.accounted.labels.found
    for to in ("voc", "coco", "yolo"):
        convert(dataset, tmp_path / to, to)
        again = load_dataset(tmp_path / to)
        assert {split: len(samples) for split, samples in again.splits.items()} == splits
        assert again.classes == dataset.classes


def test_two_pictures_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    root = tmp_path / "source"
    for folder in ("one", "two"):
        photos(root, f"JPEGImages/{folder}/{{}}.jpg", ("a",))
        write(root, f"Annotations/{folder}/a.xml", xml("a.jpg"))
    dataset = load_dataset(root)
    assert [sample.image_id for sample in dataset.splits["train"]] == ["one/a", "two/a"]
    for to in ("voc", "coco", "yolo"):
        convert(dataset, tmp_path / to, to)
        assert len(load_dataset(tmp_path / to).splits["train"]) == 2


def test_filename_decides_between_two_pictures_of_one_stem(tmp_path: Path) -> None:
    photos(tmp_path, "JPEGImages/{}.jpg", ("a",))
    photos(tmp_path, "JPEGImages/{}.png", ("a",))
    write(tmp_path, "Annotations/a.xml", xml("a.png"))
    (sample,) = load_dataset(tmp_path).splits["train"]
    assert sample.image is not None
    assert sample.image.name == "a.png"
    write(tmp_path, "Annotations/a.xml", xml("other.bmp"))
    assert [defect.kind for defect in load_dataset(tmp_path).defects] == ["two_images_for_one_label"]


def test_an_old_copy_of_an_annotation_is_named(tmp_path: Path) -> None:
    photos(tmp_path, "JPEGImages/{}.jpg", ("a",))
    for folder in ("Annotations", "Annotations/backup"):
        write(tmp_path, f"{folder}/a.xml", xml("a.jpg"))
    (defect,) = load_dataset(tmp_path).defects
    assert defect.kind == "two_labels_for_one_image"
    assert "Annotations/a.xml and Annotations/backup/a.xml" in defect.detail
    write(tmp_path, "Annotations_old/a.xml", xml("a.jpg"))
    accounts = load_dataset(tmp_path).accounted
    assert accounts is not None
    assert accounts.labels.left_out["outside_annotations"] == 1


def test_lists_name_pictures_in_any_spelling(tmp_path: Path) -> None:
    names = ("a", "b.x", "c d", "e%f", "g")
    photos(tmp_path, "JPEGImages/{}.jpg", names)
    for name in names:
        write(tmp_path, f"Annotations/{name}.xml", xml(f"{name}.jpg"))
    lines = ("a.jpg", "b.x", "JPEGImages/c%20d.jpg", "C:\\data\\JPEGImages\\e%f.jpg 1", "g.xml")
    write(tmp_path, "ImageSets/Main/train.txt", "\n".join(lines))
    dataset = load_dataset(tmp_path)
    assert [sample.image_id for sample in dataset.splits["train"]] == list(names)
    assert dataset.defects == ()


def test_a_nameless_object_is_a_defect(tmp_path: Path) -> None:
    photos(tmp_path, "JPEGImages/{}.jpg", ("a",))
    write(tmp_path, "Annotations/a.xml", xml("a.jpg").replace("<name>cat</name>", "<name> </name>"))
    dataset = load_dataset(tmp_path)
    assert [defect.kind for defect in dataset.defects] == ["bad_label"]
    assert dataset.splits["train"] == ()


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("annotations.xml", "<annotations><version>1.1</version></annotations>", "CVAT's own format; export as COCO"),
        ("project-1.json", '[{"id": 1, "annotations": []}]', "project-1.json is not of COCO's layout"),
        ("_annotations.csv", "filename,width\n", "_annotations.csv is a table"),
        ("photos/a.png", "", "1 pictures without labels"),
        ("export/labels/a.txt", "0 .5 .5 .2 .2", "There is one in"),
    ],
)
def test_a_folder_that_is_nearly_a_dataset_says_what_to_do(tmp_path: Path, name: str, text: str, why: str) -> None:
    write(tmp_path, name, text)
    with pytest.raises(InputError, match=why):
        load_dataset(tmp_path)
