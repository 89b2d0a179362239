"""Oddities of labels as people and programs leave them: each is read rightly or is named; none is passed over."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_layouts import BOXES, NAMES, SIZE, YOLO, coco_text, photos, write, xml

from folders import picture
from qmimic.data.check import Report, check
from qmimic.data.formats import load_dataset
from qmimic.data.labels import bounds
from qmimic.data.sample import Dataset
from qmimic.errors import InputError


def looked(root: Path) -> tuple[Dataset, Report, dict[str, str]]:
    """A folder's data, what is found, and the first defect of each kind."""
    dataset = load_dataset(root)
    report = check(dataset, (64, 64))
    return dataset, report, {defect.kind: defect.detail for defect in reversed(report.defects)}


def boxes_of(dataset: Dataset, split: str = "train") -> list[tuple[str, tuple[float, ...]]]:
    return [
        (dataset.classes[label], tuple(np.round(box, 3).tolist()))
        for sample in dataset.splits[split]
        for box, label in zip(sample.boxes, sample.labels, strict=True)
    ]


EXPECTED = [(name, box) for _ in NAMES for name, box in BOXES.items()]


def yolo(root: Path, rows: str = YOLO, images: str = "images", labels: str = "labels", suffix: str = ".txt") -> Path:
    photos(root, f"{images}/train/{{}}.jpg")
    for name in NAMES:
        write(root, f"{labels}/train/{name}{suffix}", rows)
    write(root, "data.yaml", f"train: {images}/train\nnames: [cat, dog]\n")
    return root


def voc(root: Path, of: Callable[[str], str] = xml) -> Path:
    photos(root, "JPEGImages/{}.jpg")
    for name in NAMES:
        write(root, f"Annotations/{name}.xml", of(f"{name}.jpg"))
    return root


def coco(root: Path, change: Callable[[dict[str, Any]], object] = lambda _: None, name: str = "result.json") -> Path:
    photos(root, "images/{}.jpg")
    content = json.loads(coco_text([f"{name}.jpg" for name in NAMES]))
    change(content)
    write(root, name, json.dumps(content))
    return root


@pytest.mark.parametrize(("images", "labels"), [("Images", "Labels"), ("IMAGES", "LABELS"), ("Images", "labels")])
def test_folders_of_yolo_in_any_case(tmp_path: Path, images: str, labels: str) -> None:
    dataset, report, _ = looked(yolo(tmp_path, images=images, labels=labels))
    assert boxes_of(dataset) == EXPECTED
    assert report.exit_code == 0


def test_label_files_of_yolo_in_any_case(tmp_path: Path) -> None:
    dataset, report, _ = looked(yolo(tmp_path, suffix=".TXT"))
    assert boxes_of(dataset) == EXPECTED
    assert report.exit_code == 0


@pytest.mark.parametrize("shape", [(4, 3), (5, 2), (3, 3), (17, 3)])
def test_poses_are_taken_by_their_boxes_and_not_as_polygons(tmp_path: Path, shape: tuple[int, int]) -> None:
    rows = "".join(f"{row} {' '.join(['0.99'] * shape[0] * shape[1])}\n" for row in YOLO.splitlines())
    root = yolo(tmp_path, rows)
    write(root, "data.yaml", f"train: images/train\nnames: [cat, dog]\nkpt_shape: [{shape[0]}, {shape[1]}]\n")
    dataset, report, _ = looked(root)
    assert boxes_of(dataset) == EXPECTED
    assert report.exit_code == 0


@pytest.mark.parametrize("count", ["3", "1", "x"])
def test_a_number_of_classes_that_is_another_is_named(tmp_path: Path, count: str) -> None:
    root = yolo(tmp_path)
    write(root, "data.yaml", f"nc: {count}\ntrain: images/train\nnames: [cat, dog]\n")
    _, report, said = looked(root)
    assert report.exit_code == 1
    assert f"`nc: {count}` and 2 names do not agree" in said["class_count"]


def test_a_second_configuration_is_said(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    write(root, "dataset.yaml", "train: images/train\nnames: [dog, cat]\n")
    dataset, report, said = looked(root)
    assert dataset.classes == ("cat", "dog")
    assert report.exit_code == 0
    assert "is not read; data.yaml is" in said["unused_label_file"]


@pytest.mark.parametrize("place", ["images/train/more", "more"])
def test_a_linked_folder_in_which_nothing_is_read_is_said(tmp_path: Path, place: str) -> None:
    root = yolo(tmp_path / "data")
    (tmp_path / "elsewhere").mkdir()
    (root / place).symlink_to(tmp_path / "elsewhere")
    (root / "within").symlink_to(root / "images")  # within the folder, and read once as what it is
    dataset, report, said = looked(root)
    assert boxes_of(dataset) == EXPECTED
    assert report.exit_code == 0
    assert f"{place} is a link out of {root}, and nothing outside that folder is read" in said["linked_folder"]
    assert sum(one.kind == "linked_folder" for one in report.defects) == 1


@pytest.mark.parametrize("used", [1, 2])
def test_two_categories_of_one_name_are_refused_where_both_have_boxes(tmp_path: Path, used: int) -> None:
    """Exporters list the data set's own name as a category of no box beside a class that is called so."""
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    boxes = [{"id": k, "image_id": 1, "category_id": k, "bbox": [1, 1, 9, 9]} for k in range(1, used + 1)]
    categories = [{"id": k, "name": "cat"} for k in (1, 2)]
    images = [{"id": 1, "file_name": "a.png", "width": 20, "height": 20}]
    content = {"images": images, "annotations": boxes, "categories": categories}
    write(tmp_path, "train.json", json.dumps(content))
    dataset, _, said = looked(tmp_path)
    assert dataset.classes == ("cat",)
    assert ("The categories 1 and 2 are all 'cat'" in " ".join(said.values())) == (used == 2)


@pytest.mark.parametrize("rows", [YOLO, "".join(reversed(YOLO.splitlines(True))), "1 0.5 0.5 0.1 0.1\n"])
def test_a_picture_twice_in_a_split_is_said_where_its_labels_differ(tmp_path: Path, rows: str) -> None:
    root = yolo(tmp_path)
    shutil.copyfile(root / f"images/train/{NAMES[0]}.jpg", root / "images/train/again.jpg")
    write(root, "labels/train/again.txt", rows)
    _, report, said = looked(root)
    assert report.exit_code == 0
    assert ("same_image_other_labels" in said) == (sorted(rows.splitlines()) != sorted(YOLO.splitlines()))


def test_labelme_s_own_format_is_called_so(tmp_path: Path) -> None:
    write(tmp_path, "a.json", json.dumps({"version": "5", "shapes": [{"label": "cat", "points": [[0, 0], [9, 9]]}]}))
    with pytest.raises(InputError, match=r"a\.json is LabelMe's own format; export as COCO, Pascal VOC or YOLO"):
        load_dataset(tmp_path)


def test_two_labels_for_one_picture_are_named_as_that(tmp_path: Path) -> None:
    root = yolo(tmp_path)
    write(root, "images/train/a.txt", "1 0.5 0.5 0.1 0.1\n")
    dataset, report, said = looked(root)
    assert boxes_of(dataset) == EXPECTED
    assert report.exit_code == 1
    assert "labels/train/a.txt; remove one of the two" in said["two_labels_for_one_image"]


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("object>", "Object>"),
        lambda text: text.upper().replace("CAT", "cat").replace("DOG", "dog").replace("A.JPG", "a.jpg"),
        lambda text: text.replace("<annotation>", '<annotation xmlns="http://example.org/voc">'),
    ],
)
def test_tags_of_voc_in_any_case_and_name_space(tmp_path: Path, change: Callable[[str], str]) -> None:
    dataset, report, _ = looked(voc(tmp_path, lambda name: change(xml(name))))
    assert boxes_of(dataset) == EXPECTED
    assert report.exit_code == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("</bndbox></object>", "</bndbox><bndbox><xmin>1</xmin></bndbox></object>"), "has two boxes"),
        (("<object>", "<thing>"), "stands outside of an <object>"),
    ],
)
def test_a_box_of_voc_that_belongs_to_nothing_is_never_background(
    tmp_path: Path, change: tuple[str, str], said: str
) -> None:
    root = voc(tmp_path)
    text = xml("a.jpg").replace(*change, 1)
    write(root, "Annotations/a.xml", text.replace("</object>", "</thing>", 1) if "<thing>" in text else text)
    dataset, report, told = looked(root)
    assert [sample.image_id for sample in dataset.splits["train"]] == ["b", "c"]
    assert report.exit_code == 1
    assert said in told["bad_label"]


def test_the_folder_that_voc_names_decides_between_pictures(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        picture(tmp_path / "JPEGImages" / folder / "a.jpg", SIZE, len(folder) + ord(folder[0]))
    write(tmp_path, "Annotations/a.xml", xml("a.jpg", folder="two"))
    dataset, _, _ = looked(tmp_path)
    (sample,) = dataset.splits["train"]
    assert sample.image == tmp_path / "JPEGImages" / "two" / "a.jpg"


@pytest.mark.parametrize(("word", "hard"), [("1", True), ("True", True), ("0", False), ("Unspecified", False)])
def test_difficult_as_other_programs_write_it(tmp_path: Path, word: str, hard: bool) -> None:
    root = voc(tmp_path, lambda name: xml(name).replace("<difficult>0", f"<difficult>{word}"))
    assert {bool(flag) for sample in load_dataset(root).splits["train"] for flag in sample.difficult} == {hard}


@pytest.mark.parametrize("turned", [True, False])
def test_swapped_sizes_are_put_down_to_exif_only_where_there_is_some(tmp_path: Path, turned: bool) -> None:
    from PIL import Image

    root = voc(tmp_path)
    if turned:
        exif = Image.Exif()
        exif[0x0112] = 6
        for name in NAMES:
            path = root / "JPEGImages" / f"{name}.jpg"
            with Image.open(path) as file:
                file.save(path, exif=exif)
    else:
        for name in NAMES:
            picture(root / "JPEGImages" / f"{name}.jpg", SIZE[::-1], ord(name))
    _, _, said = looked(root)
    assert "Width and height are swapped" in said["size_mismatch"]
    assert ("EXIF" in said["size_mismatch"]) == turned


def test_ids_that_are_text_in_one_place_make_no_background(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["annotations"][0]["image_id"] = "0"

    dataset, report, said = looked(coco(tmp_path, change))
    assert [sample.image_id for sample in dataset.splits["train"]] == ["b", "c"]
    assert report.exit_code == 1
    assert "is 0 in `images`; write it so" in said["bad_label"]


def test_a_category_id_of_two_names_is_no_class(tmp_path: Path) -> None:
    dataset, report, said = looked(coco(tmp_path, lambda own: own["categories"].append({"id": 1, "name": "horse"})))
    assert dataset.classes == ("dog",)
    assert dataset.splits["train"] == ()  # each picture has a box of the category that is not known
    assert report.exit_code == 1
    assert "The category 1 is 'cat' and 'horse'" in said["bad_label"]


@pytest.mark.parametrize(
    ("named", "stored"),
    [
        ("A.JPG", "a.jpg"),
        ("a.JPEG", "a.jpeg"),
        ("caf\u00e9.jpg", "cafe\u0301.jpg"),
        ("cafe\u0301.jpg", "caf\u00e9.jpg"),
    ],
)
@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_pictures_are_found_where_disks_spell_them_otherwise(
    tmp_path: Path, layout: str, named: str, stored: str
) -> None:
    picture(tmp_path / "images" / stored, SIZE)
    if layout == "coco":
        write(tmp_path, "instances_train.json", coco_text([named]))
    else:
        write(tmp_path, f"Annotations/{Path(named).stem}.xml", xml(named))
    dataset, report, _ = looked(tmp_path)
    assert boxes_of(dataset) == list(BOXES.items())
    assert report.exit_code == 0


@pytest.mark.parametrize("flag", [{"ignore": 1}, {"ignore": 0}, {"ignore": None}, {"attributes": "none"}])
def test_what_other_sets_ignore_is_neither_learnt_nor_learnt_against(tmp_path: Path, flag: dict[str, Any]) -> None:
    dataset, _, _ = looked(coco(tmp_path, lambda content: content["annotations"][0].update(flag)))
    assert dataset.splits["train"][0].difficult.tolist() == [flag == {"ignore": 1}, False]


@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_a_turned_box_is_taken_by_the_box_around_it(tmp_path: Path, layout: str) -> None:
    x1, y1, x2, y2 = BOXES["cat"]
    if layout == "coco":
        root = coco(
            tmp_path, lambda own: own["annotations"][0].update(attributes={"occluded": False, "rotation": 90.0})
        )
    else:
        root = voc(tmp_path)
        turned = "<attributes><attribute><name>rotation</name><value>90.0</value></attribute></attributes></object>"
        write(root, "Annotations/a.xml", xml("a.jpg").replace("</object>", turned, 1))
    dataset, _, _ = looked(root)
    x, y, width, height = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
    wanted = (x - height / 2, y - width / 2, x + height / 2, y + width / 2)
    np.testing.assert_allclose(dataset.splits["train"][0].boxes[0], wanted, atol=1e-4)


@given(box=st.tuples(*[st.floats(-50, 50)] * 2, *[st.floats(0.1, 80)] * 2), degrees=st.floats(-720, 720))
def test_bounds_hold_the_corners_and_touch_them(box: tuple[float, float, float, float], degrees: float) -> None:
    x, y, width, height = box
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (width / 2, height / 2)
    angle = np.deg2rad(degrees)
    turned = corners @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + (x, y)
    found = bounds((x - width / 2, y - height / 2, x + width / 2, y + height / 2), degrees)
    np.testing.assert_allclose(found, (*turned.min(0), *turned.max(0)), atol=1e-9)


@pytest.mark.parametrize("pattern", ["{}_coco", "labels-{}", "{}.annotations", "export_{}_1"])
def test_files_of_coco_tell_their_split_by_a_word_of_their_names(tmp_path: Path, pattern: str) -> None:
    photos(tmp_path, "images/{}.jpg")
    for split, names in (("train", NAMES[:2]), ("val", NAMES[2:])):
        write(tmp_path, f"{pattern.format(split)}.json", coco_text([f"{name}.jpg" for name in names]))
    dataset, report, _ = looked(tmp_path)
    assert {split: len(own) for split, own in dataset.splits.items()} == {"train": 2, "val": 1}
    assert report.exit_code == 0


def test_files_of_coco_that_tell_no_split_are_both_named(tmp_path: Path) -> None:
    photos(tmp_path, "images/{}.jpg")
    for name in ("first", "second"):
        write(tmp_path, f"{name}.json", coco_text([f"{own}.jpg" for own in NAMES]))
    with pytest.raises(InputError, match=r"first\.json and .*second\.json are of COCO's layout.* rename them"):
        load_dataset(tmp_path)


def test_classes_that_differ_by_case_or_spaces_are_noted(tmp_path: Path) -> None:
    root = voc(tmp_path)
    write(root, "Annotations/a.xml", xml("a.jpg").replace("<name>cat", "<name>Cat"))
    _, report, said = looked(root)
    assert report.exit_code == 0
    assert "'Cat' and 'cat'" in said["similar_classes"]


def test_darknets_configuration_by_any_name(tmp_path: Path) -> None:
    photos(tmp_path, "obj/{}.jpg")
    for name in NAMES:
        write(tmp_path, f"obj/{name}.txt", YOLO)
    write(tmp_path, "pets.names", "cat\ndog\n")
    write(tmp_path, "pets.data", "classes= 2\ntrain = data/train.txt\nvalid = data/test.txt\nnames = data/pets.names\n")
    write(tmp_path, "train.txt", "data/obj/a.jpg\ndata/obj/b.jpg\n")
    write(tmp_path, "test.txt", "data/obj/c.jpg\n")
    dataset, report, _ = looked(tmp_path)
    assert {split: len(own) for split, own in dataset.splits.items()} == {"train": 2, "val": 1}
    assert boxes_of(dataset) == EXPECTED[:4]
    assert report.exit_code == 0
    write(tmp_path, "pets.data", (tmp_path / "pets.data").read_text().replace("2", "3"))
    assert looked(tmp_path)[1].exit_code == 1


@pytest.mark.parametrize("same", [True, False])
def test_names_beside_the_pictures_of_each_split(tmp_path: Path, same: bool) -> None:
    """Roboflow's export for Darknet; names that contradict each other are no names."""
    for split in ("train", "valid"):
        photos(tmp_path, f"{split}/{split}{{}}.jpg")
        for name in NAMES:
            write(tmp_path, f"{split}/{split}{name}.txt", YOLO)
        names = "cat\ndog\n" if same or split == "train" else "dog\ncat\n"
        write(tmp_path, f"{split}/_darknet.labels", names)
    dataset, report, said = looked(tmp_path)
    if same:
        assert boxes_of(dataset) == boxes_of(dataset, "valid") == EXPECTED
        assert report.exit_code == 0
    else:
        assert dataset.classes == ()
        assert "no_class_names" in said


def test_a_dataset_one_folder_below_is_named(tmp_path: Path) -> None:
    yolo(tmp_path / "pets-v1")
    with pytest.raises(InputError, match=r"There is one in .*pets-v1; name that folder"):
        load_dataset(tmp_path)
