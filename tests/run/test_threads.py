"""A run takes the threads that are idle, says so, and goes on with as many as it began with."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from qmimic.config import RunConfig
from qmimic.run import threads
from qmimic.run.folder import ENVIRONMENT


@pytest.mark.parametrize(
    ("most", "load", "wanted"), [(2, 0.0, 2), (2, 0.4, 2), (2, 1.0, 1), (2, 9.0, 1), (1, 3.0, 1), (64, 10.0, 54)]
)
def test_idle_cores_are_taken(
    most: int, load: float, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "cores", lambda: most)
    number, said = threads.choose(RunConfig(), tmp_path, load)
    assert number == wanted
    assert bool(said) == (wanted < most)
    if said:
        assert said.startswith(f"{wanted} of {most} threads: others want {load:.1f} of {most} cores")
    assert threads.choose(RunConfig(threads=3), tmp_path, load) == (3, "")


@pytest.mark.parametrize(
    ("most", "here", "load", "wanted"), [(2, 2, 0.0, 1), (8, 2, 0.0, 4), (8, 2, 4.0, 2), (8, 3, 0.0, 2), (2, 4, 9.0, 1)]
)
def test_processes_of_a_run_share_the_cores(
    most: int, here: int, load: float, wanted: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "cores", lambda: most)
    number, _ = threads.choose(RunConfig(), tmp_path, load, here)
    assert number == wanted
    assert number * here <= max(most, here)


def test_a_run_that_goes_on_keeps_its_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "cores", lambda: 4)
    (tmp_path / ENVIRONMENT).write_text(json.dumps({"threads": 2}))
    assert threads.choose(RunConfig(), tmp_path, 0.0, here=4) == (
        1, "1 of the 2 threads that the run began with: its weights will be slightly other ones."
    )  # fmt: skip
    number, said = threads.choose(RunConfig(), tmp_path, 0.0)
    assert number == 2
    assert said.startswith("2 of 4 threads, as before")
    assert threads.choose(RunConfig(threads=4), tmp_path, 0.0)[0] == 4
    for spoilt in ("[]", '{"threads": "2"}', "{"):
        (tmp_path / ENVIRONMENT).write_text(spoilt)
        assert threads.choose(RunConfig(), tmp_path, 0.0) == (4, "")


def test_waiting_threads_sleep_before_torch_is_loaded() -> None:
    script = (
        "import os, sys; from qmimic.cli import main; main(['runs', 'nowhere'])\n"
        "print('torch' in sys.modules, os.environ['OMP_WAIT_POLICY'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False PASSIVE", done.stderr
