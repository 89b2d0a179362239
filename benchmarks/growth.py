"""How the cost of a training step and of a detection grows, one thing at a time, with a plot.

What varies: images a batch, boxes an image, classes, image side, channels, proposals. Each figure is the median of
several steps, the values of a row taken in turns so that a busy moment hits all of them. Beside each stands the
exponent of growth between its last two values: 1 is linear, and costs that are fixed pull it below.

    python benchmarks/growth.py --plot benchmarks/growth.png --json
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from qmimic.run.memory import keep_freed_memory
from train_step import alternate, made_batch, ours, spec_of

SIZE, BATCH, BACKBONE = 128, 8, "resnet18/16"
ROWS: dict[str, Sequence[int]] = {
    "images a batch": (4, 8, 16, 32, 64),
    "boxes an image": (4, 16, 64, 256, 1024),
    "classes": (1, 20, 80, 400),
    "image side, pixels": (128, 256, 512),
    "channels of the map": (16, 32, 64, 128, 256),
    "proposals": (64, 128, 256, 512, 1024),
}


def steps(row: str, value: int) -> tuple[Callable[[], None], Callable[[], None]]:
    """A training step and a detection at one value."""
    batch = value if row == "images a batch" else BATCH
    size = value if row == "image side, pixels" else SIZE
    boxes = value if row == "boxes an image" else 8
    classes = value if row == "classes" else 3
    backbone = f"resnet18/{512 // value}" if row == "channels of the map" else BACKBONE
    changes = {"pre_nms": value, "post_nms": value, "roi_samples": value} if row == "proposals" else {}
    spec = spec_of(backbone, size, classes, **changes)
    images, targets = made_batch(size, batch, torch.device("cpu"), boxes)
    labels = torch.randint(0, classes, targets.labels.shape, generator=torch.Generator().manual_seed(2))
    targets.labels.copy_(labels)
    made = ours(spec, images, targets)
    detector = made.objective.detector

    def detect() -> None:
        detector.eval()
        detector.detect(images)
        detector.train()

    return made.step, detect


def measure(repeats: int) -> dict[str, dict[str, list[float]]]:
    """Milliseconds by row and kind."""
    table: dict[str, dict[str, list[float]]] = {}
    for row, values in ROWS.items():
        pairs = [steps(row, value) for value in values]
        table[row] = {}
        for kind, place in (("training step", 0), ("detection", 1)):
            found = alternate({str(value): pair[place] for value, pair in zip(values, pairs, strict=True)}, repeats)
            table[row][kind] = [round(found[str(value)] * 1e3, 2) for value in values]
            exponent = exponents(values, table[row][kind])[-1]
            figures = "  ".join(f"{value}: {ms:.1f}" for value, ms in zip(values, table[row][kind], strict=True))
            print(f"{row}, {kind}, ms   {figures}   exponent {exponent:.2f}", flush=True)
    return table


def exponents(values: Sequence[int], costs: Sequence[float]) -> list[float]:
    """Of growth from each value to the next."""
    return [math.log(costs[k + 1] / costs[k]) / math.log(values[k + 1] / values[k]) for k in range(len(values) - 1)]


def plot(table: dict[str, dict[str, list[float]]], path: Path) -> None:
    """One panel a row, logarithmic, with a line of linear growth."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(2, 3, figsize=(12, 7), layout="constrained")
    for panel, (row, kinds) in zip(panels.flat, table.items(), strict=True):
        values = ROWS[row]
        for kind, costs in kinds.items():
            panel.plot(values, costs, marker="o", label=kind)
        last = kinds["training step"][-1]
        panel.plot(values, [last * value / values[-1] for value in values], ls=":", color="grey", label="linear")
        panel.set(xscale="log", yscale="log", xlabel=row, ylabel="milliseconds")
        panel.set_xticks(values, labels=[str(value) for value in values])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
    panels.flat[0].legend()
    figure.suptitle(f"{BACKBONE}, {SIZE} px, batch {BATCH}, 8 boxes, 3 classes, unless the axis says otherwise")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print a table, or with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(options.threads)
    table = measure(options.repeats)
    if options.plot:
        plot(table, options.plot)
    if options.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
