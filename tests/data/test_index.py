"""An index gives the checked dataset, and is refused when it is broken, strange or out of date."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from cli_cases import RECIPE, Refused, coco, train
from folders import picture, voc_list, voc_object, voc_xml
from qmimic.cli import main
from qmimic.config import DataConfig
from qmimic.data import index
from qmimic.data.chosen import dataset_fingerprint, open_dataset, remarks
from qmimic.data.formats import load_dataset, usable
from qmimic.errors import InputError


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    """Three images, the last with a box without area; train, val, and both."""
    for k, name in enumerate(("a", "b", "c")):
        picture(tmp_path / "JPEGImages" / f"{name}.png", (90 + k, 70), k)
    voc_xml(tmp_path, "a", voc_object("cat", 2, 3, 40, 50), voc_object("dog", 5, 5, 30, 30))
    voc_xml(tmp_path, "b")
    voc_xml(tmp_path, "c", voc_object("dog", 9, 9, 60, 60), voc_object("cat", 7, 7, 7, 7))
    voc_list(tmp_path, "train", "a", "b")
    voc_list(tmp_path, "val", "c")
    voc_list(tmp_path, "trainval", "a", "b", "c")
    return tmp_path


def test_it_is_the_checked_dataset(voc: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="has no area"):
        index.write(load_dataset(voc), drop_bad=False)
    assert not index.exists(voc)
    assert main(["data", "index", str(voc), "--drop-bad"]) == 0
    assert "train 2, trainval 3, val 1 images with 3 boxes in" in capsys.readouterr().out
    wanted = usable(load_dataset(voc), drop_bad=True)
    found = index.read(voc, drop_bad=True)
    assert (found.name, found.root, found.classes) == (wanted.name, wanted.root, wanted.classes)
    assert dict(found.splits).keys() == dict(wanted.splits).keys()
    for split, samples in wanted.splits.items():
        for one, other in zip(found.splits[split], samples, strict=True):
            assert (one.image_id, one.image, one.size) == (other.image_id, other.image, other.size)
            assert np.array_equal(one.boxes, other.boxes)
            assert np.array_equal(one.labels, other.labels)
    assert dataset_fingerprint(found) == dataset_fingerprint(wanted)  # so a run goes on with or without it
    assert usable(found, drop_bad=False) is found
    assert len(load_dataset(voc).splits["trainval"]) == 3  # commands that look at labels still see them all
    assert len(load_dataset(voc).splits["trainval"][2].boxes) == 2
    with pytest.raises(InputError, match=r"leaves out bad boxes; set data\.drop_bad_boxes=true"):
        index.read(voc, drop_bad=False)


def test_it_is_made_anew_in_place_of_the_old(voc: Path) -> None:
    index.write(load_dataset(voc), drop_bad=True)
    voc_list(voc, "val", "b", "c")
    index.write(load_dataset(voc), drop_bad=True)
    assert len(index.read(voc, drop_bad=True).splits["val"]) == 2
    assert sorted(path.name for path in voc.iterdir()) == ["Annotations", "ImageSets", "JPEGImages", index.FOLDER]


def test_what_is_no_index_is_not_replaced(voc: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("thesis")
    (elsewhere / "thesis.txt").write_text("years of work")
    place = voc / index.FOLDER
    place.symlink_to(elsewhere)
    with pytest.raises(InputError, match="is not a qmimic index and would be lost; move it away"):
        index.make(voc, drop_bad=True)
    place.unlink()
    place.mkdir()
    (place / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="would be lost"):
        index.make(voc, drop_bad=True)
    assert (elsewhere / "thesis.txt").exists()
    assert (place / "notes.txt").exists()


def test_names_of_any_bytes_and_links_that_lead_nowhere(voc: Path) -> None:
    (voc / "notes.txt").symlink_to(voc / "gone.txt")
    try:
        (voc / "Annotations" / os.fsdecode(b"\xff")).mkdir()
    except OSError:
        pytest.skip("this disk takes no such names")
    index.make(voc, drop_bad=True)
    assert len(index.read(voc, drop_bad=True).splits["train"]) == 2


def test_images_named_absolutely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "yolo"
    picture(root / "images" / "train" / "a.png")
    (root / "labels" / "train").mkdir(parents=True)
    (root / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    (root / "data.yaml").write_text(f"train: {root}/images/train\nval: {root}/images/train\nnames: [cat]\n")
    monkeypatch.chdir(tmp_path)
    index.make(Path("yolo"), drop_bad=False)
    (sample,) = index.read(Path("yolo"), drop_bad=False).splits["train"]
    assert sample.image == Path("yolo/images/train/a.png")


@pytest.mark.parametrize("change", ["list", "label", "image", "gone", "top"])
def test_a_folder_that_changed_since_is_told(voc: Path, change: str) -> None:
    index.write(load_dataset(voc), drop_bad=True)
    index.read(voc, drop_bad=True)
    if change == "list":
        voc_list(voc, "val", "b")
    elif change == "label":
        voc_xml(voc, "a", voc_object("cat", 2, 3, 40, 51))
    elif change == "image":
        picture(voc / "JPEGImages" / "d.png")
    elif change == "top":
        (voc / "data.yaml").write_text("names: [cat]")
    else:
        (voc / "Annotations" / "b.xml").unlink()
    with pytest.raises(InputError, match=r"has changed since .* run `qmimic data index .*` again, or delete"):
        index.read(voc, drop_bad=True)


def damaged(folder: Path, kind: str) -> None:
    if kind == "json":
        (folder / "index.json").write_text("{")
    elif kind == "version":
        content = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps({**content, "version": 99}))
    elif kind == "missing":
        (folder / "boxes.npy").unlink()
    elif kind == "short":
        os.truncate(folder / "boxes.npy", (folder / "boxes.npy").stat().st_size - 3)
    else:
        name, value = {
            "dtype": ("labels", np.zeros(3, np.int64)),
            "length": ("crowd", np.zeros(2, np.bool_)),
            "starts": ("starts", np.array([0, 5, 2, 3])),
            "label": ("labels", np.array([0, 1, 7], np.int32)),
            "box": ("boxes", np.full((3, 4), np.nan, np.float32)),
            "row": ("split-0", np.array([0, 3])),
            "scalar": ("labels", np.array(3, np.int32)),
            "size": ("image_sizes", np.zeros((3, 2), np.int32)),
            "name": ("image_starts", np.array([0, 0, 5, 30])),
            "pickle": ("labels", np.array([{}, {}, {}], object)),
        }[kind]
        np.save(folder / f"{name}.npy", value, allow_pickle=True)


KINDS = [
    "json",
    "version",
    "missing",
    "short",
    "dtype",
    "length",
    "starts",
    "label",
    "box",
    "row",
    "pickle",
    "scalar",
    "size",
    "name",
]


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_index_is_refused(voc: Path, kind: str) -> None:
    index.write(load_dataset(voc), drop_bad=True)
    index.read(voc, drop_bad=True)
    damaged(voc / index.FOLDER, kind)
    with pytest.raises(InputError, match=r"run `qmimic data index .*` again, or delete") as caught:
        index.read(voc, drop_bad=True)
    assert "\n" not in str(caught.value)


def test_any_flipped_bit_is_seen(voc: Path) -> None:
    """In any file and at any place: the header of an array, its numbers, a name, the description."""
    index.write(load_dataset(voc), drop_bad=True)
    rng = random.Random(0)
    for path in sorted((voc / index.FOLDER).iterdir()):
        whole = path.read_bytes()
        for place in {0, len(whole) - 1, *(rng.randrange(len(whole)) for _ in range(12))}:
            spoilt = bytearray(whole)
            spoilt[place] ^= 1 << rng.randrange(8)
            path.write_bytes(spoilt)
            try:
                found = index.read(voc, drop_bad=True)
            except InputError:
                continue  # what it says is tested above
            # The padding of a header is no content.
            assert dataset_fingerprint(found) == dataset_fingerprint(usable(load_dataset(voc), drop_bad=True)), path
            assert path.suffix == ".npy"
            assert place < 128
        path.write_bytes(whole)
    index.read(voc, drop_bad=True)


def test_drawn_data_need_none(refused: Refused) -> None:
    assert "synthetic:digits is drawn and needs no index" in refused("data", "index", "synthetic:digits")


def test_training_reads_it(tmp_path: Path) -> None:
    recipe, data = tmp_path / "recipe.yaml", coco(tmp_path / "data")
    recipe.write_text(RECIPE)
    assert train(recipe, data, tmp_path / "without") == 0
    index.write(load_dataset(data), drop_bad=False)
    for label in data.glob("instances_*.json"):
        stamp = label.stat()
        label.write_text("x" * stamp.st_size)  # no one looks into it
        os.utime(label, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert train(recipe, data, tmp_path / "with") == 0
    weights = [(tmp_path / run / "student.safetensors").read_bytes() for run in ("with", "without")]
    assert weights[0] == weights[1]


def test_what_training_says_of_the_data_it_says_with_an_index_too(tmp_path: Path) -> None:
    for k, name in enumerate("abcd"):
        picture(tmp_path / "JPEGImages" / f"{name}.png", (90 + k, 70), k)
        box = voc_object("cat", 0, 3, 40, 50)  # begins at 0: this folder does not count as VOC does
        voc_xml(tmp_path, name, box, *([box] if name in "bcd" else []))
    voc_list(tmp_path, "train", "a", "b", "c")
    voc_list(tmp_path, "val", "d")
    settings = DataConfig(root=str(tmp_path))
    wanted = remarks(open_dataset(settings), {}, True)
    index.write(load_dataset(tmp_path), drop_bad=False)
    assert index.exists(tmp_path)
    assert remarks(open_dataset(settings), {}, True) == wanted
    assert any("2 more like it" in one for one in wanted)
    assert sum("count" in one for one in wanted) >= 1
