"""Folders that strangers made: each is refused in one sentence, or trains all the same."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli_cases import Refused, coco, train
from qmimic.cli import main

Change = Callable[[dict[str, Any]], None]


def relabel(root: Path, change: Change, split: str = "train") -> Path:
    """Change the content of a split's label file."""
    path = root / f"instances_{split}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return root


def voc(root: Path, objects: str = "") -> Path:
    """A VOC folder of two noise images in train and two in val; `objects` replaces those of the first one."""
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    box = "<xmin>5</xmin><ymin>5</ymin><xmax>40</xmax><ymax>30</ymax>"
    usual = f"<object><name>cat</name><bndbox>{box}</bndbox></object>"
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{number}.png")
        text = f"<annotation>{objects if objects and not number else usual}</annotation>"
        (root / "Annotations" / f"{number}.xml").write_text(text)
    for split, members in (("train", "0\n1\n"), ("val", "2\n3\n")):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text(members)
    return root


def yolo(root: Path, config: str) -> Path:
    """A YOLO folder whose data.yaml is this text."""
    (root / "images" / "train").mkdir(parents=True)
    (root / "data.yaml").write_text(config)
    return root


@pytest.fixture
def train_refused(recipe: Path, tmp_path: Path, refused: Refused) -> Callable[[Path], str]:
    """Trains on a folder, which has to be refused before the run folder is made; gives the sentence."""

    def run(data: Path) -> str:
        said = refused("train", recipe, f"data.root={data}", f"run.dir={tmp_path / 'run'}")
        assert not (tmp_path / "run").exists()
        return said

    return run


TrainRefused = Callable[[Path], str]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../recipe.yaml", "There is no image"),
        ("/etc/hostname", "There is no image"),
        ("a\0b.png", "There is no image"),
        ("line\nbreak.png", "There is no image"),
        ("", "There is no image"),
        ("x" * 300 + ".png", "There is no image|File name too long|is not a whole image"),
    ],
    ids=["parent", "absolute", "NUL", "line break", "empty", "too long"],
)
def test_coco_names_that_are_no_image_of_the_folder(
    tmp_path: Path, train_refused: TrainRefused, name: str, why: str
) -> None:
    def rename(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = name

    said = train_refused(relabel(coco(tmp_path / "data"), rename))
    assert any(text in said for text in why.split("|")), said


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("[1, 2]", "not of COCO's layout"),
        ('{"images": []}', "no images in the split 'train'"),
        ('{"images": [{"id": 1}]}', "file_name: is missing"),
        ("[" * 100_000, "not a whole JSON"),
        ("", "not a whole JSON"),
    ],
    ids=["list", "no images", "no name", "deep", "empty"],
)
def test_coco_files_that_are_none(tmp_path: Path, train_refused: TrainRefused, content: str, why: str) -> None:
    data = coco(tmp_path / "data")
    (data / "instances_train.json").write_text(content)
    assert why in train_refused(data)


@pytest.mark.parametrize(
    ("objects", "why"),
    [
        ("<object><name>cat</name><bndbox><xmin>nan</xmin></bndbox></object>", "has no box of four numbers"),
        ("<object><name>cat", "not valid XML"),
        ("<filename>&outside;</filename>", "not valid XML"),
    ],
    ids=["NaN", "cut", "unknown entity"],
)
def test_voc_labels_that_cannot_be_read(tmp_path: Path, train_refused: TrainRefused, objects: str, why: str) -> None:
    said = train_refused(voc(tmp_path / "data", objects))
    assert why in said
    assert "Annotations/0.xml" in said
    assert "data.drop_bad_boxes=true" in said


def test_voc_entities_and_paths_out_of_the_folder(
    tmp_path: Path, train_refused: TrainRefused, capsys: pytest.CaptureFixture[str]
) -> None:
    data = voc(tmp_path / "data")
    secret = tmp_path / "secret.png"
    (data / "JPEGImages" / "0.png").rename(secret)
    label = data / "Annotations" / "0.xml"
    label.write_text("<annotation><filename>../../secret.png</filename></annotation>")
    assert "There is no image" in train_refused(data)
    (data / "JPEGImages" / "0.png").symlink_to(secret)
    assert "leads out of" in train_refused(data)
    declared = f'<!DOCTYPE a [<!ENTITY outside SYSTEM "{secret.as_uri()}">]>'
    label.write_text(f"{declared}<annotation><filename>&outside;</filename></annotation>")
    assert "0.xml defines entities" in train_refused(data)
    capsys.readouterr()
    assert main(["data", "check", str(data), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert ("bad_label", "Annotations/0.xml") in {(d["kind"], d["file"]) for d in report["defects"]}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("names: [cat", "not valid YAML"),
        ("path: [a, b]", "`path:`"),
        ("just words", "needs `names:`"),
        ("names: {a: b}", "`names:`"),
    ],
)
def test_yolo_configurations_that_cannot_be_used(
    tmp_path: Path, train_refused: TrainRefused, refused: Refused, config: str, why: str
) -> None:
    data = yolo(tmp_path / "data", config)
    said = train_refused(data)
    assert why in said, said
    assert why in refused("data", "check", data)


@pytest.mark.parametrize("config", ["train: 2024-99-99", "train: ../elsewhere", 'train: "a\\0b"'])
def test_yolo_splits_that_are_not_in_the_folder_are_defects(
    tmp_path: Path, train_refused: TrainRefused, capsys: pytest.CaptureFixture[str], config: str
) -> None:
    data = yolo(tmp_path / "data", config)
    (tmp_path / "elsewhere").mkdir()  # there, but outside of the dataset's folder
    assert "names a folder or list that is not in" in train_refused(data)
    capsys.readouterr()
    assert main(["data", "check", str(data)]) == 1
    assert "`train:" in capsys.readouterr().out


def test_a_picture_larger_than_memory_is_refused_by_its_header(tmp_path: Path, train_refused: TrainRefused) -> None:
    data = coco(tmp_path / "data")
    Image.new("1", (20_000, 20_000)).save(data / "train" / "train0.png")
    assert "train0.png has over 100 million pixels" in train_refused(data)


@pytest.mark.parametrize("suffix", [".bmp", ".jpg", ".png"])
def test_a_picture_cut_behind_its_header(
    recipe: Path, tmp_path: Path, train_refused: TrainRefused, suffix: str
) -> None:
    data = coco(tmp_path / "data", suffix=suffix)
    image = data / "val" / f"val1{suffix}"
    image.write_bytes(image.read_bytes()[:2000])
    said = train_refused(data)
    assert image.name in said
    assert "data.drop_bad_boxes=true" in said
    if suffix == ".jpg":
        assert train(recipe, data, tmp_path / "run", "data.drop_bad_boxes=true", "teacher.steps=1") == 0


def test_a_coco_image_that_is_listed_twice(tmp_path: Path, train_refused: TrainRefused) -> None:
    def repeat_file(content: dict[str, Any]) -> None:
        content["images"][1]["file_name"] = "train0.png"

    def repeat_id(content: dict[str, Any]) -> None:
        content["images"][1]["id"] = 0

    for change in (repeat_file, repeat_id):
        data = relabel(coco(tmp_path / change.__name__), change)
        assert "is listed twice" in train_refused(data)
        assert main(["data", "check", str(data)]) == 1


def test_coco_images_that_differ_in_suffix_alone_are_two(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = coco(tmp_path / "data", count=2)
    Image.open(data / "val" / "val1.png").save(data / "val" / "val0.gif")
    relabel(data, lambda content: content["images"][1].update(file_name="val0.gif"), "val")
    found, student = tmp_path / "found.json", trained / "run" / "student.safetensors"
    assert main(["eval", str(student), "--data", str(data), "--detections", str(found)]) == 0
    entries = json.loads(found.read_text())
    assert {(entry["file_name"], entry["image_id"]) for entry in entries} == {
        ("val/val0.png", 0),
        ("val/val0.gif", 1),
    }
    scores = capsys.readouterr().out
    assert main(["score", "--data", str(data), "--detections", str(found)]) == 0
    assert capsys.readouterr().out == scores


def test_data_check_refuses_what_is_no_dataset(tmp_path: Path, refused: Refused) -> None:
    assert "There is no folder" in refused("data", "check", tmp_path / "missing")
    assert "There is no folder" in refused("data", "check", __file__)
    (tmp_path / "empty").mkdir()
    assert "holds no dataset" in refused("data", "check", tmp_path / "empty")
    for size in (("0", "64"), ("64", "-1")):
        assert "is not a size" in refused("data", "check", coco(tmp_path / "data" / size[1]), "--size", *size)


def test_odd_kinds_of_pictures_and_names_train(recipe: Path, tmp_path: Path) -> None:
    data = coco(tmp_path / "mëin Ordner 数据")
    folder = data / "train"
    noise = Image.open(folder / "train0.png").convert("RGB")
    noise.convert("CMYK").save(folder / "größe 0.jpg")
    Image.fromarray(np.asarray(noise.convert("L"), np.uint16) * 257).save(folder / "train1.png")
    noise.save(folder / "train2.gif", save_all=True, append_images=[noise.rotate(180)])
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.transpose(Image.Transpose.ROTATE_90).save(folder / "train3.jpg", exif=turned)

    def rename(content: dict[str, Any]) -> None:
        for image, name in zip(
            content["images"], ("größe 0.jpg", "train1.png", "train2.gif", "train3.jpg"), strict=True
        ):
            image["file_name"] = name
        # One pixel, and without a label: there is nothing to learn from it, and nothing to fail at.
        content["images"].append({"id": 99, "file_name": "dot.png"})
        content["categories"][0]["name"] = "猫 cät"

    noise.resize((1, 1)).save(folder / "dot.png")
    relabel(data, rename)
    relabel(data, lambda content: content["categories"][0].update(name="猫 cät"), "val")
    run = tmp_path / "läuft hier"
    assert train(recipe, data, run) == 0
    assert main(["eval", str(run / "student.safetensors"), "--data", str(data)]) == 0
    assert main(["data", "check", str(data)]) == 0


def test_a_file_name_that_is_no_utf8_trains(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = coco(tmp_path / "data", count=1)
    odd = "\udcff.png"  # how Python shows the byte 255
    try:
        (data / "train" / "train0.png").rename(data / "train" / odd)
    except OSError:
        pytest.skip("this disk takes no such names")
    relabel(data, lambda content: content["images"][0].update(file_name=odd))
    assert train(recipe, data, tmp_path / "run") == 0
    (data / "train" / odd).write_bytes(b"")
    assert main(["data", "check", str(data)]) == 1
    assert "\\udcff" in capsys.readouterr().out


def test_one_image_in_train_and_val_is_refused(tmp_path: Path, train_refused: TrainRefused) -> None:
    data = coco(tmp_path / "data", count=1, suffix=".gif")
    (data / "instances_val.json").write_bytes((data / "instances_train.json").read_bytes())
    (data / "val" / "val0.gif").unlink()

    def from_root(content: dict[str, Any]) -> None:
        content["images"][0]["file_name"] = "train/train0.gif"

    relabel(data, from_root, "train")
    relabel(data, from_root, "val")
    assert "1 of 1 images of val are in train too, the first: train0" in train_refused(data)


def test_one_image_trains(recipe: Path, tmp_path: Path) -> None:
    data = coco(tmp_path / "data", count=1, suffix=".gif")
    assert train(recipe, data, tmp_path / "run", "student.batch_size=3") == 0
