"""Disks that are full or read-only, signals, clocks that jump: each done for real where the system lets us.

A small file system of one process alone needs a namespace; where nobody may make one the tests are skipped.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from cli_cases import coco, train
from qmimic.cli import main
from qmimic.data import index
from qmimic.run.folder import mark_begun, read_run
from qmimic.run.listing import list_runs

SMALL = """
import os, subprocess, sys
folder, size, *command = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", folder], check=True)
full = os.path.join(folder, "filler")
code = subprocess.run(command, env={**os.environ, "FULL": full}).returncode
left = sorted(os.path.join(at, name) for at, _, names in os.walk(folder) for name in names)
print("LEFT", *[path for path in left if os.path.basename(path).startswith(".")])
if os.path.exists(full):
    os.remove(full)
again = subprocess.run(command).returncode
print("CODES", code, again)
import glob, hashlib
for path in sorted(glob.glob(folder + "/run/*.safetensors")):
    print("SUM", os.path.basename(path), hashlib.sha256(open(path, "rb").read()).hexdigest())
"""
# Fills the disk at the second checkpoint, and only the first time, when FULL is set.
TRAIN = """
import os, sys
from qmimic.cli import main
from qmimic.training import loop
save, calls = loop.save_checkpoint, []
def filling(*arguments):
    calls.append(1)
    if len(calls) == 2 and os.environ.get("FULL"):
        with open(os.environ["FULL"], "wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 12)):
                    pass
            except OSError:
                pass
    save(*arguments)
loop.save_checkpoint = filling
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """A command that runs another one where it may mount a file system."""
    command = ["unshare", "--user", "--map-root-user", "--mount"]
    folder = tmp_path_factory.mktemp("mounted")
    try:
        trial = [*command, "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(folder)]
        subprocess.run(trial, check=True, capture_output=True, timeout=30)
    except (OSError, subprocess.SubprocessError) as error:
        pytest.skip(f"this system lets nobody mount a small file system: {error}")
    return command


def test_a_full_disk_ends_in_a_sentence_and_the_run_goes_on_to_the_same_weights(
    namespace: list[str], trained: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    recipe = [str(trained / "recipe.yaml"), f"data.root={trained / 'cats'}", "data.cache_mib=0", "run.bank_mib=0"]
    recipe += ["teacher.steps=4", "teacher.checkpoint_every=1"]
    command = [sys.executable, "-c", TRAIN, "train", *recipe, f"run.dir={disk / 'run'}"]
    done = subprocess.run(
        [*namespace, sys.executable, "-c", SMALL, str(disk), "400m", *command],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert "CODES 2 0" in done.stdout, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("qmimic: ")]
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert "Traceback" not in done.stderr
    assert "LEFT\n" in done.stdout  # nothing half-written
    whole = tmp_path / "whole"
    subprocess.run([sys.executable, "-m", "qmimic", "train", *recipe, f"run.dir={whole}"], check=True, timeout=500)
    sums = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("SUM"))
    assert sums == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(whole.glob("*.safetensors"))
    }
    assert sums


# Fills the disk but for some bytes, runs a command, and again with room; what was there before has to be there after.
FULL = """
import hashlib, os, shutil, subprocess, sys
folder, source, room, *command = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", folder], check=True)
run = shutil.copytree(source, os.path.join(folder, "run"))
def sums():
    walk = ((at, name) for at, _, names in os.walk(folder) for name in names if name != "filler")
    paths = [os.path.join(at, name) for at, name in walk]
    return {path: hashlib.sha256(open(path, "rb").read()).hexdigest() for path in paths}
before = sums()
with open(os.path.join(folder, "filler"), "wb", buffering=0) as file:
    left = os.statvfs(folder)
    try:
        for _ in range((left.f_bavail * left.f_frsize - int(room)) // 4096):
            file.write(bytes(4096))
    except OSError:
        pass
code = subprocess.run(command).returncode
print("SAME", before == sums())
os.remove(os.path.join(folder, "filler"))
print("CODES", code, subprocess.run(command).returncode)
"""


@pytest.mark.parametrize(("what", "room"), [("export", 80_000), ("report", 0)])
def test_a_full_disk_leaves_nothing_half_written(
    namespace: list[str], trained: Path, tmp_path: Path, what: str, room: int
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    given = {"export": [str(disk / "run" / "student.safetensors"), "--to", "onnx"], "report": [str(disk / "run")]}[what]
    command = [sys.executable, "-m", "qmimic", what, *given]
    alone = tmp_path / "alone"  # one network: a report exports each to time it
    assert train(trained / "recipe.yaml", trained / "cats", alone, "mimic.mode=none") == 0
    done = subprocess.run(
        [*namespace, sys.executable, "-c", FULL, str(disk), str(alone), str(room), *command],
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert "CODES 2 0" in done.stdout, done.stdout + done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("qmimic: ")]
    assert len(said) == 1
    assert "No space left on device" in said[0]
    assert "Traceback" not in done.stderr
    assert "SAME True" in done.stdout


READ_ONLY = """
import subprocess, sys
folder, *command = sys.argv[1:]
subprocess.run(["mount", "--bind", folder, folder], check=True)
subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
sys.exit(subprocess.run(command).returncode)
"""


def in_read_only(namespace: list[str], folder: Path, *command: object, cache: Path) -> tuple[int, str, str]:
    """Exit code, output and errors of a qmimic command while a folder is read-only."""
    ours = [sys.executable, "-m", "qmimic", *map(str, command)]
    done = subprocess.run(
        [*namespace, sys.executable, "-c", READ_ONLY, str(folder), *ours],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "XDG_CACHE_HOME": str(cache)},
    )
    return done.returncode, done.stdout, done.stderr


def test_the_index_of_a_read_only_dataset_goes_to_the_users_cache(
    namespace: list[str], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, cache = coco(tmp_path / "data"), tmp_path / "cache"
    code, shown, said = in_read_only(namespace, data, "data", "index", data, cache=cache)
    assert (code, said) == (0, "")
    assert f"It is there because {data} cannot be written." in shown
    assert not (data / index.FOLDER).exists()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert index.exists(data)
    assert len(index.read(data, drop_bad=False).splits["train"]) == 4
    recipe = [str(trained / "recipe.yaml"), f"data.root={data}", f"run.dir={tmp_path / 'run'}"]
    code, _, said = in_read_only(namespace, data, "train", *recipe, cache=cache)
    assert (code, said) == (0, "")
    picture = next(data.glob("train/*.png"))
    os.utime(picture.parent, ns=(1, 1))  # as if a picture had come or gone
    assert main(["train", *recipe]) == 2
    index.make(data, drop_bad=False)  # it can be written now, and its own index goes first
    assert (data / index.FOLDER).is_dir()
    assert len(index.read(data, drop_bad=False).splits["train"]) == 4


def test_a_read_only_run_folder_is_one_sentence(namespace: list[str], trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    begin = [str(trained / "recipe.yaml"), f"data.root={trained / 'cats'}", f"run.dir={run}", "seed=7"]
    for command in (
        ["train", *begin],
        ["export", str(run / "student.safetensors"), "--to", "onnx"],
        ["report", str(run)],
    ):
        code, _, said = in_read_only(namespace, run, *command, cache=tmp_path / "cache")
        lines = [line for line in said.splitlines() if line.startswith("qmimic: ")]
        assert code == 2, said
        assert len(lines) == 1
        assert "Read-only file system" in lines[0]
        assert "Traceback" not in said


def test_weights_after_signals_are_those_of_an_unbroken_run(trained: Path, tmp_path: Path) -> None:
    """Stopped by each signal, wherever it is just then."""
    recipe = [str(trained / "recipe.yaml"), f"data.root={trained / 'cats'}", "data.cache_mib=0", "run.bank_mib=0"]
    recipe += ["teacher.steps=40", "teacher.checkpoint_every=2", "student.steps=40", "student.checkpoint_every=2"]
    run, whole, stopped = tmp_path / "run", tmp_path / "whole", 0
    for turn in range(40):
        number = (signal.SIGTERM, signal.SIGINT)[turn % 2]
        process = subprocess.Popen(
            [sys.executable, "-m", "qmimic", "train", *recipe, f"run.dir={run}"],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        before = set(run.rglob("step-*.safetensors"))
        while process.poll() is None and set(run.rglob("step-*.safetensors")) <= before:
            time.sleep(0.02)
        time.sleep(0.07 * turn)
        if process.poll() is None and stopped < 2:
            process.send_signal(number)
        _, said = process.communicate(timeout=120)
        if process.returncode == 0:
            break
        assert process.returncode == 128 + number
        assert said.endswith("the same command continues from it.\n")
        stopped += 1
    assert stopped == 2  # by each signal
    subprocess.run([sys.executable, "-m", "qmimic", "train", *recipe, f"run.dir={whole}"], check=True, timeout=500)
    for name in ("teacher", "student"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (run, whole))
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


# Each look at the clock says another year, forwards or backwards.
JUMPING = """
import itertools, time
true, jumps = time.time, itertools.cycle((0, 4e8, -9e8, 2e9, -1e9))
time.time = lambda: max(0.0, true() + next(jumps))
time.time_ns = lambda: int(1e9 * time.time())
"""


def test_clocks_that_jump_change_nothing(trained: Path, tmp_path: Path) -> None:
    recipe = [str(trained / "recipe.yaml"), f"data.root={trained / 'cats'}", f"run.dir={tmp_path / 'run'}"]
    code = f"{JUMPING}\nimport sys\nfrom qmimic.cli import main\nsys.exit(main(sys.argv[1:]))"
    for _ in range(2):  # and again, when all is done
        done = subprocess.run(
            [sys.executable, "-c", code, "train", *recipe], capture_output=True, text=True, timeout=300
        )
        assert (done.returncode, done.stderr) == (0, "")
    for name in ("teacher", "student"):
        one, other = (load_file(folder / f"{name}.safetensors") for folder in (tmp_path / "run", trained / "run"))
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


@pytest.mark.parametrize("years", [-40, 40])
def test_what_a_run_has_come_to_does_not_depend_on_the_times_of_its_files(
    trained: Path, tmp_path: Path, years: int
) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "runs" / "one")
    then = time.time() + years * 365 * 86400
    stage = shutil.copytree(next((run / "stages").glob("student-*")), run / "stages" / "student-0123456789ab")
    (stage / "result.json").unlink()  # of other settings, never ended
    for path in (run / "results.json", stage / "log.jsonl"):
        os.utime(path, (then, then))
        (found,) = list_runs(tmp_path / "runs")
        assert found.status == "done"
    mark_begun(run)
    os.utime(run / "results.json", (then, then))
    (found,) = list_runs(tmp_path / "runs")
    assert (found.status, found.detail) == ("interrupted", "student step 2 of 2")
    assert read_run(run).results  # what it had reached is still there
