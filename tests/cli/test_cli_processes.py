"""What only real processes show: Ctrl-C at any moment, many processes, a reader that goes away."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_cases import Refused, coco

from qmimic.cli import main


def reset_interrupt() -> None:
    """A shell's background jobs, and so perhaps these tests, ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_after_ctrl_c_the_same_command_goes_on(recipe: Path, tmp_path: Path) -> None:
    data, run = coco(tmp_path / "data"), tmp_path / "run"
    command = [sys.executable, "-m", "qmimic", "train", str(recipe), f"data.root={data}", f"run.dir={run}"]
    command += ["teacher.steps=100000", "teacher.checkpoint_every=2"]
    begun = []
    for _ in range(2):
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=reset_interrupt
        )
        kept = max(run.rglob("step-*.safetensors"), default=None)
        for _ in range(600):
            if max(run.rglob("step-*.safetensors"), default=None) != kept:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        shown, said = process.communicate(timeout=60)
        assert process.returncode == 2
        assert said.startswith("qmimic: interrupted; the last checkpoint is kept")
        assert said.count("\n") == 1
        assert not list(run.rglob(".*"))
        begun.append("going on from step" in shown)
    assert begun == [False, True]


@pytest.mark.parametrize("moment", ["qmimic.config.settings", "qmimic.data.formats.load_dataset"])
def test_ctrl_c_where_nothing_was_begun(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, interrupt)
    assert refused("data", "check", tmp_path) == "qmimic: interrupted.\n"


def test_of_many_processes_one_writes_and_speaks(recipe: Path, tmp_path: Path) -> None:
    data, run = coco(tmp_path / "data"), tmp_path / "run"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "qmimic", "train", str(recipe), f"data.root={data}", f"run.dir={run}"]
    # More steps than phases: in each of them some weights are not used, and no process may wait for those.
    command += ["run.device=cpu", "student.steps=4", "mimic.map_steps=0.4", "mimic.last_step=0.8"]
    processes = []
    for rank in ("0", "1"):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                command, env={**os.environ, **world}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    shown = []
    try:
        for process in processes:
            out, said = process.communicate(timeout=120)
            assert process.returncode == 0, said
            shown.append(out)
    finally:
        for process in processes:
            process.kill()
    assert "To ship" in shown[0]
    assert shown[1] == ""
    for stage in run.glob("stages/*"):
        boards = [path for path in stage.rglob("*tfevents*") if f".{processes[0].pid}." in path.name]
        assert boards == list(stage.rglob("*tfevents*"))
        if (stage / "log.jsonl").exists():
            steps = [line for line in map(json.loads, (stage / "log.jsonl").read_text().splitlines()) if "loss" in line]
            assert len(steps) == 1
    assert len(list(run.glob("stages/*/detector.safetensors"))) == 3
    assert json.loads((run / "environment.json").read_text())["processes"] == 2


def test_a_process_that_is_not_the_main_one_writes_nothing(
    recipe: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.Accelerator.is_main_process", False)
    data, run = coco(tmp_path / "data"), tmp_path / "run"
    said = refused("train", recipe, f"data.root={data}", f"run.dir={run}")
    assert "put run.dir on a disk that all processes share" in said
    assert not run.exists()


def test_more_processes_than_images_of_a_step(
    recipe: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 8)
    data = coco(tmp_path / "data")
    assert "teacher.batch_size" in refused("train", recipe, f"data.root={data}", f"run.dir={tmp_path / 'run'}")


def test_the_command_line_itself(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["trian"], ["predict", "a.safetensors", "b.png", "--out", "c", "--min-score", "high"]):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert "error: " in capsys.readouterr().err
