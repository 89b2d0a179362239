"""`qmimic runs`: every state of a run is told, and cleaning takes what it said and nothing else."""

import fcntl
import io
import json
import os
import pty
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cli_cases import Refused, train
from qmimic.cli import main
from qmimic.run.cleaning import clean, plan_cleaning
from qmimic.run.folder import read_run
from qmimic.run.listing import list_runs
from qmimic.runtime.formats import FORMATS


@pytest.fixture
def runs(trained: Path, tmp_path: Path) -> Path:
    """A folder `runs` with a finished run `one`, and things that are none."""
    shutil.copytree(trained / "run", tmp_path / "runs" / "one")
    (tmp_path / "runs" / "one" / "bank").mkdir()
    (tmp_path / "runs" / "one" / "bank" / "0123456789ab.bin").write_bytes(bytes(range(250)) * 100)
    (tmp_path / "runs" / "mine").mkdir()
    (tmp_path / "runs" / "mine" / "recipe.yaml").write_text("my cooking")
    (tmp_path / "runs" / "notes.txt").write_text("mine")
    return tmp_path / "runs"


def listed(runs: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, Any]]:
    capsys.readouterr()
    assert main(["runs", str(runs), "--json"]) == 0
    return {own["name"]: own for own in json.loads(capsys.readouterr().out.splitlines()[-1])["runs"]}


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Another process' lock: flock belongs to the opened file, so this one's counts as another's."""
    handle = os.open(folder, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        os.close(handle)


def disk_used(path: Path) -> int:
    """As `du` counts it, without the folder itself."""
    told = subprocess.run(["du", "-s", "-B1", path], capture_output=True, text=True, check=True).stdout
    return int(told.split()[0]) - path.stat().st_blocks * 512


def test_a_finished_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = listed(runs, capsys)
    assert list(found) == ["one"]
    one = found["one"]
    assert (one["kind"], one["status"], one["detail"]) == ("run", "done", "")
    student = json.loads((runs / "one" / "results.json").read_text())["stages"][-1]
    assert (one["network"], one["best"]) == ("student", student["map50"])
    for part in ("stages", "bank", "pixels"):
        assert one["disk"][part] == disk_used(runs / "one" / part)
    assert one["disk"]["whole"] == disk_used(runs / "one")
    # A run's own folder is shown as well.
    assert main(["runs", str(runs / "one")]) == 0
    assert "done" in capsys.readouterr().out


def test_every_state_is_told(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = runs / "one"
    (one / "results.json").unlink()
    teacher = next((one / "stages").glob("teacher-*"))
    for stage in (one / "stages").iterdir():
        if stage != teacher:
            shutil.rmtree(stage)
    own = listed(runs, capsys)["one"]
    assert (own["status"], own["detail"], own["network"]) == ("interrupted", "between two stages", "teacher")
    (teacher / "result.json").unlink()
    own = listed(runs, capsys)["one"]
    assert (own["status"], own["detail"], own["best"]) == ("interrupted", "teacher step 2 of 2", None)
    with at_work(one):
        assert listed(runs, capsys)["one"]["status"] == "at work"
    (one / "failed.txt").write_text("The loss of\x1b[31m teacher became nan.\n")
    own = listed(runs, capsys)["one"]
    assert (own["status"], own["detail"]) == ("failed", "The loss of?[31m teacher became nan.")
    (one / "recipe.yaml").write_text("[")  # damage is no reason to stop
    assert listed(runs, capsys)["one"]["status"] == "failed"


def test_a_run_that_fails_says_so_until_it_is_started_again(
    trained: Path, tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "weak"
    common = trained / "recipe.yaml", f"data.root={trained / 'cats'}", f"run.dir={run}"
    refused("train", *common, "teacher.min_map=1")
    own = listed(tmp_path / "runs", capsys)["weak"]
    assert own["status"] == "failed"
    assert "below teacher.min_map" in own["detail"]
    assert train(trained / "recipe.yaml", trained / "cats", run) == 0
    assert listed(tmp_path / "runs", capsys)["weak"]["status"] == "done"


def test_a_study(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs" / "study-order"
    folder.mkdir(parents=True)
    with sqlite3.connect(folder / "study.sqlite") as table:
        table.execute("CREATE TABLE jobs (id TEXT, kind TEXT, status TEXT, error TEXT, result TEXT)")
        table.execute("CREATE TABLE runs (arm TEXT, job TEXT)")
        rows = [("t", "done", '{"map50": 0.9}'), ("a", "done", '{"map50": 0.5}'), ("b", "waiting", "{}")]
        table.executemany("INSERT INTO jobs VALUES (?, '', ?, '', ?)", rows)
        table.executemany("INSERT INTO runs VALUES (?, ?)", [("scratch", "a"), ("mimic", "b")])
    own = listed(tmp_path / "runs", capsys)["study-order"]
    assert (own["kind"], own["status"], own["detail"]) == ("study", "interrupted", "2 of 3 jobs done")
    assert (own["network"], own["best"]) == ("scratch", 0.5)
    (folder / "study.sqlite").write_bytes(b"no table")
    assert listed(tmp_path / "runs", capsys)["study-order"]["status"] == "failed"


def test_no_runs(tmp_path: Path, refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", str(tmp_path)]) == 0
    assert "There are no runs in" in capsys.readouterr().out
    assert "There is no folder" in refused("runs", tmp_path / "none")
    assert "one argument too many" in refused("runs", tmp_path, tmp_path)
    assert "is only for `qmimic runs clean`" in refused("runs", tmp_path, "--yes")


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_cleaning_takes_banks_and_pixels(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(runs)
    size = sum(disk_used(runs / "one" / part) for part in ("bank", "pixels"))
    assert main(["runs", "clean", "--in", str(runs), "--yes", "--json"]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["freed"] == size > 0
    after = tree(runs)
    assert after == {name: own for name, own in before.items() if not name.startswith(("one/bank/", "one/pixels/"))}
    assert len(after) < len(before)
    assert main(["runs", "clean", "--in", str(runs), "--yes"]) == 0
    assert "nothing to remove" in capsys.readouterr().out


def test_all_that_export_writes_goes_with_its_run(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    deploy = runs / "one" / "deploy"
    deploy.mkdir()
    endings = [suffix for kind in FORMATS.values() for suffix in kind.suffixes]
    for name in (*(f"student{ending}" for ending in endings), "parity.json", "s.h", "s_data.c", "s_detect.c"):
        (deploy / name).write_bytes(b"")
    (deploy / "firmware.ino").write_bytes(b"")
    assert main(["runs", "clean", "one", "--in", str(runs), "--all", "--yes"]) == 0
    assert "keeps what qmimic did not make: deploy/firmware.ino" in " ".join(capsys.readouterr().out.split())
    assert [path.name for path in deploy.iterdir()] == ["firmware.ino"]


def test_what_is_cleaned_is_made_again(runs: Path, trained: Path) -> None:
    (runs / "one" / "student.safetensors").unlink()
    assert main(["runs", "clean", "one", "--in", str(runs), "--bank", "--pixels", "--stages", "--yes"]) == 0
    # The report's reader still finds the run, its results and its logs.
    run = read_run(runs / "one")
    for result in run.results:
        assert (run.stage(result) / "result.json").is_file()
        assert (run.stage(result) / "log.jsonl").is_file() == bool(result.name != "quantized_teacher")
    assert not list((runs / "one").rglob("checkpoints"))
    assert list_runs(runs)[0].status == "done"
    assert train(trained / "recipe.yaml", trained / "cats", runs / "one") == 0
    student = (runs / "one" / "student.safetensors").read_bytes()
    assert student == (trained / "run" / "student.safetensors").read_bytes()


def test_a_run_that_has_not_ended_keeps_its_stages(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "one" / "results.json").unlink()
    before = tree(runs)
    assert main(["runs", "clean", "one", "--in", str(runs), "--stages", "--yes"]) == 0
    assert "has not finished" in capsys.readouterr().out
    assert tree(runs) == before
    assert main(["runs", "clean", "one", "--in", str(runs), "--all", "--yes"]) == 0
    assert not (runs / "one").exists()
    assert (runs / "mine" / "recipe.yaml").read_text() == "my cooking"


def test_a_run_at_work_stays(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(runs)
    with at_work(runs / "one"):
        assert main(["runs", "clean", "one", "--in", str(runs), "--all", "--yes"]) == 0
        assert "is at work" in capsys.readouterr().out
    assert tree(runs) == before
    # It came to work after the plan was made.
    removals, _ = plan_cleaning(runs, ["one"], ["whole"])
    with at_work(runs / "one"), pytest.raises(Exception, match="Another process is training"):
        clean(removals)
    assert tree(runs) == before


def test_what_is_no_run_is_refused(runs: Path, tmp_path: Path, refused: Refused) -> None:
    before = tree(runs)
    for name in ("mine", "none", "notes.txt", "..", str(tmp_path), "/"):
        said = refused("runs", "clean", name, "--in", runs, "--all", "--yes")
        assert "is not a run folder of qmimic; there are one." in said
    assert "name them" in refused("runs", "clean", "--in", runs, "--all", "--yes")
    (runs / "linked").symlink_to(runs / "one")
    assert "is not a run folder" in refused("runs", "clean", "linked", "--in", runs, "--all", "--yes")
    (runs / "one" / "environment.json").write_text("[]")  # not ours any more
    assert "is not a run folder" in refused("runs", "clean", "one", "--in", runs, "--all", "--yes")
    (runs / "one" / "environment.json").write_bytes(before["one/environment.json"])
    (runs / "linked").unlink()
    assert tree(runs) == before


def test_links_are_not_followed(runs: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "photo.jpg").write_text("mine")
    one = runs / "one"
    shutil.rmtree(one / "bank")
    (one / "bank").symlink_to(outside)
    (one / "pixels" / "more").symlink_to(outside)
    stage = next((one / "stages").glob("student-*"))
    (one / "stages" / "stale-000000000000").symlink_to(outside)
    shutil.rmtree(stage / "checkpoints")
    (stage / "checkpoints").symlink_to(outside)
    links = {path for path in one.rglob("*") if path.is_symlink()}
    assert len(links) == 4
    for parts in (["--bank", "--pixels", "--stages"], ["--all"]):
        assert main(["runs", "clean", "one", "--in", str(runs), *parts, "--yes"]) == 0
    assert {path for path in one.rglob("*") if not path.is_dir() or path.is_symlink()} == links  # nobody's but theirs
    assert (outside / "photo.jpg").read_text() == "mine"


def test_only_what_qmimic_makes_is_removed_and_the_rest_is_said(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """At every level of a run's folder; what is left keeps its bytes."""
    one = runs / "one"
    stage = next((one / "stages").glob("student-*"))
    for folder in (one, one / "bank", one / "pixels", one / "stages", stage, stage / "checkpoints", one / "report"):
        folder.mkdir(exist_ok=True)
        for name in ("notes.txt", "my.safetensors", "thesis.bin", ".hidden"):
            (folder / name).write_text(f"{folder} {name}")
    (one / "drawings").mkdir()
    (one / ".teacher-0123456789abcdef.safetensors").write_bytes(b"half")  # of a process that was killed
    mine = {name: own for name, own in tree(one).items() if own.decode("latin-1").endswith(Path(name).name)}
    assert len(mine) == 7 * 4
    capsys.readouterr()
    assert main(["runs", "clean", "one", "--in", str(runs), "--bank", "--pixels", "--stages", "--yes"]) == 0
    assert f"{one} keeps what qmimic did not make: bank/.hidden, bank/my.safetensors" in capsys.readouterr().out
    assert mine.items() <= tree(one).items()
    assert list_runs(runs)[0].status == "done"
    assert main(["runs", "clean", "one", "--in", str(runs), "--all", "--yes"]) == 0
    assert tree(one) == mine
    assert (one / "drawings").is_dir()
    assert "and 24 more" in capsys.readouterr().out


def test_without_a_terminal_nobody_can_be_asked(runs: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tree(runs)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert "add --yes" in refused("runs", "clean", "--in", runs)
    assert tree(runs) == before


@pytest.mark.parametrize(("answer", "goes"), [("y\n", True), ("\n", False), ("n\n", False), ("yesterday\n", False)])
def test_the_question_at_a_terminal(runs: Path, answer: str, goes: bool) -> None:
    command = [sys.executable, "-m", "qmimic", "runs", "clean", "--in", str(runs)]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True)
    os.close(theirs)
    os.write(ours, answer.encode())
    said = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:  # the process has ended
            break
        if not part:
            break
        said += part
    assert process.wait() == 0
    os.close(ours)
    assert b"? [y/N]" in said
    assert (runs / "one" / "pixels").exists() != goes


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_folder_that_cannot_be_written(runs: Path, refused: Refused) -> None:
    (runs / "one").chmod(0o555)
    try:
        assert "Cannot remove" in refused("runs", "clean", "--in", runs, "--yes")
    finally:
        (runs / "one").chmod(0o755)
