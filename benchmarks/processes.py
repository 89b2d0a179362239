"""A training step of one batch on one process and on two: time, and what moves between them.

The global batch stays the same, each process has its rows of it, as under `torchrun`. Bytes are those that the loopback
device counts, so nothing else should use it meanwhile.

    python benchmarks/processes.py --json
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

CASES = ((1, 1), (1, 2), (2, 1))  # processes, threads of each
BACKBONES = ("resnet18/16", "resnet18/4")


def worker(backbone: str, size: int, batch: int, steps: int, threads: int) -> None:
    """One process; the first prints what it measured."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    from qmimic.data.augment import STILL
    from qmimic.data.targets import Targets
    from qmimic.detectors.build import build
    from qmimic.run.memory import keep_freed_memory
    from qmimic.training.loop import step_generators
    from qmimic.training.optimizer import build_optimizer
    from qmimic.training.step import DetectionObjective
    from train_step import ScheduleConfig, made_batch, spec_of

    keep_freed_memory()
    torch.set_num_threads(threads)
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    rows = slice(accelerator.process_index, None, accelerator.num_processes)
    images, targets = made_batch(size, batch, accelerator.device)
    images = images[rows].contiguous(memory_format=torch.channels_last)
    targets = Targets(targets.boxes[rows], targets.labels[rows])
    objective = DetectionObjective(build(spec_of(backbone, size)), STILL).train()
    parameters = sum(parameter.numel() for parameter in objective.parameters())
    wrapped, optimizer = accelerator.prepare(objective, build_optimizer(objective, ScheduleConfig()))
    times = []
    before = 0
    for step in range(steps + 3):
        if step == 3:
            before = loopback()
        began = time.perf_counter()
        chance = step_generators(0, step, accelerator.device)
        if accelerator.num_processes > 1:
            chance = chance.of_rows(rows, batch)
        losses = wrapped(images, targets, chance, 0.0)
        optimizer.zero_grad()
        accelerator.backward(torch.stack(list(losses.values())).sum())
        optimizer.step()
        times.append(time.perf_counter() - began)
    if accelerator.is_main_process:
        moved = (loopback() - before) / steps / max(1, accelerator.num_processes)
        seconds = statistics.median(times[3:])
        print(json.dumps({"images_per_s": batch / seconds, "kB_sent": moved / 1e3, "parameters": parameters}))
    accelerator.end_training()


def loopback() -> int:
    """Bytes that this machine has sent to itself."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def together(count: int, threads: int, arguments: list[str]) -> dict[str, float]:
    """What the first of so many processes measured."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in range(count):
        world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": str(threads)}
        processes.append(
            subprocess.Popen(
                [sys.executable, __file__, "--worker", "--threads", str(threads), *arguments],
                env={**os.environ, **(world if count > 1 else {})},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
    outputs = [process.communicate()[0] for process in processes]
    found: dict[str, float] = json.loads(outputs[0].splitlines()[-1])
    return found


def main() -> None:
    """Print a table, or with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--backbones", nargs="+", default=BACKBONES)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--backbone", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.backbone, options.size, options.batch, options.steps, options.threads)
        return
    table = {}
    for backbone in options.backbones:
        for count, threads in CASES:
            arguments = [f"--{name}={getattr(options, name)}" for name in ("size", "batch", "steps")]
            found = together(count, threads, [*arguments, f"--backbone={backbone}"])
            table[f"{backbone}, {count} x {threads}"] = {key: round(value, 1) for key, value in found.items()}
            print(
                f"{backbone}, {count} process(es) of {threads} thread(s): {found['images_per_s']:.1f} images/s, "
                f"{found['kB_sent']:.0f} kB sent by each a step, {found['parameters']:,.0f} parameters",
                flush=True,
            )
    if options.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
