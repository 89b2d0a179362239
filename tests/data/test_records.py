"""A record is what was written, or absent; nothing in between."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmimic.data.records import RecordFile
from qmimic.errors import InputError

LENGTH = 11


def opened(path: Path, count: int = 5) -> RecordFile:
    return RecordFile(path, count, LENGTH, "cache", "some.key")


def record(seed: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    return np.random.default_rng(seed).integers(0, 256, LENGTH, dtype=np.uint8)


def test_a_new_file_holds_nothing_and_keeps_what_is_written(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "records.bin"
    records = opened(path)
    assert all(records.read(row) is None for row in range(5))
    records.write(3, record(0))
    records.write(4, np.zeros(LENGTH, np.uint8))  # not to be mistaken for a hole
    for own in (records, opened(path)):
        assert own.read(2) is None
        assert np.array_equal(own.read(3), record(0))
        assert np.array_equal(own.read(4), np.zeros(LENGTH, np.uint8))
    assert path.stat().st_size == RecordFile.size(5, LENGTH)


def test_two_open_files_see_each_other(tmp_path: Path) -> None:
    one, other = opened(tmp_path / "r.bin"), opened(tmp_path / "r.bin")
    assert other.read(1) is None
    one.write(1, record(1))
    assert np.array_equal(other.read(1), record(1))


@given(place=st.integers(0, RecordFile.size(2, LENGTH) - 1), bit=st.integers(0, 7))
def test_any_changed_bit_makes_its_record_absent_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int
) -> None:
    path = tmp_path_factory.mktemp("records") / "r.bin"
    records = opened(path, 2)
    for row in range(2):
        records.write(row, record(row))
    whole = bytearray(path.read_bytes())
    whole[place] ^= 1 << bit
    path.write_bytes(whole)
    damaged = opened(path, 2)
    hit = place // RecordFile.size(1, LENGTH)
    assert damaged.read(hit) is None
    assert np.array_equal(damaged.read(1 - hit), record(1 - hit))


def test_a_file_that_cannot_be_made_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(InputError, match=r"The cache .* cannot be made \(.*some\.key=0 to do without"):
        opened(tmp_path / "file" / "r.bin")
