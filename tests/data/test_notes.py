"""What is a note for `data check` stops no training, and what fails it stops training: one list for both."""

from pathlib import Path

import pytest
from PIL import Image

from folders import picture
from qmimic.data.check import check
from qmimic.data.formats import load_dataset, usable
from qmimic.errors import InputError


def yolo(root: Path, *, names: str = "names: [cat]") -> Path:
    for split in ("train", "val"):
        picture(root / "images" / split / f"{split}.jpg")
        (root / "labels" / split).mkdir(parents=True)
        (root / "labels" / split / f"{split}.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    (root / "data.yaml").write_text(f"train: images/train\nval: images/val\ntest: images/test\n{names}\n")
    return root


def test_an_absent_test_split_and_a_turned_picture_are_notes(tmp_path: Path) -> None:
    root = yolo(tmp_path / "data")
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (100, 80)).save(root / "images" / "train" / "train.jpg", exif=turned)
    dataset = load_dataset(str(root))
    report = check(dataset, (96, 96))
    assert {"turned_by_exif", "missing_test"} <= {defect.kind for defect in report.defects}
    assert report.exit_code == 0
    assert len(usable(dataset, False).splits["train"]) == 1


def test_a_missing_split_fails_the_check_and_stops_training(tmp_path: Path) -> None:
    root = yolo(tmp_path / "data")
    (root / "data.yaml").write_text("train: [images/train, images/extra]\nval: images/val\nnames: [cat]\n")
    dataset = load_dataset(str(root))
    assert check(dataset, (96, 96)).exit_code == 1
    with pytest.raises(InputError, match="images/extra"):
        usable(dataset, False)


def test_the_report_says_what_was_found_used_and_left_out(tmp_path: Path) -> None:
    root = yolo(tmp_path / "data")
    picture(root / "images" / "train" / "unlabelled.jpg", seed=1)
    (root / "labels" / "train" / "spoilt.txt").write_text("0 0.5 0.5 0.2 0.2\n0 nothing\n")
    picture(root / "images" / "train" / "spoilt.jpg", seed=2)
    report = check(load_dataset(str(root)), (96, 96))
    for account in report.as_json()["accounted"].values():
        assert account["found"] == account["used"] + sum(account["left_out"].values())
    assert report.as_json()["accounted"]["pictures"]["found"] == 4
    assert report.as_text().startswith("pictures: 4 found")
