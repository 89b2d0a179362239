"""Images a second of a whole training step, ours against torchvision's Faster R-CNN, alternating in one run.

Both have the same backbone, image size, batch, anchors, sampling and optimizer; both are fed from memory, so decoding
counts for neither. Ours includes its augmentation switched off, as torchvision's has none. Where the product computes
a network in bf16 with channels last by default (wide networks on a CPU that has it), so does this benchmark.

`mimic_over_scratch` is the time of a quantization-mimic step of `resnet18/16`, its teacher `resnet18/4` read from a
full bank, over that of the same step without a teacher: the mean of as many steps as lie between two measurements of
the dose, after its first steps, in which it is measured each time.

    python benchmarks/train_step.py --json
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from qmimic.api import build_detector
from qmimic.config import MimicConfig, QuantizerConfig, Recipe, ScheduleConfig
from qmimic.data.augment import STILL
from qmimic.data.targets import Targets
from qmimic.detectors.build import build
from qmimic.detectors.quantize import Quantizer
from qmimic.detectors.spec import DetectorSpec
from qmimic.distill.bank import Bank, layout_of
from qmimic.distill.distiller import Sides
from qmimic.distill.dose import EVERY, FIRST
from qmimic.distill.teacher import DetectorTeacher
from qmimic.run.memory import keep_freed_memory
from qmimic.tables import DISTILLERS
from qmimic.training.optimizer import build_optimizer
from qmimic.training.precision import bf16_by_default
from qmimic.training.step import DetectionObjective, DistillationObjective, StepGenerators
from torchvision_twin import twin

NETWORKS = ("resnet18/16", "resnet18/1", "resnet18/4", "resnet18/32", "vgg16/32")
STUDENT, TEACHER = "resnet18/16", "resnet18/4"
BOXES = 8
ANCHORS = tuple((side * ratio, side / ratio) for side in (24.0, 48.0, 96.0) for ratio in (0.71, 1.0, 1.41))


@dataclass(frozen=True)
class Made:
    """A training step of ours as a function, and what it trains."""

    step: Callable[[], None]
    objective: DetectionObjective | DistillationObjective
    optimizer: torch.optim.Optimizer


def spec_of(backbone: str, size: int, classes: int = 3, **changes: int) -> DetectorSpec:
    """The recipe's default detector, or a changed one."""
    names = tuple(f"class {number}" for number in range(classes))
    config = Recipe().detector.model_copy(update=changes)
    return build_detector(backbone, names, (size, size), ANCHORS, config).spec


def ours(spec: DetectorSpec, images: torch.Tensor, targets: Targets) -> Made:
    """One training step of ours."""
    images = images.contiguous(memory_format=torch.channels_last)  # as the product's loader makes them
    return stepping(DetectionObjective(build(spec), STILL), spec, images, targets)


def mimicking(spec: DetectorSpec, images: torch.Tensor, targets: Targets, folder: Path) -> Made:
    """The same step with quantization mimic, as the recipe's defaults have it, its teacher in a bank."""
    images = images.contiguous(memory_format=torch.channels_last)
    teacher = build(spec.model_copy(update={"backbone": TEACHER})).to(images.device)
    student, config = build(spec), MimicConfig(last_step=1)
    quantizer = Quantizer(QuantizerConfig(), torch.ones(1))
    taught = DetectorTeacher(teacher, bf16_by_default(TEACHER, images.device))
    sides = Sides.between(student, taught, (torch.ones(()),), quantizer, seed=0)
    distiller = DISTILLERS[config.distiller](config, sides)
    seen = taught.look(images, distiller.teacher_regions)
    layout = layout_of([distiller.target(seen, targets)], distiller.grids())
    bank = Bank(folder / "bank.bin", len(images), layout)
    return stepping(DistillationObjective(student, distiller, taught, bank, config, STILL), spec, images, targets)


def stepping(
    objective: DetectionObjective | DistillationObjective, spec: DetectorSpec, images: torch.Tensor, targets: Targets
) -> Made:
    """A training step of an objective."""
    device = images.device
    bf16 = bf16_by_default(spec.backbone, device)
    objective.to(device).train()
    optimizer = build_optimizer(objective, ScheduleConfig())
    chance = StepGenerators(torch.Generator(device).manual_seed(0), torch.Generator(device).manual_seed(1))
    indices = torch.arange(len(images))

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            losses = objective(images, targets, chance, 0.0, indices)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        losses["det_cls"].item()

    return Made(step, objective, optimizer)


def torchvisions(spec: DetectorSpec, images: torch.Tensor, targets: Targets) -> Callable[[], None]:
    """One training step of torchvision's as a function."""
    model = twin(build(spec)).to(images.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, fused=True)
    labelled = [
        {"boxes": boxes, "labels": labels + 1} for boxes, labels in zip(targets.boxes, targets.labels, strict=True)
    ]

    def step() -> None:
        losses = model(list(images.float() / 255), labelled)
        optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        losses["loss_classifier"].item()

    return step


def several(step: Callable[[], None]) -> Callable[[], None]:
    """As many steps as there are from one measurement of the dose to the next."""

    def steps() -> None:
        for _ in range(EVERY):
            step()

    return steps


def made_batch(size: int, batch: int, device: torch.device, boxes: int = BOXES) -> tuple[torch.Tensor, Targets]:
    """Noise images of three classes with boxes of 20 to 100 pixels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=generator)
    corner = torch.rand(batch, boxes, 2, generator=generator) * (size - 100)
    sides = 20 + 80 * torch.rand(batch, boxes, 2, generator=generator)
    labels = torch.randint(0, 3, (batch, boxes), generator=generator)
    return images.to(device), Targets(torch.cat([corner, corner + sides], -1), labels).to(device)


def alternate(steps: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each step, taken in turns so that a busy moment hits both."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 2):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            if turn >= 2:
                times[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    """Print a table, or with --json one object last."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    keep_freed_memory()  # as the product does; it serves both
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)
    images, targets = made_batch(options.size, options.batch, device)
    table: dict[str, dict[str, float] | float] = {}

    for name in options.networks:
        spec = spec_of(name, options.size)
        seconds = alternate(
            {"ours": ours(spec, images, targets).step, "torchvision": torchvisions(spec, images, targets)},
            options.repeats,
        )
        row = {
            "images_per_s": round(options.batch / seconds["ours"], 1),
            "torchvision_images_per_s": round(options.batch / seconds["torchvision"], 1),
            "ratio": round(seconds["torchvision"] / seconds["ours"], 2),
        }
        table[name] = row
        print(name, *(f"{key} {value}" for key, value in row.items()), sep="  ", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = ours(spec_of(STUDENT, options.size), images, targets)
        mimic = mimicking(spec_of(STUDENT, options.size), images, targets, Path(folder))
        assert isinstance(mimic.objective, DistillationObjective)
        mimic.objective.dose.steps.fill_(FIRST)
        seconds = alternate({"scratch": several(scratch.step), "mimic": several(mimic.step)}, options.repeats)
    table["mimic_over_scratch"] = round(seconds["mimic"] / seconds["scratch"], 2)
    print("mimic_over_scratch", table["mimic_over_scratch"], sep="  ")
    if options.json:
        print(json.dumps(table))


if __name__ == "__main__":
    main()
