"""A study in two plots: differences to the control, and accuracy against cost."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt

from qmimic.files import replacing
from qmimic.study.spec import Study
from qmimic.study.summary import ArmSummary

COLOURS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#000000",
)  # Okabe and Ito, colour-blind safe
MARKERS = "osD^vP"


def draw_gains(study: Study, arms: Sequence[ArmSummary], path: Path) -> None:
    """Differences to the control with their intervals, one row for each arm and point."""
    shown = [own for own in arms if own.gain is not None and own.gain.count]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.35 * max(1, len(shown))), layout="constrained")
    for row, own in enumerate(reversed(shown)):
        assert own.gain is not None
        margin = 0 if math.isnan(own.gain.margin) else 100 * own.gain.margin
        axes.errorbar(100 * own.gain.mean, row, xerr=margin, fmt="o", color=COLOURS[0], capsize=3)
    axes.axvline(0, color="0.6", linewidth=1)
    axes.set_yticks(range(len(shown)), [own.title for own in reversed(shown)])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    figure.supxlabel(f"mAP@0.5 above {study.compared_to}, points (mean and 95 % interval)", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)


def draw_cost(arms: Sequence[ArmSummary], path: Path) -> None:
    """mAP@0.5 with its interval against multiply-accumulates, one colour per arm."""
    names = list(dict.fromkeys(own.arm for own in arms if own.score.count))
    figure, axes = plt.subplots(figsize=(9, max(4.5, 0.6 + 0.22 * len(names))), layout="constrained")
    for number, name in enumerate(names):
        own = sorted((o for o in arms if o.arm == name and o.score.count), key=lambda o: o.macs)
        margins = [0 if math.isnan(o.score.margin) else 100 * o.score.margin for o in own]
        # Arms of equal cost would cover each other.
        nudge = 1 + min(0.012, 0.2 / len(names)) * (number - (len(names) - 1) / 2)
        axes.errorbar(
            [o.macs / 1e6 * nudge for o in own],
            [100 * o.score.mean for o in own],
            yerr=margins,
            fmt=f"{MARKERS[number // len(COLOURS) % len(MARKERS)]}-",
            color=COLOURS[number % len(COLOURS)],
            capsize=3,
            label=name,
        )
    axes.set_xscale("log")
    ticks: list[float] = []
    for cost in sorted(own.macs / 1e6 for own in arms if own.score.count):
        if not ticks or cost > 1.2 * ticks[-1]:  # costs of one width differ by a few per cent
            ticks.append(cost)
    axes.set_xticks(ticks, [f"{cost:.3g}" for cost in ticks])
    axes.minorticks_off()
    axes.set_ylim(top=min(axes.get_ylim()[1], 101))  # with few seeds an interval may extend above 100 %
    axes.set_xlabel("multiply-accumulates per image, millions")
    axes.set_ylabel("mAP@0.5, % (mean and 95 % interval)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(frameon=False, loc="outside right upper")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    plt.close(figure)
