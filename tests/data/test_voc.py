"""Reading Pascal VOC against XML written by hand."""

from pathlib import Path

import pytest

from folders import contents, picture, voc_list, voc_object, voc_xml
from qmimic.data import coco, voc
from qmimic.data.check import check
from qmimic.data.formats import load_dataset
from qmimic.errors import InputError


def kinds(root: Path) -> list[str]:
    return [defect.kind for defect in voc.read(root).defects]


def test_boxes_become_zero_based_and_exclusive(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages" / "a.jpg")
    # xmin = 1 is the first column; a box from 11 to 20 covers ten columns.
    voc_xml(tmp_path, "a", voc_object("dog", 1, 1, 100, 80), voc_object("cat", 11, 21, 20, 40))
    dataset = voc.read(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert contents(dataset) == {
        "train": {"a.jpg": [("dog", (0, 0, 100, 80), False, False), ("cat", (10, 20, 20, 40), False, False)]}
    }


def test_fractions_flags_and_spaces_are_read(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages" / "a.jpg")
    voc_xml(
        tmp_path,
        "a",
        voc_object(" cat\n", "48.5", " 240.25 ", "195", "3.7e2", extra="<difficult>1</difficult>"),
        voc_object("cat", 1, 1, 9, 9, extra="<difficult>0</difficult><crowd>1</crowd>"),
        "<size><width>100</width><height>80</height></size>",
    )
    dataset = voc.read(tmp_path)
    (sample,) = dataset.splits["train"]
    assert sample.boxes.tolist() == [[47.5, 239.25, 195, 370], [0, 0, 9, 9]]
    assert sample.difficult.tolist() == [True, False]
    assert sample.crowd.tolist() == [False, True]
    assert sample.size == (100, 80)


def test_parts_of_an_object_are_no_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>3</xmin><ymin>3</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></part>"
    voc_xml(tmp_path, "a", voc_object("person", 1, 1, 9, 9, extra=part))
    dataset = voc.read(tmp_path)
    assert dataset.classes == ("person",)
    assert dataset.splits["train"][0].boxes.tolist() == [[0, 0, 9, 9]]


@pytest.mark.parametrize("stated", ["<width>²</width><height>3</height>", "<width>0</width>", "<width>x</width>", ""])
def test_a_size_that_is_no_size_counts_as_none(tmp_path: Path, stated: str) -> None:
    voc_xml(tmp_path, "a", f"<size>{stated}</size>")
    assert voc.read(tmp_path).splits["train"][0].size is None


def test_splits_are_the_lists_of_image_sets(tmp_path: Path) -> None:
    for name in ("a", "b", "c d", "unused"):
        voc_xml(tmp_path, name, voc_object("cat", 1, 1, 9, 9))
    voc_list(tmp_path, "train", "a", "c d")
    voc_list(tmp_path, "val", "b  1", "", "gone")
    voc_list(tmp_path, "cat_train", "a  1", "c d -1")  # which images show a class: no split
    voc_list(tmp_path, "extra_train", "a")  # no flags: a split
    dataset = voc.read(tmp_path)
    ids = {split: [sample.image_id for sample in samples] for split, samples in dataset.splits.items()}
    assert ids == {"train": ["a", "c d"], "val": ["b"], "extra_train": ["a"]}
    assert [(defect.kind, defect.file) for defect in dataset.defects] == [
        ("label_without_image", "ImageSets/Main/val.txt")
    ]
    assert dataset.accounted is not None
    assert dataset.accounted.labels.left_out["not_listed"] == 1


def test_an_image_in_two_splits_has_the_same_labels_in_both(tmp_path: Path) -> None:
    voc_xml(tmp_path, "a", voc_object("zebra", 1, 1, 9, 9), voc_object("ant", 1, 1, 9, 9))
    voc_xml(tmp_path, "b", voc_object("bee", 1, 1, 9, 9))
    voc_list(tmp_path, "train", "a")
    voc_list(tmp_path, "val", "b")
    voc_list(tmp_path, "trainval", "a", "b")
    dataset = voc.read(tmp_path)
    assert [sample.labels.tolist() for sample in dataset.splits["trainval"]] == [[2, 0], [1]]
    assert dataset.unions == {"trainval"}


def test_a_file_with_entities_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "lol"><!ENTITY y "&x;&x;&x;">]>'
    voc_xml(tmp_path, "a", voc_object("&y;", 1, 1, 9, 9), head=bomb)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    voc_xml(tmp_path, "b", voc_object("&z;", 1, 1, 9, 9), head=f'<!DOCTYPE a [<!ENTITY z SYSTEM "{secret.as_uri()}">]>')
    assert kinds(tmp_path) == ["bad_label", "bad_label"]
    assert voc.read(tmp_path).classes == ()


def test_an_xml_cut_in_half_is_one_defect_and_the_rest_is_read(tmp_path: Path) -> None:
    voc_xml(tmp_path, "a", voc_object("cat", 1, 1, 9, 9))
    cut = voc_xml(tmp_path, "b", voc_object("dog", 1, 1, 9, 9))
    cut.write_text(cut.read_text()[:60])
    voc_list(tmp_path, "train", "a", "b")
    dataset = voc.read(tmp_path)
    assert kinds(tmp_path) == ["bad_label"]
    assert dataset.classes == ("cat",)
    assert len(dataset.splits["train"]) == 1


@pytest.mark.parametrize("filename", ["../../outside.jpg", "../outside.jpg", "/etc/passwd", "..", "a" * 5000, ""])
def test_a_name_that_leads_out_of_the_folder_is_never_followed(tmp_path: Path, filename: str) -> None:
    picture(tmp_path / "outside.jpg")
    root = tmp_path / "set"
    voc_xml(root, "a", f"<filename>{filename}</filename>", voc_object("cat", 1, 1, 9, 9))
    assert [defect.kind for defect in check(voc.read(root), (64, 64)).defects] == ["label_without_image"]


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    (root / "JPEGImages").mkdir(parents=True)
    (root / "JPEGImages" / "a.jpg").symlink_to(picture(tmp_path / "outside.jpg"))
    voc_xml(root, "a", voc_object("cat", 1, 1, 9, 9))
    assert kinds(root) == ["bad_label"]


@pytest.mark.parametrize("side", ["nan", "inf", "-inf", "1e300", "", "four"])
def test_a_box_that_is_not_finite_is_a_defect(tmp_path: Path, side: str) -> None:
    voc_xml(tmp_path, "a", voc_object("cat", 1, 1, side, 9), voc_object("dog", 1, 1, 9, 9))
    voc_xml(tmp_path, "b", voc_object("dog", 1, 1, 9, 9))
    dataset = voc.read(tmp_path)
    assert [(defect.kind, defect.file) for defect in dataset.defects] == [("bad_label", "Annotations/a.xml")]
    assert contents(dataset)["train"] == {"b": [("dog", (0, 0, 9, 9), False, False)]}  # `a` is not background
    assert dataset.accounted is not None
    assert dataset.accounted.boxes.left_out["unreadable_label"] == 2


def test_a_box_without_all_sides_is_a_defect(tmp_path: Path) -> None:
    voc_xml(tmp_path, "a", "<object><name>cat</name><bndbox><xmin>1</xmin></bndbox></object>")
    assert kinds(tmp_path) == ["bad_label"]


def test_boxes_without_area_are_read_as_they_are(tmp_path: Path) -> None:
    voc_xml(tmp_path, "a", voc_object("cat", 504, 337, 504, 337), voc_object("cat", 50, 50, 40, 40))
    assert voc.read(tmp_path).splits["train"][0].boxes.tolist() == [[503, 336, 504, 337], [49, 49, 40, 40]]


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    voc_xml(tmp_path, "a")
    voc_list(tmp_path, "train", "a")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(InputError, match="UTF-8"):
        voc.read(tmp_path)


@pytest.mark.parametrize("name", ["bccd", "raccoon"])
def test_a_real_folder_has_the_boxes_of_its_coco_copy(real_data: Path, name: str) -> None:
    own, copy = contents(load_dataset(real_data / name)), contents(coco.read(real_data / name))
    assert set(copy) == {"train", "val"}
    for split, images in copy.items():
        assert {n: sorted(t) for n, t in images.items()} == {n: sorted(t) for n, t in own[split].items()}
    assert {**own["train"], **own["val"]} == own["trainval"]


def test_what_was_deleted_is_left_out_and_counted(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages" / "a.jpg")
    removed = voc_object("dog", 1, 1, 100, 80, extra="<deleted>1</deleted>")
    voc_xml(tmp_path, "a", removed, voc_object("cat", 11, 21, 20, 40, extra="<deleted>0</deleted>"))
    dataset = voc.read(tmp_path)
    assert contents(dataset) == {"train": {"a.jpg": [("cat", (10, 20, 20, 40), False, False)]}}
    assert dataset.accounted is not None
    assert dataset.accounted.boxes.as_json() == {"found": 2, "used": 1, "left_out": {"deleted": 1}}
