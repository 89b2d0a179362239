"""A short run of the fuzzer, what it found before, and whether it would notice."""

from pathlib import Path

import fuzz
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qmimic.errors import InputError

CORPUS = Path(__file__).parents[1] / "corpus"
FOUND = sorted(path for path in CORPUS.glob("*/*") if path.is_file())


@pytest.mark.parametrize("name", fuzz.FORMATS)
def test_a_good_file_is_taken_and_changed_ones_end_in_a_result_or_a_sentence(tmp_path: Path, name: str) -> None:
    for number, seed in enumerate(fuzz.FORMATS[name].seeds()):
        assert fuzz.fault(name, seed, tmp_path) is None, number
    for content in fuzz.inputs(name, 1, 25):
        assert fuzz.fault(name, content, tmp_path) is None, content


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_found_before_is_mended(tmp_path: Path, path: Path) -> None:
    assert fuzz.fault(path.parent.name, path.read_bytes(), tmp_path) is None


@given(name=st.sampled_from(["description", "labels", "request", "recipe"]), seed=st.integers(2, 1 << 30))
@settings(max_examples=40, deadline=None)
def test_any_seed_will_do(name: str, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    (content,) = fuzz.inputs(name, seed, 1)
    assert fuzz.fault(name, content, tmp_path_factory.mktemp("a")) is None
    assert [content] == list(fuzz.inputs(name, seed, 1))


def test_the_fuzzer_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(content: bytes, _: Path) -> None:
        if b"x" in content:
            raise KeyError("x")
        raise InputError("a" * (5000 if b"y" in content else 5))

    monkeypatch.setitem(fuzz.FORMATS, "made", fuzz.Format(lambda: [b""], read))
    assert fuzz.fault("made", b"x", tmp_path) == "KeyError: 'x'"
    assert fuzz.fault("made", b"y", tmp_path) == "a sentence of 5000 characters"
    assert fuzz.fault("made", b"z", tmp_path) is None
