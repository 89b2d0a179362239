"""Splits by name, joined, and as parts of one; a VOC devkit of several years."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from folders import contents, voc_list, voc_object, voc_xml
from qmimic.data.formats import load_dataset
from qmimic.data.splits import TRAIN, VAL, choose, samples_of
from qmimic.data.synthetic import digits
from qmimic.errors import InputError

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
        (("train", "valid"), "its splits: train, valid. Did you mean valid? In a recipe, set data.val=valid."),
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
