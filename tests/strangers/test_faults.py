"""Disks that are full, in a small file system of this process alone, where the system lets us make one."""

import subprocess
import sys
from pathlib import Path

import pytest

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
    import hashlib

    sums = dict(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("SUM"))
    assert sums == {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(whole.glob("*.safetensors"))
    }
    assert sums
