"""Reading WIDER FACE folders, text and MATLAB, whole and broken."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from folders import contents, picture
from qmimic.cli import main
from qmimic.data.check import check
from qmimic.data.formats import load_dataset
from qmimic.errors import InputError
from wider_cases import write_mat

TEXT = """0--Parade/0_a.jpg
2
10 20 30 40 2 0 0 0 1 0
50 60 5 8 0 1 0 1 0 0
1--Handshaking/1_b.jpg
0
0 0 0 0 0 0 0 0 0 0
1--Handshaking/1_c.jpg
1
0 0 99 99 1 0 1 0 2 1
"""


def folder(root: Path, text: str = TEXT, split: str = "train") -> Path:
    for name in ("0--Parade/0_a", "1--Handshaking/1_b", "1--Handshaking/1_c"):
        picture(root / f"WIDER_{split}" / "images" / f"{name}.jpg", (100, 100))
    (root / "wider_face_split").mkdir(exist_ok=True)
    (root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt").write_text(text)
    return root


def test_text_annotations(tmp_path: Path) -> None:
    dataset = load_dataset(folder(tmp_path))
    assert dataset.classes == ("face",)
    assert contents(dataset) == {
        "train": {
            "0_a.jpg": [("face", (10, 20, 40, 60), False, False), ("face", (50, 60, 55, 68), True, False)],
            "1_b.jpg": [],
            "1_c.jpg": [("face", (0, 0, 99, 99), False, False)],
        }
    }
    first = dataset.splits["train"][0]
    assert first.image_id == "0--Parade/0_a"
    assert first.attributes["blur"].tolist() == [2, 0]
    assert first.attributes["occlusion"].tolist() == [1, 0]
    assert dataset.defects == ()


def test_matlab_annotations_say_the_same(tmp_path: Path) -> None:
    by_text = load_dataset(folder(tmp_path / "text"))
    events: dict[str, dict[str, dict[str, np.ndarray]]] = {}
    for sample in by_text.splits["train"]:
        event, name = sample.image_id.split("/")
        sides = np.concatenate([sample.boxes[:, :2], sample.boxes[:, 2:] - sample.boxes[:, :2]], 1)
        flags = {key: values.reshape(-1, 1) for key, values in sample.attributes.items()}
        events.setdefault(event, {})[name] = {"boxes": sides, **flags}
    root = folder(tmp_path / "mat")
    (root / "wider_face_split" / "wider_face_train_bbx_gt.txt").unlink()
    write_mat(root / "wider_face_split" / "wider_face_train.mat", events)
    by_mat = load_dataset(root)
    assert contents(by_mat) == contents(by_text)
    for one, other in zip(by_mat.splits["train"], by_text.splits["train"], strict=True):
        assert one.image_id == other.image_id
        assert {key: values.tolist() for key, values in one.attributes.items()} == {
            key: values.tolist() for key, values in other.attributes.items()
        }


def test_both_splits_and_what_they_hold(tmp_path: Path) -> None:
    folder(tmp_path)
    report = check(load_dataset(folder(tmp_path, split="val")), (128, 128))
    assert report.images == {"train": 3, "val": 3}
    assert report.attributes["blur"] == {"0": 2, "1": 2, "2": 2}
    assert "blur: 0: 2 boxes, 1: 2 boxes, 2: 2 boxes" in report.as_text()


@pytest.mark.parametrize("line", ["10 20 30", "10 20 nan 40 2 0 0 0 1 0", "ten 20 30 40 2 0 0 0 1 0"])
def test_a_bad_face_is_a_defect(tmp_path: Path, line: str) -> None:
    dataset = load_dataset(folder(tmp_path, TEXT.replace("10 20 30 40 2 0 0 0 1 0", line)))
    assert [defect.kind for defect in dataset.defects] == ["bad_label"]
    assert [sample.image_id for sample in dataset.splits["train"]] == ["1--Handshaking/1_b", "1--Handshaking/1_c"]
    assert dataset.accounted is not None  # the other face of that picture is not taught as all that it shows
    assert dataset.accounted.boxes.as_json() == {"found": 3, "used": 1, "left_out": {"unreadable_label": 2}}


@pytest.mark.parametrize(
    "text", ["0--Parade/0_a.jpg\n", "0--Parade/0_a.jpg\ntwo\n", "0_a.jpg\n1\n", "a/b.jpg\n999999999\n1 2 3 4\n"]
)
def test_a_file_that_is_no_annotation_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="at line 1"):
        load_dataset(folder(tmp_path, text))


def test_a_path_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="leads out of"):
        load_dataset(folder(tmp_path / "set", TEXT.replace("0--Parade/0_a", "../../../x")))


def test_a_folder_without_annotations_is_refused(tmp_path: Path) -> None:
    shutil.rmtree(folder(tmp_path) / "WIDER_train")
    (tmp_path / "wider_face_split" / "wider_face_train_bbx_gt.txt").unlink()
    with pytest.raises(InputError, match="holds no annotations"):
        load_dataset(tmp_path)


def test_a_missing_image_is_a_defect(tmp_path: Path) -> None:
    root = folder(tmp_path)
    (root / "WIDER_train" / "images" / "0--Parade" / "0_a.jpg").unlink()
    kinds = {defect.kind for defect in check(load_dataset(root), (128, 128)).defects}
    assert kinds == {"label_without_image", "same_image_other_labels"}  # the pictures are all grey


def test_it_converts_to_other_layouts(tmp_path: Path) -> None:
    assert main(["data", "convert", str(folder(tmp_path / "wider")), str(tmp_path / "coco"), "--to", "coco"]) == 0
    assert contents(load_dataset(tmp_path / "coco")) == contents(load_dataset(tmp_path / "wider"))


def test_a_file_that_ends_within_a_picture_s_faces_is_named(tmp_path: Path) -> None:
    cut = TEXT.rstrip().rpartition("\n")[0] + "\n"
    dataset = load_dataset(folder(tmp_path, cut))
    assert [defect.detail for defect in dataset.defects] == [
        "The file ends within the faces of 1--Handshaking/1_c.jpg; fetch the annotations again."
    ]
    assert [sample.image_id for sample in dataset.splits["train"]] == ["0--Parade/0_a", "1--Handshaking/1_b"]
