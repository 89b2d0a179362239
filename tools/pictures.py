"""The pictures in docs/method.md and README.md, made by the code that they explain.

    python tools/pictures.py runs/demo        # a finished run of recipes/demo.yaml

`quantizer.png` and `loss.png` need no run; `maps.png` and `hero.png` show a run's own networks. Colours are those of
Okabe and Ito and of cividis, which colour-blind people can distinguish.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from qmimic.config import QuantizerConfig, load_recipe
from qmimic.contracts import Proposals
from qmimic.data.formats import load_dataset
from qmimic.data.loader import Loader
from qmimic.detections import Detections
from qmimic.detectors.evaluation import unpad
from qmimic.detectors.files import load_detector, read_tensors
from qmimic.detectors.quantize import Quantizer
from qmimic.distill.distiller import Sides
from qmimic.distill.mimic import Mimic, mean_of_regions, squared_distance
from qmimic.distill.regions import choose_regions
from qmimic.distill.teacher import DetectorTeacher
from qmimic.errors import InputError
from qmimic.files import replacing

OUT = Path(__file__).parents[1] / "docs" / "pictures"
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "savefig.dpi": 150,
    "lines.linewidth": 1.6,
}
PICTURE = 39  # index in val: four digits, none at the edge
CHANNELS = 4  # channels of the teacher's map that are shown
MIN_SCORE = 0.5


@dataclass(frozen=True)
class Seen:
    """What a run's networks see in one picture.

    Attributes:
        image: uint8 [H, W, 3].
        teacher, teacher_quantized: the fine-tuned teacher's map [C, h, w], and Q of it.
        student, student_quantized: r of the student's map, of the same shape, and Q of it.
        regions: on which the maps are matched.
        found: the student's detections.
        classes: names.
    """

    image: Tensor
    teacher: Tensor
    teacher_quantized: Tensor
    student: Tensor
    student_quantized: Tensor
    regions: Proposals
    found: Detections
    classes: tuple[str, ...]


@torch.no_grad()
def look(run: Path) -> Seen:
    """Run teacher and student of a finished run on one picture.

    Raises:
        InputError: the run is not finished, or its student did not mimic.
    """
    recipe = load_recipe(run / "recipe.yaml", [])
    teacher, _ = load_detector(run / "quantized_teacher.safetensors")
    student, notes = load_detector(run / "student.safetensors")
    saved = sorted((run / "stages" / f"student-{notes.get('key')}" / "checkpoints").glob("step-*.safetensors"))
    if not saved or teacher.quantizer is None:
        raise InputError(f"{run} has no checkpoint of a student that mimics; name a finished run of recipes/demo.yaml.")
    prefix = "module.distiller."
    weights = {name: value for name, value in read_tensors(saved[-1]).tensors.items() if name.startswith(prefix)}
    ones = tuple(torch.ones(()) for _ in teacher.strides)
    sides = Sides.between(student, DetectorTeacher(teacher, bf16=False), ones, teacher.quantizer, recipe.seed)
    mimic = Mimic(recipe.mimic, sides)
    mimic.load_state_dict({name.removeprefix(prefix): value for name, value in weights.items()})
    loader = Loader(load_dataset(recipe.data.root), recipe.data.val, recipe.data.size, PICTURE + 1)
    batch = next(iter(loader.once()))
    row = slice(len(batch.images) - 1, None)  # that picture, or the last of a smaller set
    images = batch.images[row]
    own, other = teacher.eval().raw_features(images).map, mimic.adapt(student.eval().raw_features(images).map)
    targets = type(batch.targets)(batch.targets.boxes[row], batch.targets.labels[row])
    config = recipe.mimic.model_copy(update={"region_count": 10})
    proposals = teacher.propose(teacher.features(images))
    regions = choose_regions(config, proposals, targets, recipe.data.size, torch.Generator().manual_seed(0))
    q = mimic.quantizer
    return Seen(
        images[0].permute(1, 2, 0),
        own[0],
        q(own)[0],
        other[0],
        q(other)[0],
        regions,
        unpad(student.detect(images), 0),
        student.spec.classes,
    )


def quantizer() -> Figure:
    """Q of both dictionaries, with s = 1."""
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3), sharey=True)
    f = torch.linspace(-1.2, 8.45, 4001)
    for axis, kind, name in zip(axes, ("uniform", "power_of_two"), ("uniform", "power of two"), strict=True):
        own = Quantizer(QuantizerConfig(kind=kind, stride=1, relative=False), torch.ones(1))
        values = own(f[None, None, None]).flatten()  # it takes a map [B, C, H, W]
        axis.plot(f, f.clamp(min=0), color=GREY, linewidth=0.8, linestyle=(0, (4, 3)), label="f, after ReLU")
        for level in values.unique():
            part = values == level
            axis.plot(
                f[part],
                values[part],
                color=BLUE,
                linewidth=2.4,
                solid_capstyle="butt",
                label="Q(f)" if not level else None,
            )
        shown = ", ".join("0" if not v else "s" if v == 1 else f"{v:g}s" for v in values.unique().tolist()[:5])
        axis.set(
            title=f"{name}: D = {{0, {shown.removeprefix('0, ')}, ...}}", xlabel="f, in units of s", yticks=range(9)
        )
        axis.grid(axis="y", color="#e5e5e5", linewidth=0.6)
        axis.legend(frameon=False, loc="upper left")
    axes[0].set_ylabel("Q(f)")
    figure.tight_layout()
    return figure


def loss() -> Figure:
    """L_m of one entry, without and with Q, and the gradient that reaches r(f_s)."""
    figure, axes = plt.subplots(1, 2, figsize=(7.2, 3))
    q = Quantizer(QuantizerConfig(stride=1, relative=False), torch.ones(1))
    teacher = torch.tensor(2.3)
    valid = torch.ones(1, 1, dtype=torch.bool)
    f = torch.linspace(0, 5, 2001).requires_grad_()
    for name, wanted, student, colour in (
        ("mimic", teacher, f, ORANGE),
        ("quantization mimic", q(teacher.view(1, 1, 1, 1)), q(f[None, None, None]).flatten(), BLUE),
    ):
        distances = [squared_distance(wanted.view(1, 1, 1), one.view(1, 1, 1), torch.ones(1)) for one in student]
        entries = torch.stack([mean_of_regions(one, valid) for one in distances])
        (gradient,) = torch.autograd.grad(entries.sum(), f)
        axes[0].plot(f.detach(), entries.detach(), color=colour, label=name)
        axes[1].plot(f.detach(), gradient, color=colour, label=name)
    for axis, title in zip(axes, ("loss of an entry", "gradient with respect to r(f_s)"), strict=True):
        axis.axvline(float(teacher), color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        axis.set(title=title, xlabel="the student's entry, in units of s")
        axis.legend(frameon=True, framealpha=1, edgecolor="white", loc="upper left")
    axes[1].axhline(0, color="#cccccc", linewidth=0.8, zorder=0)
    axes[0].annotate("the teacher's entry", (2.33, 2.9), color=GREY, fontsize=8)
    figure.tight_layout()
    return figure


def maps(seen: Seen) -> Figure:
    """The most active channels of the teacher's map before and after Q, beside the student's."""
    names = ("teacher", "Q(teacher)", "Q(r(student))", "r(student)")
    shown = (seen.teacher, seen.teacher_quantized, seen.student_quantized, seen.student)
    inner = seen.teacher[:, 1:-1, 1:-1]  # the border responds to the padding
    best = inner.flatten(1).std(1).topk(CHANNELS).indices.tolist()
    figure, axes = plt.subplots(CHANNELS, 5, figsize=(7.2, 1.45 * CHANNELS))
    for row, channel in enumerate(best):
        _photo(axes[row, 0], seen.image)
        _boxes(axes[row, 0], seen.regions.boxes[0][seen.regions.valid[0]], ORANGE, 0.9)
        top = float(torch.stack([one[channel].max() for one in shown]).max())
        for axis, own in zip(axes[row, 1:], shown, strict=True):
            _map(axis, own[channel], top)
        axes[row, 1].set_ylabel(f"channel {channel}", fontsize=8)
    for axis, name in zip(axes[0], ("regions", *names), strict=True):
        axis.set_title(name, fontsize=9)
    figure.tight_layout(pad=0.4)
    return figure


def hero(seen: Seen) -> Figure:
    """The method in five panels: a photo, the two maps to be matched, and what the student finds."""
    channel = int(seen.teacher_quantized[:, 1:-1, 1:-1].flatten(1).std(1).argmax())
    figure, axes = plt.subplots(1, 5, figsize=(9.6, 2.12), facecolor="white")
    top = float(seen.teacher_quantized[channel].max())
    _photo(axes[0], seen.image)
    _map(axes[1], seen.teacher[channel], top)
    _map(axes[2], seen.teacher_quantized[channel], top)
    _map(axes[3], seen.student_quantized[channel], top)
    _photo(axes[4], seen.image)
    found = seen.found
    for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True):
        if score >= MIN_SCORE:
            _boxes(axes[4], torch.tensor([box]), ORANGE, 1.8)
            style = {"fontsize": 8, "color": "white", "va": "top", "clip_on": True}
            axes[4].text(box[0] + 1, box[1] + 1, seen.classes[label], bbox={"pad": 1, "color": ORANGE}, **style)
    titles = ("a picture", "what a teacher sees", "quantized ...", "... and the tiny student", "which finds")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=10)
    figure.tight_layout(pad=0.5, w_pad=1.6)
    for left, right, sign in zip(axes[:-1], axes[1:], ("→", "→", "≈", "→"), strict=True):
        a, b = left.get_position(), right.get_position()
        figure.text((a.x1 + b.x0) / 2, (a.y0 + a.y1) / 2, sign, ha="center", va="center", fontsize=15, color=GREY)
    return figure


def _photo(axis: Axes, image: Tensor) -> None:
    axis.imshow(image.numpy(), interpolation="bilinear")
    _bare(axis)


def _map(axis: Axes, values: Tensor, top: float) -> None:
    axis.imshow(values.numpy(), cmap="cividis", vmin=0, vmax=top or 1)
    _bare(axis)


def _bare(axis: Axes) -> None:
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def _boxes(axis: Axes, boxes: Tensor, colour: str, width: float) -> None:
    for x1, y1, x2, y2 in boxes.tolist():
        axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linewidth=width))


def main() -> int:
    """Make the pictures; returns 0, or 2 after bad input."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "run", type=Path, nargs="?", help="a finished run; without it, only the two pictures that need none"
    )
    options.add_argument("--out", type=Path, default=OUT, help="folder")
    given = options.parse_args()
    plt.rcParams.update(STYLE)
    figures = {"quantizer": quantizer(), "loss": loss()}
    try:
        if given.run:
            seen = look(given.run)
            figures |= {"maps": maps(seen), "hero": hero(seen)}
        for name, figure in figures.items():
            with replacing(given.out / f"{name}.png") as path:
                figure.savefig(path, format="png", metadata={"Software": None})
    except InputError as error:
        print(f"pictures: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
