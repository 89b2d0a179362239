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
    dataset = load_dataset(tmp_path)  # names are never invented
    assert (dataset.classes, dataset.splits) == ((), {"train": ()})
    assert [defect.kind for defect in dataset.defects] == ["no_class_names"]
    (tmp_path / "classes.txt").write_text("cat\ndog\nant\n")
    assert contents(load_dataset(tmp_path)) == {"train": {"a.png": [("ant", (0, 0, 200, 100), False, False)]}}
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
        "0,0.5,0.5,0.5,0.5",
        "0.0 0.5 0.5 0.5 0.5",
    ],
)
def test_a_bad_line_is_a_defect_and_its_picture_is_left_out(tmp_path: Path, line: str) -> None:
    picture(tmp_path / "images" / "a.png")
    label(tmp_path, "labels/a.txt", f"{line}\n0 0.5 0.5 0.5 0.5\n")
    label(tmp_path, "classes.txt", "cat")
    dataset = yolo.read(tmp_path)
    (defect,) = dataset.defects
    assert (defect.kind, defect.file) == ("bad_label", "labels/a.txt")
    assert "Line 1" in defect.detail
    assert dataset.splits["train"] == ()


def test_a_huge_class_index_is_a_defect(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    label(tmp_path, "classes.txt", "cat")
    label(tmp_path, "labels/a.txt", "2000000000 0.5 0.5 1 1\n99999999999999999999 0.5 0.5 1 1\n")
    dataset = yolo.read(tmp_path)
    assert [defect.kind for defect in dataset.defects] == ["bad_label"]
    assert dataset.classes == ("cat",)


def test_a_class_without_a_name_is_a_defect(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    label(tmp_path, "labels/a.txt", "0 0.5 0.5 1 1\n3 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat]\n")
    dataset = yolo.read(tmp_path)
    assert [defect.kind for defect in dataset.defects] == ["unknown_class"]
    assert dataset.splits["train"] == ()


def test_images_and_labels_that_cannot_be_read_are_told_apart(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    picture(tmp_path / "images" / "b.png")
    (tmp_path / "images" / "c.png").write_bytes(b"")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "a.txt").write_bytes(b"\xff\xff")
    (tmp_path / "classes.txt").write_text("cat")
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
def test_a_split_out_of_the_folder_is_not_followed(tmp_path: Path, train: str) -> None:
    picture(tmp_path / "outside" / "a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.yaml").write_text(f"train: {train}\nnames: [cat]\n")
    dataset = yolo.read(tmp_path / "set")
    assert dataset.splits == {"train": ()}
    assert [defect.kind for defect in dataset.defects] == ["missing_split"]


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        ("train: [images/one, images/two/sub]\nval: images/val", {"train": 2, "val": 1}),
        ("train: train.txt\nval: images/val", {"train": 2, "val": 1}),
        (
            "train: ../images/one\nval: ../images/val\ntest: ../test/images",
            {"train": 1, "val": 1, "test": 0, "two": 1},
        ),  # a labelled folder beside them is a split
    ],
)
def test_splits_are_folders_lists_or_several(tmp_path: Path, config: str, counts: dict[str, int]) -> None:
    for place in ("one/a.png", "two/sub/a.JFIF", "val/a.png"):
        picture(tmp_path / "images" / "x.jpg").rename(tmp_path / "images" / "x")
        (tmp_path / "images" / place).parent.mkdir(parents=True)
        (tmp_path / "images" / "x").rename(tmp_path / "images" / place)
        label(tmp_path, f"labels/{Path(place).with_suffix('.txt')}", "0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "train.txt").write_text("./images/one/a.png\nC:\\data\\images\\two\\sub\\a.JFIF\n")
    (tmp_path / "data.yaml").write_text(f"{config}\nnames: [007]\n")
    dataset = yolo.read(tmp_path)
    assert {split: len(own) for split, own in dataset.splits.items()} == counts
    assert dataset.classes == ("007",)
    ids = [sample.image_id for own in dataset.splits.values() for sample in own]
    assert len(set(ids)) == len(ids)
    assert dataset.accounted is not None
    assert dataset.accounted.pictures.found == 3
    assert dataset.accounted.pictures.used == sum(counts.values())


def test_a_list_names_what_is_no_picture(tmp_path: Path) -> None:
    for name in "ab":
        picture(tmp_path / "images" / f"{name}.png")
        label(tmp_path, f"labels/{name}.txt", "0 0.5 0.5 0.5 0.5\n")
    (tmp_path / "images" / "b.png").rename(tmp_path / "images" / "b.npy")
    (tmp_path / "train.txt").write_text("images/a.png\nimages/b.npy\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nnames: [cat]\n")
    said = [defect.detail for defect in yolo.read(tmp_path).defects]
    assert "It lists images/b.npy, whose name is not that of a picture." in said


def test_pixels_are_named(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    label(tmp_path, "classes.txt", "cat")
    label(tmp_path, "labels/a.txt", "0 12 20 40 40\n")
    picture(tmp_path / "images" / "b.png")
    label(tmp_path, "labels/b.txt", "0 0.5 0.5 0.5 0.5\n")
    dataset = yolo.read(tmp_path)
    (defect,) = dataset.defects
    assert "has pixels" in defect.detail
    assert "0 12 20 40 40" in defect.detail
    # Neither is its box taught, nor what it shows as background.
    assert [sample.image_id for own in dataset.splits.values() for sample in own] == ["b"]
    assert dataset.accounted is not None
    assert dataset.accounted.boxes.left_out == {"unreadable_label": 1}


def test_a_polygon_is_taken_by_its_box(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png", (100, 100))
    label(tmp_path, "classes.txt", "cat")
    label(tmp_path, "labels/a.txt", "0 0.25 0.5 0.75 0.125 0.5 0.75\n")
    assert yolo.read(tmp_path).splits["train"][0].boxes.tolist() == [[25, 12.5, 75, 75]]


def test_labels_without_a_picture_and_two_pictures_for_one_label_are_named(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp", "b.png", "._b.png"):
        picture(tmp_path / "images" / name)
    for name in ("a", "b", "gone"):
        label(tmp_path, f"labels/{name}.txt", "0 0.5 0.5 0.5 0.5\n")
    label(tmp_path, "labels/classes.txt", "cat\n")
    dataset = yolo.read(tmp_path)
    assert list(contents(dataset)["train"]) == ["b.png"]
    assert sorted(defect.kind for defect in dataset.defects) == ["label_without_image", "two_images_for_one_label"]
    assert dataset.accounted is not None
    assert dataset.accounted.as_json()["labels"] == {
        "found": 3,
        "used": 1,
        "left_out": {"two_images_for_one_label": 1, "without_picture": 1},
    }


def test_a_name_given_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.yaml").write_text("train: images\nnames: [cat, dog, cat]\n")
    with pytest.raises(InputError, match="'cat' twice"):
        yolo.read(tmp_path)


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
    label(tmp_path, "classes.txt", "cat")
    label(tmp_path, "labels/a.txt", "0 0.916667 0.5 0.166667 1.0\n")
    dataset = yolo.read(tmp_path)
    assert dataset.splits["train"][0].boxes[0, 2] > 640
    (sample,) = usable(dataset, drop_bad=False).splits["train"]
    assert sample.boxes[0, 2] == 640
