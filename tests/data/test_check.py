"""`data check` names every kind of defect, and its exit code says whether something needs mending."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from folders import coco_json, picture, voc_list, voc_object, voc_xml
from qmimic.cli import main
from qmimic.config import Recipe
from qmimic.data.formats import load_dataset, usable
from qmimic.errors import InputError
from qmimic.run.prepare import prepare


def report(root: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, dict[str, Any]]:
    code = main(["data", "check", str(root), "--json", *more])
    return code, json.loads(capsys.readouterr().out)


def found(root: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[tuple[str, str]]]:
    code, content = report(root, capsys)
    assert content["ok"] is (code == 0)
    return code, [(defect["kind"], defect["file"]) for defect in content["defects"]]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A VOC folder without a fault: train a, b; val c."""
    for seed, name in enumerate("abc"):
        picture(tmp_path / "JPEGImages" / f"{name}.png", (100, 80), seed)
        voc_xml(tmp_path, name, voc_object("cat", 1, 1, 100, 80), voc_object("dog", 11, 11, 20, 40))
    voc_list(tmp_path, "train", "a", "b")
    voc_list(tmp_path, "val", "c")
    return tmp_path


def test_a_clean_folder(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, content = report(root, capsys, "--size", "160", "200")
    assert code == 0
    assert content["images"] == {"train": 2, "val": 1}
    assert content["boxes"] == {"train": 4, "val": 2}
    assert content["classes"] == {"cat": 3, "dog": 3}
    # Twice as large in the network's input: 200 x 160, about 179; and 20 x 60, about 35.
    assert {size: count for size, count in content["sizes"].items() if count} == {"<64": 3, "<256": 3}
    assert main(["data", "check", str(root)]) == 0
    said = capsys.readouterr().out
    assert "Nothing needs mending." in said
    assert "at the training size (256 x 256)" in said


BROKEN_BOXES = [
    ((50, 50, 50, 60), "box_without_area"),
    ((50, 60, 70, 60), "box_without_area"),
    ((70, 50, 60, 60), "box_without_area"),
    ((-1, 1, 9, 9), "box_outside_image"),
    ((1, -3, 9, 9), "box_outside_image"),
    ((1, 1, 101.5, 9), "box_outside_image"),
    ((1, 1, 9, 81.5), "box_outside_image"),
    ((500, 500, 600, 600), "box_outside_image"),
]


@pytest.mark.parametrize(("sides", "kind"), BROKEN_BOXES)
def test_bad_boxes(root: Path, capsys: pytest.CaptureFixture[str], sides: tuple[object, ...], kind: str) -> None:
    voc_xml(root, "b", voc_object("cat", *sides), voc_object("dog", 1, 1, 9, 9))
    assert found(root, capsys) == (1, [(kind, "b")])
    with pytest.raises(InputError, match=r"1 bad labels or images.*drop_bad_boxes=true"):
        usable(load_dataset(root), drop_bad=False)
    boxes = usable(load_dataset(root), drop_bad=True).splits["train"][1].boxes
    assert boxes.tolist()[-1] == [0, 0, 9, 9]
    assert (boxes >= 0).all()
    assert (boxes <= [100, 80, 100, 80]).all()


@pytest.mark.parametrize("sides", [(50, 50, 51, 51), (0.6, 1, 100.4, 80.4), (0.1, 1, 101, 81)])
def test_boxes_that_are_small_or_a_hair_outside_are_fine(
    root: Path, capsys: pytest.CaptureFixture[str], sides: tuple[float, ...]
) -> None:
    voc_xml(root, "b", voc_object("cat", *sides))
    assert found(root, capsys) == (0, [])
    usable(load_dataset(root), drop_bad=False)


@pytest.mark.parametrize("keep", [0, 2000])
def test_an_unreadable_image(root: Path, capsys: pytest.CaptureFixture[str], keep: int) -> None:
    image = root / "JPEGImages" / "b.png"
    image.write_bytes(image.read_bytes()[:keep])
    assert found(root, capsys) == (1, [("unreadable_image", "b")])


def test_a_label_without_an_image(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "JPEGImages" / "b.png").unlink()
    assert found(root, capsys) == (1, [("label_without_image", "b")])
    assert len(usable(load_dataset(root), drop_bad=True).splits["train"]) == 1


def test_images_without_labels_are_only_noted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(root / "JPEGImages" / "spare.png", seed=9)
    picture(root / "JPEGImages" / "listed.png", seed=10)
    voc_list(root, "val", "c", "listed")
    expected = {
        ("image_without_label", "JPEGImages/spare.png"),
        ("image_without_label", "JPEGImages/listed.png"),
    }
    code, defects = found(root, capsys)
    assert (code, set(defects), len(defects)) == (0, expected, 2)
    usable(load_dataset(root), drop_bad=False)


def test_an_image_of_another_name_than_its_label_is_labelled(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "JPEGImages" / "b.png").rename(root / "JPEGImages" / "other.png")
    voc_xml(root, "b", "<filename>other.png</filename>", voc_object("cat", 1, 1, 9, 9))
    assert found(root, capsys) == (0, [])


def test_another_size_than_stated(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc_xml(root, "a", "<size><width>60</width><height>100</height></size>", voc_object("cat", 1, 1, 9, 9))
    voc_xml(root, "b", "<size><width>80</width><height>100</height></size>", voc_object("dog", 1, 1, 9, 9))
    code, content = report(root, capsys)
    other, turned = content["defects"]
    assert (code, other["kind"], turned["kind"]) == (1, "size_mismatch", "size_mismatch")
    assert other["detail"] == "The label says 60 x 100, the image has 100 x 80."
    assert turned["detail"].startswith("The label says 80 x 100, the image has 100 x 80. Width and height are swapped")
    assert content["accounted"]["pictures"] == {"found": 3, "used": 1, "left_out": {"size_mismatch": 2}}
    with pytest.raises(InputError, match=r"the first: a: The label says 60 x 100"):
        usable(load_dataset(root), drop_bad=False)
    assert usable(load_dataset(root), drop_bad=True).accounted.pictures.used == 1


def test_a_class_that_training_never_shows(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc_xml(root, "c", voc_object("ant", 1, 1, 9, 9), voc_object("cat", 1, 1, 9, 9))
    voc_list(root, "trainval", "a", "b", "c")
    assert found(root, capsys) == (1, [("unknown_class", "ant")])


def test_a_category_that_is_not_listed_and_one_without_boxes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", seed=1)
    boxes = [{"image_id": 1 + (k > 1), "category_id": k, "bbox": [1, 1, 9, 9]} for k in (1, 5)]
    images = [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}]
    coco_json(tmp_path, images, boxes, (1, "cat"), (2, "dog"))
    assert found(tmp_path, capsys) == (1, [("unknown_class", "instances_train.json"), ("empty_class", "dog")])


def test_a_class_without_boxes_alone_is_only_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "a.png")
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9]}
    coco_json(tmp_path, [{"id": 1, "file_name": "a.png"}], [box], (1, "cat"), (2, "dog"))
    assert found(tmp_path, capsys) == (0, [("empty_class", "dog")])


def test_a_folder_without_any_box(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "JPEGImages" / "a.png")
    voc_xml(tmp_path, "a")
    code, defects = found(tmp_path, capsys)
    assert (code, [kind for kind, _ in defects]) == (1, ["no_boxes"])


def test_a_val_split_without_any_box(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc_xml(root, "c")
    assert found(root, capsys) == (1, [("no_boxes", "val")])


def test_difficult_boxes_alone_are_nothing_to_find(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hard = "<difficult>1</difficult>"
    voc_xml(root, "c", voc_object("cat", 1, 1, 100, 80, extra=hard))
    assert found(root, capsys) == (1, [("no_boxes", "val")])
    with pytest.raises(InputError, match=r"No image of the split 'val' of .* has a box to find"):
        prepare(Recipe(data={"root": str(root)}))
    # A class that train shows in difficult boxes alone is learnt as little as one that it does not show.
    voc_xml(root, "c", voc_object("dog", 1, 1, 100, 80))
    for name in "ab":
        voc_xml(
            root,
            name,
            voc_object("cat", 1, 1, 100, 80),
            voc_object("dog", 11, 11, 20, 40, extra=hard),
        )
    assert found(root, capsys) == (1, [("unknown_class", "dog")])
    with pytest.raises(InputError, match=r"has the class dog, which no image of 'train' shows"):
        prepare(Recipe(data={"root": str(root)}))


def test_the_same_pixels_in_two_splits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(root / "JPEGImages" / "a.png", root / "JPEGImages" / "c.png")
    code, content = report(root, capsys)
    (defect,) = content["defects"]
    assert (code, defect["kind"], defect["file"]) == (1, "duplicate_across_splits", "c")
    assert defect["detail"] == "The same image is a of train."


def test_a_union_of_splits_is_no_duplicate_and_counts_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc_list(root, "trainval", "a", "b", "c")
    voc_list(root, "none")  # an empty split makes no union of the others
    code, content = report(root, capsys)
    assert (code, content["defects"]) == (0, [])
    assert content["classes"] == {"cat": 3, "dog": 3}
    voc_xml(root, "b", voc_object("cat", 5, 5, 5, 5))
    assert found(root, capsys) == (1, [("box_without_area", "b")])


def test_a_validation_split_inside_the_training_split_is_found(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc_list(root, "val", "b")
    voc_list(root, "train", "a", "b", "c")
    assert found(root, capsys) == (1, [("duplicate_across_splits", "b")])


def test_the_first_defects_are_drawn(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "drawn" / "defects.png"
    assert main(["data", "check", str(root), "--pictures", str(sheet)]) == 0
    assert "None of the defects can be drawn." in capsys.readouterr().out
    assert not sheet.exists()
    voc_xml(root, "b", voc_object("cat", 50, 50, 50, 60), voc_object("dog", 1, 1, 400, 9))
    assert main(["data", "check", str(root), "--pictures", str(sheet)]) == 1
    assert str(sheet) in capsys.readouterr().out
    with Image.open(sheet) as picture_of_them:
        assert picture_of_them.size == (320, 320)  # one picture, though it has two defects
    assert main(["data", "check", str(root), "--pictures", str(tmp_path / "defects.txt")]) == 2
    assert "is not the name of a picture" in capsys.readouterr().err


def test_many_defects_of_a_kind_are_counted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voc_xml(root, "b", *(voc_object("cat", 5 + k, 5, 5 + k, 60) for k in range(25)))
    assert main(["data", "check", str(root)]) == 1
    said = capsys.readouterr().out
    assert said.count("has no area") == 20
    assert "box_without_area: 5 more; --json lists all" in said
    assert len(report(root, capsys)[1]["defects"]) == 25


def test_folders_that_cannot_be_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(tmp_path / "gone")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "holds no dataset" in capsys.readouterr().err


def test_real_folders_and_their_known_faults(real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, defects = found(real_data / "bccd", capsys)
    assert code == 1
    assert defects.pop(0)[0] == "another_layout"  # a COCO copy of the same boxes
    assert sorted(defects) == [("box_without_area", "BloodImage_00338"), ("box_without_area", "BloodImage_00343")]
    code, defects = found(real_data / "raccoon", capsys)
    assert (code, {kind for kind, _ in defects}) == (
        1,
        {"another_layout", "duplicate_across_splits", "same_image_other_labels"},
    )
