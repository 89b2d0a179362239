"""Splits by name, joined, and as parts of one; a VOC devkit of several years."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from folders import contents, picture, sample_of, voc_list, voc_object, voc_xml
from qmimic.config import DataConfig, DetectorConfig, Recipe
from qmimic.data.chosen import open_dataset, remarks
from qmimic.data.columns import in_columns
from qmimic.data.faults import limits
from qmimic.data.formats import load_dataset
from qmimic.data.sample import Dataset
from qmimic.data.splits import TRAIN, VAL, choose, said_of, samples_of, with_classes
from qmimic.data.synthetic import digits
from qmimic.detections import Detections
from qmimic.errors import InputError
from qmimic.scores.summary import score

DIGITS = digits(7, 3, 2)


def names(dataset: object, split: str) -> list[str]:
    return [sample.image_id for sample in samples_of(dataset, split)]


def test_joined_splits_hold_every_image_once() -> None:
    assert names(DIGITS, "train+val") == names(DIGITS, "train") + names(DIGITS, "val")
    assert names(DIGITS, "val+val") == names(DIGITS, "val")
    with pytest.raises(InputError, match="has no split 'test'; its splits: train, val, select"):
        samples_of(DIGITS, "train+test")


def test_chosen_splits_have_the_names_that_the_pipeline_knows() -> None:
    chosen = choose(DIGITS, "train+select", "val", None)
    assert list(chosen.splits) == [TRAIN, VAL]
    assert names(chosen, TRAIN) == names(DIGITS, "train") + names(DIGITS, "select")
    assert names(chosen, VAL) == names(DIGITS, "val")
    with pytest.raises(InputError, match="has no split 'none'"):
        choose(DIGITS, "train", "none", None)
    with pytest.raises(InputError, match="has no images in the split 'select'"):
        choose(digits(3, 2, 0), "train", "select", None)


@given(images=st.integers(2, 30), parts=st.integers(2, 10))
@settings(max_examples=30, deadline=None)
def test_parts_share_the_images_out(images: int, parts: int) -> None:
    dataset = digits(images, 1, 1)
    if parts > images:
        with pytest.raises(InputError, match="fewer than"):
            choose(dataset, "train", "val", (0, parts))
        return
    folds = [choose(dataset, "train", "val", (part, parts)) for part in range(parts)]
    own = [names(fold, VAL) for fold in folds]
    assert sorted(name for fold in own for name in fold) == sorted(names(dataset, "train"))
    assert max(map(len, own)) - min(map(len, own)) <= 1
    for fold, scored in zip(folds, own, strict=True):
        assert sorted(names(fold, TRAIN) + scored) == sorted(names(dataset, "train"))


def test_parts_are_the_same_in_every_order_of_the_images() -> None:
    one, other = choose(DIGITS, "train+val", "", (1, 3)), choose(DIGITS, "val+train", "", (1, 3))
    assert names(one, VAL) == names(other, VAL)


def test_a_devkit_of_several_years(tmp_path: Path) -> None:
    for year, cat in (("VOC2007", "cat"), ("VOC2012", "ant")):
        voc_xml(tmp_path / year, "a", voc_object(cat, 1, 1, 9, 9), voc_object("dog", 2, 2, 9, 9))
        voc_xml(tmp_path / year, "b", voc_object("dog", 3, 3, 9, 9))
        voc_list(tmp_path / year, "trainval", "a", "b")
        voc_list(tmp_path / year, "test", "b")
    dataset = load_dataset(tmp_path)
    assert dataset.classes == ("ant", "cat", "dog")
    assert list(dataset.splits) == ["2007_test", "2007_trainval", "2012_test", "2012_trainval"]
    assert contents(dataset)["2007_trainval"]["a"] == [
        ("cat", (0, 0, 9, 9), False, False),
        ("dog", (1, 1, 9, 9), False, False),
    ]
    assert contents(dataset)["2012_trainval"]["a"][0][0] == "ant"
    assert names(dataset, "2007_trainval+2012_trainval") == ["VOC2007/a", "VOC2007/b", "VOC2012/a", "VOC2012/b"]


@pytest.mark.parametrize(
    ("splits", "said"),
    [
        (("train", "vale"), "its splits: train, vale. Did you mean vale? In a recipe, set data.val=vale."),
        (("train",), "its splits: train. To report on a fifth of it, set data.fold=[0,5]."),
        (("train", "trial"), "its splits: train, trial."),
    ],
)
def test_a_missing_split_is_answered_with_the_next_step(splits: tuple[str, ...], said: str) -> None:
    whole = digits(2, 1, 1)
    dataset = replace(whole, splits=dict.fromkeys(splits, whole.splits["train"]))
    with pytest.raises(InputError) as error:
        samples_of(dataset, "val")
    assert str(error.value).endswith(said)


@pytest.mark.parametrize("name", ["valid", "validation"])
def test_what_other_tools_call_val_is_taken_and_said(name: str) -> None:
    whole = digits(3, 2, 1)
    other = replace(whole, splits={"train": whole.splits["train"], name: whole.splits["val"]})
    assert list(samples_of(other, "val")) == list(samples_of(other, name)) == list(whole.splits["val"])
    assert len(samples_of(other, "train+val")) == 5
    said = f"There is no split val; {name} is taken in its place."
    chosen = choose(other, "train", "val", None)
    assert [len(chosen.splits[split]) for split in ("train", "val")] == [3, 2]
    assert [defect.detail for defect in chosen.defects] == [said]
    assert choose(other, "train", name, None).defects == ()  # named by its own name there is nothing to say
    both = replace(other, splits={**other.splits, "val": whole.splits["train"]})
    assert list(samples_of(both, "val")) == list(whole.splits["train"])  # its own val goes first
    assert said_of(both, "val") is None


def test_a_detector_is_scored_by_names_on_fewer_classes(tmp_path: Path) -> None:
    """The same boxes under another list of classes, in another order: a perfect detector stays perfect."""
    boxes = [(0, 0, 20, 20), (30, 30, 60, 60)]
    sample = sample_of(picture(tmp_path / "a.png"), boxes, [0, 1])
    dataset = Dataset("pets", tmp_path, ("dog", "cat"), {"val": (sample,)})
    known = ("bird", "cat", "cow", "dog")
    moved = with_classes(dataset, known)
    assert moved.classes == known
    assert [known[label] for label in moved.splits["val"][0].labels] == ["dog", "cat"]
    found = {"a": Detections(sample.boxes, np.ones(2, np.float32), np.array([3, 1]))}
    scores = score(moved, "val", found)
    assert (scores.voc_map50, scores.coco_map) == (1, 1)
    assert list(scores.per_class) == ["cat", "dog"]
    with pytest.raises(InputError, match="shows the class dog, which the detector does not know"):
        with_classes(dataset, ("cat",))
    empty = Dataset("pets", tmp_path, ("dog", "cat", "yak"), {"val": (sample,)})
    assert with_classes(empty, known).classes == known  # a class that is listed and never shown does no harm


def test_two_classes_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two classes called 'cat'"):
        Dataset("twice", tmp_path, ("cat", "dog", "cat"), {})


def test_images_of_val_are_never_trained_on(tmp_path: Path) -> None:
    """By path and by pixels, whatever the file is called; dropped from training only where that is asked for."""
    for name, seed in (("a", 0), ("b", 1), ("c", 2), ("d", 3)):
        picture(tmp_path / "JPEGImages" / f"{name}.png", seed=seed)
        voc_xml(tmp_path, name, voc_object("cat", 1, 1, 9, 9))
    voc_list(tmp_path, "train", "a", "b", "c")
    voc_list(tmp_path, "val", "d")
    config = DataConfig(root=str(tmp_path), size=(64, 64))
    assert len(open_dataset(config).splits["train"]) == 3
    with Image.open(tmp_path / "JPEGImages" / "b.png") as file:  # the same pixels in other bytes
        file.save(tmp_path / "JPEGImages" / "d.png", compress_level=1, pnginfo=None)
    with pytest.raises(InputError, match=r"1 of 1 images of val are in train too, the first: b;"):
        open_dataset(config)
    dropped = open_dataset(config.model_copy(update={"drop_bad_boxes": True}))
    assert [sample.image_id for sample in dropped.splits["train"]] == ["a", "c"]
    assert dropped.accounted is not None
    assert dropped.accounted.pictures.as_json() == {"found": 4, "used": 3, "left_out": {"also_in_val": 1}}
    voc_list(tmp_path, "train", "a", "d")
    with pytest.raises(InputError, match=r"1 of 1 images of val are in train too"):
        open_dataset(config)


def test_what_is_said_before_the_first_step(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        picture(tmp_path / "JPEGImages" / f"{name}.png", seed=seed)
    box = voc_object("cat", 0, 1, 30, 30)
    voc_xml(tmp_path, "a", box, box, *(voc_object("cat", 1, 1, 20 + k, 20) for k in range(9)))
    voc_xml(tmp_path, "b")
    voc_xml(tmp_path, "c", box)
    voc_list(tmp_path, "train", "a", "b")
    voc_list(tmp_path, "val", "c")
    config = DataConfig(root=str(tmp_path), size=(64, 64))
    said = "\n".join(
        remarks(
            open_dataset(config), limits(Recipe(detector=DetectorConfig(post_nms=4, pre_nms=64))), allow_capped=True
        )
    )
    for part in (
        "pictures: 3 found, 3 used",
        "boxes: 12 found, 11 used, 1 left out (duplicate box)",
        "counted from 0, not from 1",
        "1 training pictures are labelled as empty and teach background",
        "Pictures with more objects than can be found with detector.post_nms=4: 1, with up to 10",
    ):
        assert part in said, said


@pytest.mark.parametrize("columns", [False, True])
def test_splits_that_say_different_things_of_a_picture_are_not_joined(columns: bool) -> None:
    def dataset(label: int) -> Dataset:
        one, other = (sample_of(Path("a.png"), [(1, 1, 9, 9)], [own]) for own in (0, label))
        splits = {"train": (one,), "extra": (other,)}
        return Dataset("pets", None, ("a", "b"), in_columns(splits, None) if columns else splits)

    assert names(dataset(0), "train+extra") == ["a"]
    with pytest.raises(InputError, match="a has other labels in one of the splits train and extra of pets than in"):
        samples_of(dataset(1), "train+extra")
