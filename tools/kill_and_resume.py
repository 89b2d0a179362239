"""Kills a training with SIGKILL at random moments, resumes it, and compares the result with an undisturbed run.

    python tools/kill_and_resume.py recipes/demo.yaml --kills 100 data.root=photos/ teacher.steps=60 student.steps=60

Every stage's weights and log must be the same, bit for bit. A run that ends before its kill is compared, and a new one
begins. The output ends with a line of counts; the exit code is 1 if anything differed.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from qmimic import train
from qmimic.config import Recipe, load_recipe
from qmimic.training.progress import Silent


def main(arguments: list[str]) -> int:
    """Kill, resume, compare, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    options = parser.parse_intermixed_args(arguments)  # options and overrides in any order
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = (Path(folder) / name for name in ("whole", "killed"))
        recipe = load_recipe(options.recipe, [*options.overrides, "run.threads=1"])
        began = time.monotonic()
        if wait(started(recipe, whole)):
            return 1
        length = time.monotonic() - began
        print(f"undisturbed: {length:.1f} s", flush=True)
        kills: Counter[str] = Counter()
        ends = faults = 0
        while kills.total() < options.kills or not ends:
            alive = started(recipe, killed)
            # Soon, so that a run is killed several times; the last run is left alone, so that it is compared.
            moment = chance.uniform(0, length / 3) if kills.total() < options.kills else None
            if moment is not None and killed_at(alive, moment):
                kills[at_work(killed)] += 1
                continue
            if wait(alive):
                return 1
            found = differences(whole, killed)
            ends, faults = ends + 1, faults + bool(found)
            print(f"after {kills.total()} kills: {', '.join(found) or 'the same'}", flush=True)
            shutil.rmtree(killed)
    places = ", ".join(f"{stage} {count}" for stage, count in sorted(kills.items()))
    print(f"{kills.total()} kills ({places}), {ends} finished runs, {faults} of them different")
    return int(faults > 0)


def started(recipe: Recipe, folder: Path) -> int:
    """Start a process that trains the recipe in a folder, a fork of this one, which saves the imports; gives its id."""
    sys.stdout.flush()
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        train(recipe.model_copy(update={"run": recipe.run.model_copy(update={"dir": str(folder)})}), Silent())
        code = 0
    finally:
        os._exit(code)


def killed_at(process: int, moment: float) -> bool:
    """Kill a process after this many seconds; False if it ended before."""
    until = time.monotonic() + moment
    while time.monotonic() < until:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return False
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    wait(process)
    return True


def wait(process: int) -> int:
    """The exit code of a process; negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def at_work(folder: Path) -> str:
    """The stage that was in progress."""
    stages = sorted((folder / "stages").glob("*"), key=lambda path: path.stat().st_mtime)
    open_stages = [path.name.rpartition("-")[0] for path in stages if not (path / "result.json").exists()]
    return open_stages[-1] if open_stages else "between stages"


def differences(whole: Path, other: Path) -> list[str]:
    """Files of the stages that differ."""
    names = sorted(
        path.relative_to(whole)
        for pattern in ("stages/*/detector.safetensors", "stages/*/log.jsonl", "stages/*/result.json")
        for path in whole.glob(pattern)
    )
    return [
        str(name)
        for name in names
        if not (other / name).exists() or (whole / name).read_bytes() != (other / name).read_bytes()
    ]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
