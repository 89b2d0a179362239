"""Reading COCO JSON against files written by hand, and what is written against pycocotools."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pycocotools.coco import COCO

from folders import coco_json, contents, picture
from qmimic.data import coco
from qmimic.data.convert import convert
from qmimic.errors import InputError
from qmimic.scores.detections_file import read_detections

IMAGE = {"id": 7, "file_name": "a.jpg", "width": 100, "height": 80}


def box(category: int, *sides: float, **more: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 7, "category_id": category, "bbox": sides, **more}


def test_boxes_become_corners_and_gaps_in_ids_close(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    coco_json(tmp_path, [IMAGE], [box(90, 1.5, 2, 10, 20.25), box(3, 0, 0, 5, 5)], (90, "cat"), (3, "dog"), (5, "ant"))
    dataset = coco.read(tmp_path)
    assert dataset.classes == ("dog", "ant", "cat")
    assert contents(dataset) == {
        "train": {"a.jpg": [("cat", (1.5, 2, 11.5, 22.25), False, False), ("dog", (0, 0, 5, 5), False, False)]}
    }
    assert dataset.splits["train"][0].size == (100, 80)
    assert dataset.splits["train"][0].image == tmp_path / "images" / "a.jpg"


def test_crowd_and_difficult_are_flags_of_their_boxes(tmp_path: Path) -> None:
    annotations = [box(1, 0, 0, 5, 5, iscrowd=1), box(1, 0, 0, 6, 6, difficult=1), box(1, 0, 0, 7, 7, iscrowd=0)]
    coco_json(tmp_path, [IMAGE], annotations, (1, "cat"))
    (sample,) = coco.read(tmp_path).splits["train"]
    assert sample.crowd.tolist() == [True, False, False]
    assert sample.difficult.tolist() == [False, True, False]


def test_a_category_that_is_not_listed_is_a_defect(tmp_path: Path) -> None:
    coco_json(tmp_path, [IMAGE], [box(2, 0, 0, 5, 5), box(1, 0, 0, 6, 6)], (1, "cat"))
    dataset = coco.read(tmp_path)
    (defect,) = dataset.defects
    assert defect.kind == "unknown_class"
    assert "category 2" in defect.detail
    assert dataset.splits["train"] == ()  # what cannot be read must not be taught as background


def test_boxes_of_an_unknown_image_are_a_defect(tmp_path: Path) -> None:
    coco_json(tmp_path, [IMAGE], [{**box(1, 0, 0, 5, 5), "image_id": 8}], (1, "cat"))
    assert [defect.kind for defect in coco.read(tmp_path).defects] == ["label_without_image"]


@pytest.mark.parametrize("side", [float("nan"), float("inf"), 1e300])
def test_a_box_that_is_not_finite_is_a_defect(tmp_path: Path, side: float) -> None:
    coco_json(tmp_path, [IMAGE], [box(1, 0, 0, side, 5)], (1, "cat"))
    dataset = coco.read(tmp_path)
    assert [defect.kind for defect in dataset.defects] == ["bad_label"]
    assert dataset.splits["train"] == ()


def test_a_json_cut_in_half_is_refused(tmp_path: Path) -> None:
    path = coco_json(tmp_path, [IMAGE], [box(1, 0, 0, 5, 5)], (1, "cat"))
    path.write_text(path.read_text()[:70])
    with pytest.raises(InputError, match=r"instances_train\.json is not a whole JSON"):
        coco.read(tmp_path)


@pytest.mark.parametrize(
    "content",
    [[], {"images": 3}, {"images": [], "annotations": 3}, "[" * 5000],
    ids=["list", "number", "annotations", "deep"],
)
def test_json_of_another_layout_is_refused(tmp_path: Path, content: object) -> None:
    path = tmp_path / "instances_train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=r"instances_train\.json"):
        coco.read(tmp_path)


@pytest.mark.parametrize("name", ["../outside.jpg", "/etc/passwd", "a\0.jpg", "../../../gone.jpg", ".."])
def test_a_path_out_of_the_folder_is_not_followed(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "outside.jpg")
    coco_json(tmp_path / "set", [{**IMAGE, "file_name": name}], [], (1, "cat"))
    (sample,) = coco.read(tmp_path / "set").splits["train"]
    assert sample.image is not None
    assert sample.image.is_relative_to(tmp_path / "set")
    assert not sample.image.exists()


@pytest.mark.parametrize("name", ["C:\\me\\images\\my cat.jpg", "/home/me/my%20cat.jpg", "../images/my cat.jpg"])
def test_a_path_of_another_machine_is_found_by_its_tail(tmp_path: Path, name: str) -> None:
    path = picture(tmp_path / "images" / "my cat.jpg")
    coco_json(tmp_path, [{**IMAGE, "file_name": name}], [box(1, 0, 0, 5, 5)], (1, "cat"))
    (sample,) = coco.read(tmp_path).splits["train"]
    assert sample.image == path


@pytest.mark.parametrize(
    "entry",
    [
        {"bbox": None},
        {"bbox": []},
        {"iscrowd": None},
        {"category_id": "1"},
        {"bbox": [0, 0, "x", 5]},
    ],
)
def test_one_odd_entry_leaves_out_its_picture_and_no_other(tmp_path: Path, entry: dict[str, Any]) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.jpg")
    images = [IMAGE, {**IMAGE, "id": 8, "file_name": "b.jpg"}]
    annotations = [{**box(1, 0, 0, 5, 5), **entry}, box(1, 0, 0, 6, 6), {**box(1, 0, 0, 7, 7), "image_id": 8}]
    coco_json(tmp_path, images, annotations, (1, "cat"))
    dataset = coco.read(tmp_path)
    assert contents(dataset) == {"train": {"b.jpg": [("cat", (0, 0, 7, 7), False, False)]}}
    (defect,) = dataset.defects
    assert "annotations[0]" in defect.detail
    assert dataset.accounted is not None
    assert dataset.accounted.as_json() == {
        "pictures": {"found": 2, "used": 1, "left_out": {"unreadable_label": 1}},
        "labels": {"found": 2, "used": 1, "left_out": {"unreadable_label": 1}},
        "boxes": {"found": 3, "used": 1, "left_out": {"unreadable_label": 2}},
    }


def test_an_image_entry_that_cannot_be_read_is_left_out_alone(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / f"{name}.jpg")
    images = [{**IMAGE, "width": 0}, {**IMAGE, "id": 8, "file_name": "b.jpg"}]
    coco_json(tmp_path, images, [{**box(1, 0, 0, 7, 7), "image_id": 8}], (1, "cat"))
    dataset = coco.read(tmp_path)
    assert list(contents(dataset)["train"]) == ["b.jpg"]
    assert "images[0]" in dataset.defects[0].detail


def test_ids_of_categories_count_within_their_file(tmp_path: Path) -> None:
    for split, first, second in (("val", 2, 1), ("train", 1, 2)):
        picture(tmp_path / split / "a.jpg")
        path = coco_json(tmp_path, [IMAGE], [box(first, 0, 0, 5, 5)], (first, "cat"), (second, "dog"))
        path.rename(tmp_path / f"instances_{split}.json")
    dataset = coco.read(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert {split: own["a.jpg"][0][0] for split, own in contents(dataset).items()} == {"train": "cat", "val": "cat"}
    assert [own[0].image_id for own in dataset.splits.values()] == ["train/a", "val/a"]
    (tmp_path / "found.json").write_text(
        json.dumps([{"image_id": 7, "category_id": 2, "bbox": [0, 0, 5, 5], "score": 1}])
    )
    found = read_detections(tmp_path / "found.json", dataset, "val")
    assert {name: own.labels.tolist() for name, own in found.items()} == {"val/a": [0]}


def test_a_root_category_is_no_class_and_equal_names_are_one(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    path = coco_json(tmp_path, [IMAGE], [box(1, 0, 0, 5, 5), box(3, 0, 0, 6, 6)])
    content = json.loads(path.read_text())
    content["categories"] = [
        {"id": 0, "name": "animals", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "animals"},
        {"id": 2, "name": 7, "supercategory": "animals"},
        {"id": 3, "name": "cat", "supercategory": "animals"},
    ]
    path.write_text(json.dumps(content))
    dataset = coco.read(tmp_path)
    assert dataset.classes == ("cat", "7")
    assert [thing[0] for thing in contents(dataset)["train"]["a.jpg"]] == ["cat", "cat"]


def test_the_nearer_of_two_files_counts_and_equally_near_ones_are_refused(tmp_path: Path) -> None:
    picture(tmp_path / "a.jpg")
    path = coco_json(tmp_path, [IMAGE], [box(1, 0, 0, 5, 5)], (1, "cat"))
    for folder in ("annotations", "backup"):
        (tmp_path / folder).mkdir()
    (tmp_path / "backup" / path.name).write_text(json.dumps({"images": [], "categories": []}))
    path.rename(tmp_path / "annotations" / path.name)
    dataset = coco.read(tmp_path)
    assert len(dataset.splits["train"]) == 1
    assert [(d.kind, d.file) for d in dataset.defects] == [("unused_label_file", f"backup/{path.name}")]
    (tmp_path / "annotations" / "train.json").write_text(json.dumps({"images": []}))
    with pytest.raises(InputError, match=r"instances_train\.json and .*train\.json are both of the split 'train'"):
        coco.read(tmp_path)


def test_one_file_of_another_name_is_train(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.jpg")
    coco_json(tmp_path, [{**IMAGE, "file_name": "images\\a.jpg"}], [], (1, "cat")).rename(tmp_path / "result.json")
    assert list(contents(coco.read(tmp_path))["train"]) == ["a.jpg"]


def test_a_missing_or_endless_name_is_an_image_that_is_not_there(tmp_path: Path) -> None:
    coco_json(tmp_path, [IMAGE, {**IMAGE, "id": 8, "file_name": "x" * 3000 + ".jpg"}], [], (1, "cat"))
    assert [s.image is not None and s.image.name[:5] for s in coco.read(tmp_path).splits["train"]] == ["a.jpg", "xxxxx"]


@pytest.mark.parametrize(
    ("json_path", "image_path", "split"),
    [
        ("annotations/instances_train2017.json", "train2017/a.jpg", "train"),
        ("annotations/instances_val.json", "images/val/a.jpg", "val"),
        ("valid/_annotations.coco.json", "valid/a.jpg", "valid"),
        ("test.json", "a.jpg", "test"),
        ("annotations/train.json", "images/train2017/a.jpg", "train"),
    ],
)
def test_usual_layouts_are_found(tmp_path: Path, json_path: str, image_path: str, split: str) -> None:
    path = coco_json(tmp_path / "made", [IMAGE], [], (1, "cat"))
    target = tmp_path / json_path
    target.parent.mkdir(exist_ok=True)
    path.rename(target)
    picture(tmp_path / image_path)
    dataset = coco.read(tmp_path)
    assert list(dataset.splits) == [split]
    assert dataset.splits[split][0].image == tmp_path / image_path


def test_what_is_written_is_coco_to_pycocotools(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "in" / "images" / "a.jpg")
    annotations = [box(90, 1.5, 2, 10, 20), box(3, 0, 0, 5, 5, iscrowd=1)]
    coco_json(tmp_path / "in", [IMAGE], annotations, (3, "dog"), (90, "cat"))
    convert(coco.read(tmp_path / "in"), tmp_path / "out", "coco")
    written = COCO(str(tmp_path / "out" / "instances_train.json"))
    assert written.loadCats(written.getCatIds()) == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert written.loadImgs(1) == [{**IMAGE, "id": 1}]
    first, second = written.loadAnns(written.getAnnIds(imgIds=[1]))
    assert first == {"id": 1, "image_id": 1, "category_id": 2, "bbox": [1.5, 2, 10, 20], "area": 200, "iscrowd": 0}
    assert second == {"id": 2, "image_id": 1, "category_id": 1, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 1}


def test_images_of_one_name_in_two_folders_are_two_images(tmp_path: Path) -> None:
    images = []
    for number, name in enumerate(("left/001.png", "right/001.png", "right/002.png")):
        picture(tmp_path / name)
        images.append({"id": number, "file_name": name})
    (tmp_path / "instances_val.json").write_text(json.dumps({"images": images}))
    dataset = replace(coco.read(tmp_path), classes=("cat",))
    assert [sample.image_id for sample in dataset.splits["val"]] == ["left/001", "right/001", "002"]
    found = tmp_path / "found.json"
    for image in ({"file_name": "right/001.png"}, {"image_id": 1}):
        found.write_text(json.dumps([{**image, "category": "cat", "bbox": [0, 0, 5, 5], "score": 0.5}]))
        assert list(read_detections(found, dataset, "val")) == ["right/001"]
