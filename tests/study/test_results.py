"""docs/results.md says what its tables say."""

import shlex
from pathlib import Path

import pytest

from qmimic.cli import main

ROOT = Path(__file__).parents[2]


def test_the_results_are_made_anew_from_their_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    command = text.split("`")[1]
    _, *arguments = shlex.split(command)
    again = tmp_path / "results.md"
    assert arguments[-2:] == ["--out", "docs/results.md"]
    monkeypatch.chdir(ROOT)
    assert main([*arguments[:-1], str(again)]) == 0
    assert again.read_text(encoding="utf-8").replace(str(again), "docs/results.md") == text
    pictures = {path.name for path in tmp_path.glob("*.png")}
    assert pictures == {path.name for path in (ROOT / "docs").glob("results-*.png")}
    assert all(f"({name})" in text for name in pictures)
