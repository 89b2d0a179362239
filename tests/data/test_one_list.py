"""What `data check` refuses, training refuses: copies across splits, crowds, formats, turned pictures."""

import json
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from folders import coco_json, picture, voc_list, voc_object, voc_xml
from qmimic.cli import main
from qmimic.cli.data import READ
from qmimic.config import DataConfig, Recipe, load_recipe
from qmimic.data.check import check
from qmimic.data.chosen import open_dataset, remarks
from qmimic.data.faults import limits
from qmimic.data.formats import load_dataset, usable
from qmimic.data.images import read_image
from qmimic.data.labels import NOT_READ
from qmimic.errors import InputError

ROW = "0 0.5 0.5 0.4 0.4\n"
CAPS = limits(Recipe())


def yolo(root: Path) -> Path:
    """A folder of two splits with two pictures each."""
    for split in ("train", "val"):
        for number in range(2):
            add(root, split, f"{split}{number}", seed=hash_of(split, number))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    return root


def hash_of(split: str, number: int) -> int:
    return 10 * number + (split == "val")


def add(root: Path, split: str, name: str, rows: str = ROW, seed: int = 0, suffix: str = ".jpg") -> Path:
    path = picture(root / "images" / split / f"{name}{suffix}", seed=seed)
    label = root / "labels" / split / f"{name}.txt"
    label.parent.mkdir(parents=True, exist_ok=True)
    label.write_text(rows)
    return path


def kinds(root: Path, recipe: Recipe | None = None) -> set[str]:
    return {defect.kind for defect in check(load_dataset(root), (64, 64), recipe=recipe).defects}


def trains(root: Path, **settings: object) -> bool:
    """Whether training goes on with this data."""
    data = DataConfig(root=str(root), **settings)
    try:
        remarks(open_dataset(data), CAPS, data.allow_capped)
    except InputError:
        return False
    return True


def stored(path: Path, target: Path, how: str) -> None:
    """A picture's pixels in another file."""
    if how == "copy":
        shutil.copy(path, target.with_suffix(path.suffix))
        return
    pixels = read_image(path)
    if how == "turned":  # stored lying, and shown as before
        exif = Image.Exif()
        exif[0x0112] = 6
        pixels.transpose(Image.Transpose.ROTATE_90).save(target.with_suffix(".png"), exif=exif)
    else:
        pixels.save(target.with_suffix(how))


@pytest.mark.parametrize("how", ["copy", ".png", ".bmp", ".tiff", "turned"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_copies_in_any_format_are_found_by_both(tmp_path: Path, suffix: str, how: str) -> None:
    root = yolo(tmp_path / "data")
    source = add(root, "train", "source", seed=5, suffix=suffix)
    stored(source, root / "images" / "val" / "other", how)
    (root / "labels" / "val" / "other.txt").write_text(ROW)
    assert "duplicate_across_splits" in kinds(root)
    assert not trains(root)
    assert trains(root, drop_bad_boxes=True)
    left = open_dataset(DataConfig(root=str(root), drop_bad_boxes=True))
    assert {sample.image_id for sample in left.splits["train"]} == {"train0", "train1"}


def test_both_agree_on_any_mixture(tmp_path: Path) -> None:
    for seed in range(20):
        rng = random.Random(seed)
        root = yolo(tmp_path / str(seed))
        for number in range(4):
            sides = rng.choice([(100, 80), (80, 100), (64, 64)])
            path = root / "images" / rng.choice(["train", "val"]) / f"extra{number}{rng.choice(['.jpg', '.png'])}"
            picture(path, sides, rng.randrange(3))
            label = Path(str(path.with_suffix(".txt")).replace("images", "labels"))
            label.write_text(ROW)
        assert trains(root) == ("duplicate_across_splits" not in kinds(root)), seed


@pytest.mark.parametrize("most", [64, 65, 300, 3000])
def test_more_objects_than_can_be_found_are_refused_by_both(
    tmp_path: Path, most: int, capsys: pytest.CaptureFixture[str]
) -> None:
    root = yolo(tmp_path / "data")
    rows = "".join(f"0 {0.2 + 0.0002 * k:.4f} 0.5 0.3 0.3\n" for k in range(most))
    add(root, "val", "crowd", rows, seed=9)
    assert ("crowded_image" in kinds(root)) == (most > 64)
    assert trains(root) == (most <= 64)
    assert not trains(root, drop_bad_boxes=True) or most <= 64  # nothing is wrong with its labels
    assert trains(root, allow_capped=True)
    code = main(["data", "check", str(root), "--json"])
    found = json.loads(capsys.readouterr().out)["defects"]
    assert code == (most > 64)
    if most > 64:
        (said,) = [one["detail"] for one in found]
        named = re.findall(r"set (.*?)(?:, or| to find most of them, and) (data.allow_capped=true)", said)
        settings, allowance = named[0]
        # What the sentence says is enough, or with the allowance where no setting is.
        needed = settings.split() + ([allowance] if most > 1000 else [])
        assert main(["data", "check", str(root), "--set", *needed]) == 0
        assert main(["data", "check", str(root), "--set", allowance]) == 0
        assert main(["data", "check", str(root), "--set", *settings.split()]) == (most > 1000)
    assert main(["data", "check", str(root), "--set", "data.root=elsewhere"]) == 2
    assert "does not use this key" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "most"),
    [
        (["detector.architecture=one_stage"], 100),
        (["detector.architecture=one_stage", "teacher.detector=faster_rcnn"], 64),
        (["teacher.detector=one_stage"], 64),
        (["detector.architecture=one_stage", "teacher.detector=faster_rcnn", "mimic.mode=none", "baselines=[]"], 100),
        (
            ["detector.architecture=one_stage", "teacher.detector=faster_rcnn", "mimic.mode=none", "baselines=[mimic]"],
            64,
        ),
        (["detector.architecture=one_stage", "detector.max_detections=20"], 20),
    ],
)
def test_the_caps_are_those_of_the_detectors_of_the_run(tmp_path: Path, settings: list[str], most: int) -> None:
    root = yolo(tmp_path)
    recipe = load_recipe(None, settings)
    for count, fits in ((most, True), (most + 1, False)):
        add(root, "val", "crowd", "".join(f"0 {0.2 + 0.001 * k:.4f} 0.5 0.3 0.3\n" for k in range(count)), seed=9)
        read = [one for one in settings if one.partition("=")[0] in READ]
        assert read != settings or main(["data", "check", str(root), "--set", *settings]) == (0 if fits else 1)
        assert ("crowded_image" in kinds(root, recipe)) != fits
        try:
            remarks(open_dataset(DataConfig(root=str(root))), limits(recipe), allow_capped=False)
        except InputError:
            assert not fits
        else:
            assert fits


def test_objects_that_need_not_be_found_do_not_count(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages" / "a.png")
    hard = [voc_object("cat", 1 + k % 30, 1 + k // 30, 40, 40, extra="<difficult>1</difficult>") for k in range(90)]
    voc_xml(tmp_path, "a", *hard, voc_object("cat", 50, 50, 60, 60))
    assert "crowded_image" not in kinds(tmp_path)


@pytest.mark.parametrize("layout", ["voc", "coco", "yolo"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_pictures_that_exif_turns_are_noted_in_every_layout(tmp_path: Path, layout: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    folder = {"voc": "JPEGImages", "coco": "images", "yolo": "images/train"}[layout]
    (tmp_path / folder).mkdir(parents=True)
    pixels.save(tmp_path / folder / "a.jpg", exif=exif)
    if layout == "voc":
        voc_xml(tmp_path, "a", voc_object("cat", 1, 1, 20, 20))
        voc_list(tmp_path, "train", "a")
    elif layout == "coco":
        box = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 20, 20]}
        coco_json(tmp_path, [{"id": 1, "file_name": "a.jpg"}], [box], (1, "cat"))
    else:
        (tmp_path / "labels" / "train").mkdir(parents=True)
        (tmp_path / "labels" / "train" / "a.txt").write_text(ROW)
        (tmp_path / "data.yaml").write_text("train: images/train\nnames: [cat]\n")
    dataset = load_dataset(tmp_path)
    report = check(dataset, (64, 64))
    notes = [one for one in report.defects if one.kind == "turned_by_exif"]
    assert report.exit_code == 0
    assert len(notes) == (orientation != 1)
    assert [one for one in usable(dataset, False).defects if one.kind == "turned_by_exif"] == notes


@pytest.mark.parametrize("suffix", NOT_READ)
def test_a_format_that_is_not_read_is_counted_and_said(tmp_path: Path, suffix: str) -> None:
    """With a label of its own it is a defect; beside a picture of its name it is a copy."""
    root = yolo(tmp_path / "data")
    spoilt = root / "images" / "train" / f"photo{suffix}"
    spoilt.write_bytes(b"what a camera writes")
    (root / "labels" / "train" / "photo.txt").write_text(ROW)
    (root / "images" / "train" / f"train0{suffix.upper()}").write_bytes(b"a copy")
    report = check(load_dataset(root), (64, 64))
    assert report.accounted is not None
    assert report.accounted.pictures.as_json() == {
        "found": 6, "used": 4, "left_out": {"unreadable_image": 1, "format_not_read": 1},
    }  # fmt: skip
    (defect,) = [one for one in report.defects if one.kind == "unreadable_image"]
    assert "convert" in defect.detail
    assert report.exit_code == 1
