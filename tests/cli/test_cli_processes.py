"""What only real processes show: Ctrl-C at any moment, many processes, a reader that goes away."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from cli_cases import Refused, coco
from qmimic.cli import main
from qmimic.training.progress import Screen


def reset_interrupt() -> None:
    """A shell's background jobs, and so perhaps these tests, ignore SIGINT, and children inherit that."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def begun(command: list[str], run: Path) -> subprocess.Popen[str]:
    """A training process that has written its next checkpoint."""
    kept = max(run.rglob("step-*.safetensors"), default=None)
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=reset_interrupt
    )
    until_checkpoint(process, run, kept)
    return process


def until_checkpoint(process: subprocess.Popen[str], run: Path, kept: Path | None) -> None:
    """Wait for a checkpoint newer than `kept`, or for the end of the process."""
    for _ in range(1200):
        if max(run.rglob("step-*.safetensors"), default=None) != kept or process.poll() is not None:
            break
        time.sleep(0.05)


def test_after_a_kill_and_after_ctrl_c_the_same_command_goes_on(
    recipe: Path,
    tmp_path: Path,
    refused: Refused,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data, run = coco(tmp_path / "data"), tmp_path / "run"
    arguments = ["train", str(recipe), f"data.root={data}", f"run.dir={run}"]
    arguments += ["teacher.steps=100000", "teacher.checkpoint_every=2"]
    command = [sys.executable, "-m", "qmimic", *arguments]

    process = begun(command, run)
    # While it trains no other process may write beside it, and it takes no harm from one that tries.
    assert f"Another process is training in {run}" in refused(*arguments)
    assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)

    for number, words in (signal.SIGTERM, "stopped by SIGTERM"), (signal.SIGINT, "interrupted"):
        process = begun(command, run)
        process.send_signal(number)
        shown, said = process.communicate(timeout=60)
        assert process.returncode == 128 + number
        assert "continuing from step" in shown
        assert said == f"qmimic: {words}; the last checkpoint is kept, and the same command continues from it.\n"
    for path in run.rglob("*.safetensors"):  # half a file, which the kill may have left, is gone
        load_file(path)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qmimic.data.loader.Loader.steps", interrupt)
    assert main(arguments) == 130
    assert "continuing from step" in capsys.readouterr().out


@pytest.mark.parametrize("moment", ["qmimic.cli.entry.parser", "qmimic.data.formats.load_dataset"])
def test_ctrl_c_where_nothing_was_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], moment: str
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(moment, interrupt)
    assert main(["data", "check", str(tmp_path)]) == 130
    assert capsys.readouterr().err == "qmimic: interrupted.\n"


def started(command: list[str], count: int) -> list[subprocess.Popen[str]]:
    """Processes of one run, started as `torchrun` starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in map(str, range(count)):
        world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
        processes.append(
            subprocess.Popen(
                command, env={**os.environ, **world}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
        )
    return processes


def together(command: list[str], count: int) -> list[tuple[int, str, str, int]]:
    """Exit code, output, errors and id of processes of one run."""
    processes = started(command, count)
    try:
        ended = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, out, said, p.pid) for p, (out, said) in zip(processes, ended, strict=True)]


def test_of_many_processes_one_writes_and_speaks_and_all_do_what_one_would(recipe: Path, tmp_path: Path) -> None:
    data, run = coco(tmp_path / "data"), tmp_path / "run"
    # More steps than phases: in each of them some weights are not used, and no process may wait for those.
    settings = [str(recipe), f"data.root={data}", "run.device=cpu", "run.threads=1", "student.steps=4"]
    settings += ["mimic.map_steps=0.4", "mimic.last_step=0.8", "student.batch_size=3", "baselines=[scratch,taylor]"]
    settings += ["teacher.backbone=resnet18/16", "pruning.rounds=2", "pruning.steps=1"]
    settings += ["pruning.learning_rate=0.0003"]  # AdamW's first steps are as large where rounding decides their sign
    ended = together([sys.executable, "-m", "qmimic", "train", *settings, f"run.dir={run}"], 2)
    assert [code for code, *_ in ended] == [0, 0], ended[0][2] + ended[1][2]
    shown = [out for _, out, *_ in ended]
    main_id = ended[0][3]
    assert main(["train", *settings, f"run.dir={tmp_path / 'one'}"]) == 0
    for name in ("teacher", "scratch", "taylor", "student"):
        two, one = (load_file(folder / f"{name}.safetensors") for folder in (run, tmp_path / "one"))
        for key in one:
            torch.testing.assert_close(two[key], one[key], rtol=1e-3, atol=2e-4, msg=lambda m, k=key: f"{k}: {m}")
    assert "To ship" in shown[0]
    assert shown[1] == ""
    for stage in run.glob("stages/*"):
        boards = [path for path in stage.rglob("*tfevents*") if f".{main_id}." in path.name]
        assert boards == list(stage.rglob("*tfevents*"))
        if (stage / "log.jsonl").exists():
            steps = [line for line in map(json.loads, (stage / "log.jsonl").read_text().splitlines()) if "loss" in line]
            assert len(steps) == 1
    assert len(list(run.glob("stages/*/detector.safetensors"))) == 6
    assert json.loads((run / "environment.json").read_text())["processes"] == 2


def test_a_process_that_dies_ends_the_run_in_a_sentence_and_torchrun_goes_on(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Else torch's restarted processes look for each other at the addresses of the dead ones.
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")
    data, run = coco(tmp_path / "data"), tmp_path / "run"
    settings = [str(recipe), f"data.root={data}", f"run.dir={run}", "run.device=cpu", "run.threads=1"]
    settings += ["teacher.backbone=resnet18/32", "teacher.checkpoint_every=2", "teacher.steps=60"]
    alive, dying = started([sys.executable, "-m", "qmimic", "train", *settings], 2)
    until_checkpoint(alive, run, None)
    dying.kill()
    _, said = alive.communicate(timeout=60)
    dying.communicate(timeout=60)
    assert alive.returncode == 2
    assert said.splitlines()[-1].startswith("qmimic: another process of this run has ended (see its output); the last")

    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    process = begun([*launcher, "-m", "qmimic", "train", *settings], run)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    shown, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "continuing from step" in shown
    assert "To ship" in shown


def children(process: int) -> list[int]:
    """Ids of the processes that one has started and that are still there, in the order of their start."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_a_process_that_is_not_the_main_one_writes_no_more_than_decoded_images(
    recipe: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.Accelerator.is_main_process", False)
    data, run = coco(tmp_path / "data"), tmp_path / "run"
    said = refused("train", recipe, f"data.root={data}", f"run.dir={run}")
    assert "put run.dir on a disk that all processes share" in said
    assert [path.name for path in run.iterdir()] == ["pixels"]


def test_more_processes_than_images_of_a_step(
    recipe: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accelerate.Accelerator.num_processes", 8)
    data = coco(tmp_path / "data")
    assert "teacher.batch_size" in refused("train", recipe, f"data.root={data}", f"run.dir={tmp_path / 'run'}")


def test_a_reader_that_goes_away_ends_the_process_like_any_other_fault() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.raises(BrokenPipeError), os.fdopen(writing, "w", closefd=False) as file:
        Screen(file=file).print("text")
    os.close(writing)


def test_without_a_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    assert main(["schema"]) == 0


def test_a_terminal_that_knows_only_ascii(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = tmp_path / "grüße \udcff.png"
    try:
        Image.new("RGB", (20, 10)).save(picture)
    except OSError:
        pytest.skip("this disk takes no such names")
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", shown)
    assert main(["predict", str(trained / "run" / "student.safetensors"), str(picture), "--out", str(tmp_path)]) == 2
    out = tmp_path / "ö"
    assert main(["predict", str(trained / "run" / "student.safetensors"), str(picture), "--out", str(out)]) == 0
    assert [path.name for path in out.iterdir()] == [picture.name]
    assert "gr\\xfc\\xdfe \\udcff.png" in shown.buffer.getvalue().decode("ascii")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--quiet"], "the following arguments are required: COMMAND; see `qmimic --help`."),
        (["trian"], "invalid choice: 'trian'"),
        (["data"], "required"),
        (["predict", "a.safetensors", "--out", "c"], "required: images; see `qmimic predict --help`."),
        (["predict", "a.safetensors", "b.png", "--out", "c", "--min-score", "high"], "invalid float value: 'high'"),
        (["data", "check", "folder", "--size", "64"], "expected 2 arguments"),
        (["data", "convert", "folder", "other", "--to", "csv"], "choose from"),
        (["schema", "--loud"], "unrecognized arguments: --loud"),
    ],
)
def test_the_command_line_itself(refused: Refused, arguments: list[str], says: str) -> None:
    assert says in refused(*arguments)
