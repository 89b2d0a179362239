"""Where the time of a training step goes, and how near its convolutions come to what the machine can do.

Each part is timed by the clock around the functions that make it up; a part called by another counts for itself alone,
so that the column adds up to the step. `data` is what the step waits for its batch: JPEG files of photograph size,
decoded in the first epoch and kept afterwards.

Convolutions are then timed in a second pass by torch's profiler, forward and backward, and their floating-point
operations counted by torch's counter. The peak is that of the best large matrix product on the same threads.

    python benchmarks/profile_step.py --backbone resnet18/16 --arm quantization
"""

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from qmimic.data.loader import Loader
from qmimic.data.pixel_cache import PixelCache
from qmimic.data.sample import Dataset, Sample
from qmimic.detectors import rpn as rpn_module
from qmimic.detectors import two_layer_head, two_stage
from qmimic.run.memory import keep_freed_memory
from qmimic.training import step as objectives
from train_step import BOXES, Made, made_batch, mimicking, ours, spec_of

FIRST, LATER = "data, first epoch", "data, later"
ORDER = (
    "views", "backbone", "RPN", "targets", "proposals", "RoI pooling", "head", "losses", "teacher's bank", "mimic",
    "backward", "optimizer", "the rest",
)  # fmt: skip
CONVOLUTIONS = ("aten::convolution", "aten::convolution_backward")


class Clock:
    """Seconds of each part, without those of the parts that it calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def around(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, its time counted for a part."""

        @functools.wraps(function)
        def timed(*args: Any, **named: Any) -> Any:
            self._switch()
            self._open.append(part)
            try:
                return function(*args, **named)
            finally:
                self._switch()
                self._open.pop()

        return timed

    def _switch(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def watch(made: Made, clock: Clock) -> Callable[[], None]:
    """The step with the clock around all of its parts."""
    detector = made.objective.detector
    places: list[tuple[Any, str, str]] = [
        (objectives, "augment", "views"),
        (detector, "raw_features", "backbone"),
        (detector.rpn, "forward", "RPN"),
        (detector.rpn, "losses", "losses"),
        (detector.rpn, "propose", "proposals"),
        (detector.head, "forward", "head"),
        (detector, "losses", "losses"),
        (made.optimizer, "step", "optimizer"),
        (made.optimizer, "zero_grad", "optimizer"),
        (torch.Tensor, "backward", "backward"),
    ]
    for module in (two_stage, rpn_module):
        places += [(module, name, "targets") for name in ("assign", "sample", "assigned_boxes")]
    places.append((two_stage, "pad_with_truth", "targets"))
    if isinstance(made.objective, objectives.DistillationObjective):
        places.append((made.objective.distiller, "loss", "mimic"))
        places.append((made.objective, "target", "teacher's bank"))
    for owner, name, part in places:
        setattr(owner, name, clock.around(part, getattr(owner, name)))
    poolings = two_layer_head.ROI_POOLINGS
    poolings.update({name: clock.around("RoI pooling", pooling) for name, pooling in poolings.items()})
    return clock.around("the rest", made.step)


def photographs(folder: Path, count: int, size: tuple[int, int]) -> Dataset:
    """JPEG files of so many pixels (width, height), of blurred noise that compresses as photographs do."""
    random = np.random.default_rng(0)
    samples = []
    for number in range(count):
        noise = Image.fromarray(random.integers(0, 256, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
        photo = noise.resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))
        path = folder / f"{number}.jpg"
        photo.save(path, quality=90)
        boxes = np.tile(np.array([[20, 20, 120, 120]], np.float32), (BOXES, 1))
        none = np.zeros(BOXES, bool)
        samples.append(Sample(str(number), path, boxes, np.zeros(BOXES, np.int64), none, none, size))
    return Dataset("photographs", folder, ("a", "b", "c"), {"train": tuple(samples)})


def waits(step: Callable[[], None], dataset: Dataset, size: int, batch: int) -> dict[str, float]:
    """Median seconds that the step waits for its batch while files are decoded, and when they are kept."""
    assert dataset.root is not None
    cache = PixelCache(dataset.root / "pixels.bin", len(dataset.splits["train"]), (size, size), 1 << 30)
    loader = Loader(dataset, "train", (size, size), batch, cache)
    epoch = len(loader.samples) // batch
    found: dict[str, list[float]] = {FIRST: [], LATER: []}
    batches = loader.steps(0, 0, 2 * epoch)
    for number in range(2 * epoch):
        began = time.perf_counter()
        next(batches)
        # The loader works ahead from its first batch on; what it had no chance to is left out.
        if number >= 1:
            found[FIRST if number < epoch else LATER].append(time.perf_counter() - began)
        step()
    return {name: statistics.median(values) for name, values in found.items()}


def peak_flops() -> float:
    """FLOP/s of the best of many large matrix products."""
    a, b = torch.randn(1536, 1536), torch.randn(1536, 1536)
    best = float("inf")
    for _ in range(12):
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2 * 1536**3 / best


def convolutions(step: Callable[[], None], repeats: int) -> tuple[float, float]:
    """Seconds and floating-point operations of a step's convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        step()
    counts = counter.get_flop_counts()["Global"]
    flops = sum(count for kind, count in counts.items() if "convolution" in str(kind))
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(repeats):
            step()
    times = {event.key: event.cpu_time_total for event in profiler.key_averages()}
    return sum(times.get(name, 0) for name in CONVOLUTIONS) / 1e6 / repeats, flops


def main() -> None:
    """Print a table, or with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="resnet18/16")
    parser.add_argument("--arm", choices=["scratch", "quantization"], default="quantization")
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    images, targets = made_batch(options.size, options.batch, torch.device("cpu"))
    spec = spec_of(options.backbone, options.size)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = ours(spec, images, targets)
        if options.arm == "quantization":
            made = mimicking(spec, images, targets, folder)
        for _ in range(3):
            made.step()
        peak = peak_flops()
        conv_seconds, flops = convolutions(made.step, options.repeats)
        clock = Clock()
        step = watch(made, clock)
        rows: list[dict[str, float]] = []
        for _ in range(options.repeats):
            clock.seconds.clear()
            step()
            rows.append(dict(clock.seconds))
        table = {part: statistics.median(row.get(part, 0.0) for row in rows) for part in ORDER}
        table = {part: seconds for part, seconds in table.items() if seconds > 0}
        whole = statistics.median(sum(row.values()) for row in rows)
        data = waits(made.step, photographs(folder, 8 * options.batch, (500, 375)), options.size, options.batch)

    print(f"{options.backbone}, {options.arm}, {options.size} px, batch {options.batch}, {options.threads} threads")
    for part, seconds in {**table, "the step": whole, **data}.items():
        print(f"{part:>18}  {seconds * 1e3:7.1f} ms  {seconds / whole:4.0%}")
    reached = flops / conv_seconds
    print(
        f"convolutions: {conv_seconds * 1e3:.1f} ms, {conv_seconds / whole:.0%} of the step; {flops / 1e9:.2f} GFLOP "
        f"at {reached / 1e9:.0f} GFLOP/s, {reached / peak:.0%} of the peak of {peak / 1e9:.0f}"
    )
    if options.json:
        facts = {"convolutions": conv_seconds / whole, "of_peak": reached / peak, "peak_gflops": peak / 1e9}
        milliseconds = {part: round(seconds * 1e3, 2) for part, seconds in {**table, "step": whole, **data}.items()}
        print(json.dumps({"ms": milliseconds, **{name: round(value, 3) for name, value in facts.items()}}))


if __name__ == "__main__":
    main()
