"""Columns give back the samples that they were made of, in any selection."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmimic.data.columns import Columns, box_counts, in_columns
from qmimic.data.sample import Sample
from qmimic.errors import InputError

ROOT = Path("/nowhere")


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    count = draw(st.integers(0, 3))
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    # As a disk has names: bytes that are not UTF-8 come as surrogates, of which no others can be.
    name = os.fsdecode(draw(st.binary(min_size=1, max_size=8)).replace(b"/", b"x").replace(b"\0", b"y"))
    return Sample(
        name,
        ROOT / "images" / f"x{name}.jpg",
        random.normal(size=(count, 4)).astype(np.float32),
        random.integers(0, 9, count),
        random.random(count) < 0.5,
        random.random(count) < 0.5,
        draw(st.none() | st.tuples(st.integers(1, 9000), st.integers(1, 9000))),
    )


def same(one: Sample, other: Sample) -> bool:
    arrays = ("boxes", "labels", "difficult", "crowd")
    plain = (one.image_id, one.image, one.size) == (other.image_id, other.image, other.size)
    pairs = [(getattr(one, name), getattr(other, name)) for name in arrays]
    return plain and all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in pairs)


@given(own=st.lists(samples(), max_size=6), data=st.data())
def test_samples_come_back(own: list[Sample], data: st.DataObject) -> None:
    columns = in_columns({"all": own}, ROOT)["all"]
    assert len(columns) == len(own)
    assert all(same(a, b) for a, b in zip(columns, own, strict=True))
    places = data.draw(st.lists(st.integers(0, len(own) - 1), max_size=8)) if own else []
    taken = columns.take(places)
    chosen = [own[place] for place in places]
    assert all(same(a, b) for a, b in zip(taken, chosen, strict=True))
    assert taken.ids == [sample.image_id for sample in chosen]
    assert box_counts(taken).tolist() == box_counts(chosen).tolist() == [len(sample.boxes) for sample in chosen]
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(sample.boxes for sample in chosen)])
    assert np.array_equal(taken.store.boxes[taken.box_rows], boxes)
    assert all(same(a, b) for a, b in zip(columns[1:], own[1:], strict=True))


def test_splits_share_one_store_and_a_shared_sample_is_held_once() -> None:
    none = np.zeros(1, np.bool_)
    one, two, three = (
        Sample(str(k), None, np.full((1, 4), k, np.float32), np.array([k]), none, none) for k in range(3)
    )
    columns = in_columns({"train": [one], "val": [two, three], "trainval": [one, two, three]}, None)
    assert len({id(own.store) for own in columns.values()}) == 1
    assert len(columns["train"].store.boxes) == 3
    assert columns["trainval"].rows.tolist() == [*columns["train"].rows, *columns["val"].rows]
    assert in_columns(columns, None)["train"] is columns["train"]


def test_a_path_out_of_the_folder_or_no_path_is_refused(tmp_path: Path) -> None:
    none = np.zeros(0, np.bool_)
    sample = Sample("a", tmp_path / "a.jpg", np.zeros((0, 4), np.float32), np.zeros(0, np.int64), none, none)
    store = in_columns({"train": [sample]}, tmp_path)["train"].store
    for name in (b"../../a", b"/etc/a", b"x\0yzw_", b"\xff.jpg"):
        text = np.frombuffer(name, np.uint8)
        evil = replace(store, image_bytes=text, image_starts=np.array([0, len(text)], np.int64))
        with pytest.raises(InputError):
            Columns(evil, tmp_path, np.array([0]))[0]
