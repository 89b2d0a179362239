"""Reading YOLO folders written by hand."""

from pathlib import Path

import pytest

from folders import contents, picture
from qmimic.data import yolo
from qmimic.data.formats import load_dataset, usable
from qmimic.errors import InputError


def label(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_folder_with_data_yaml(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "train" / "a.png", (200, 100))
    picture(tmp_path / "images" / "val" / "b.png", (64, 32))
    label(tmp_path, "labels/train/a.txt", "1 0.5 0.5 0.25 0.5\n\n0 0.25 0.125 0.5 0.25\n")
    label(tmp_path, "labels/val/b.txt", "")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert contents(dataset) == {
        "train": {"a.png": [("dog", (75, 25, 125, 75), False, False), ("cat", (0, 0, 100, 25), False, False)]},
        "val": {"b.png": []},
    }
    assert dataset.splits["train"][0].size == (200, 100)


def test_a_plain_folder(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", (200, 100))
    label(tmp_path, "labels/a.txt", "2 0.5 0.5 1 1\n")
    assert contents(load_dataset(tmp_path)) == {"train": {"a.png": [("class2", (0, 0, 200, 100), False, False)]}}
    (tmp_path / "classes.txt").write_text("cat\ndog\nant\n")
    assert yolo.read(tmp_path).classes == ("cat", "dog", "ant")


def test_splits_that_data_yaml_has_no_key_for(tmp_path: Path) -> None:
    for split in ("train", "extra", "pictures_alone"):
        picture(tmp_path / "images" / split / "a.png")
    label(tmp_path, "labels/train/a.txt", "")
    label(tmp_path, "labels/extra/a.txt", "")
    (tmp_path / "data.yaml").write_text("train: images/train\nnames: {0: cat}\n")
    assert sorted(yolo.read(tmp_path).splits) == ["extra", "train"]


def test_splits_beside_each_other(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "images" / "a.png", (100, 100))
    label(tmp_path, "train/labels/a.txt", "0 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text("train: train/images\nnames: {1: dog, 0: cat}\n")
    assert contents(yolo.read(tmp_path)) == {"train": {"a.png": [("cat", (0, 0, 100, 100), False, False)]}}


@pytest.mark.parametrize(
    "line",
    [
        "0 0.5 0.5 1",
        "0 0.5 0.5 1 1 0.9",
        "x 0.5 0.5 1 1",
        "-1 0.5 0.5 1 1",
        "0 nan 0.5 1 1",
        "0 0.5 0.5 inf 1",
        "9" * 30,
    ],
)
def test_a_bad_line_is_a_defect_and_the_rest_is_read(tmp_path: Path, line: str) -> None:
    picture(tmp_path / "images" / "a.png")
    label(tmp_path, "labels/a.txt", f"{line}\n0 0.5 0.5 0.5 0.5\n")
    dataset = yolo.read(tmp_path)
    (defect,) = dataset.defects
    assert (defect.kind, defect.file) == ("bad_label", "labels/a.txt")
    assert "Line 1" in defect.detail
    assert len(dataset.splits["train"][0].boxes) == 1


def test_a_huge_class_index_is_a_defect(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    label(tmp_path, "labels/a.txt", "2000000000 0.5 0.5 1 1\n99999999999999999999 0.5 0.5 1 1\n")
    dataset = yolo.read(tmp_path)
    assert [defect.kind for defect in dataset.defects] == ["bad_label", "bad_label"]
    assert dataset.classes == ()


def test_a_class_without_a_name_is_a_defect(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    label(tmp_path, "labels/a.txt", "0 0.5 0.5 1 1\n3 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    dataset = yolo.read(tmp_path)
    assert [defect.kind for defect in dataset.defects] == ["unknown_class"]
    assert dataset.splits["train"][0].labels.tolist() == [0]


def test_images_and_labels_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    (tmp_path / "images" / "c.png").write_bytes(b"")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_bytes(b"\xff\xff")
    found = {defect.file: defect.kind for defect in yolo.read(tmp_path).defects}
    assert found == {
        "labels/a.txt": "bad_label",
        "images/b.png": "image_without_label",
        "images/c.png": "unreadable_image",
    }


@pytest.mark.parametrize(
    "text",
    ["names: [cat", "just text", "names: {0: cat, 2: dog}", "names: {a: cat, 0: dog}", "names: 3", "names: [[]]"],
)
def test_a_broken_data_yaml_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data.yaml").write_text(text)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=r"data\.yaml"):
        yolo.read(tmp_path)


@pytest.mark.parametrize("train", ["../outside", "/etc"])
def test_a_split_out_of_the_folder_is_refused(tmp_path: Path, train: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.yaml").write_text(f"train: {train}\nnames: [cat]\n")
    with pytest.raises(InputError, match="leads out of"):
        yolo.read(tmp_path / "set")


def test_a_linked_split_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    picture(tmp_path / "outside" / "a.png")
    (tmp_path / "set" / "images").mkdir(parents=True)
    (tmp_path / "set" / "labels").mkdir()
    (tmp_path / "set" / "images" / "train").symlink_to(tmp_path / "outside")
    with pytest.raises(InputError, match="leads out of"):
        yolo.read(tmp_path / "set")


def test_shares_rounded_to_a_few_digits_do_not_leave_the_image(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", (640, 480))
    # Ends at 1.0000005 of the width, as any tool with six digits writes it.
    label(tmp_path, "labels/a.txt", "0 0.916667 0.5 0.166667 1.0\n")
    dataset = yolo.read(tmp_path)
    assert dataset.splits["train"][0].boxes[0, 2] > 640
    (sample,) = usable(dataset, drop_bad=False).splits["train"]
    assert sample.boxes[0, 2] == 640
