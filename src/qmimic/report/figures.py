"""Figures of a report, each drawn on one panel."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from qmimic.report.panels import BLUE, MUTED, RULE, STUDENT, VERMILLION, Panel, Style, panel
from qmimic.scores.bootstrap import Interval
from qmimic.scores.statistics import Estimate


def gains(values: Mapping[str, Interval], style: Mapping[str, Style], control: str) -> Panel:
    """Differences to the control, with their intervals over the pictures."""
    titles = list(values)
    with panel("gains", 0.75 + 0.32 * len(titles)) as (axes, out):
        for row, title in enumerate(titles):
            own = values[title]
            low, high = 100 * (own.value - own.low), 100 * (own.high - own.value)
            _error_bar(axes, 100 * own.value, row, max(0.0, low), max(0.0, high), style[title])
        _rows(axes, titles)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_xlabel(f"mAP@0.5 above {control}, percentage points", loc="right")
    return Panel(out[0], f"mAP@0.5 above {control} with 95 % intervals, {len(titles)} networks")


def seed_gains(values: Mapping[str, Estimate], style: Mapping[str, Style], control: str, name: str) -> Panel:
    """Mean differences to the control, with their intervals over the seeds."""
    titles = list(values)
    with panel(name, 0.75 + 0.32 * len(titles)) as (axes, out):
        for row, title in enumerate(titles):
            own = values[title]
            margin = 0.0 if math.isnan(own.margin) else 100 * own.margin
            _error_bar(axes, 100 * own.mean, row, margin, margin, style[title])
        _rows(axes, titles)
        axes.axvline(0, color=MUTED, linewidth=1)
        axes.set_xlabel(f"mAP@0.5 above {control}, percentage points", loc="right")
    return Panel(out[0], f"mean mAP@0.5 above {control} with 95 % intervals over seeds")


def costs(points: Sequence[tuple[str, float, float]], style: Mapping[str, Style], unit: str, name: str) -> Panel:
    """mAP@0.5 against cost on a logarithmic axis; a point is a title, a cost and a mAP, 0..1."""
    with panel(name, 2.5) as (axes, out):
        for title, spent, score in points:
            own = style[title]
            axes.plot([spent], [100 * score], own.marker, color=own.colour, markersize=6.5)
        axes.set_xscale("log")
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_major_formatter(plain)
        spread = [spent for _, spent, _ in points]
        narrow = max(spread) < 20 * min(spread)
        axes.xaxis.set_minor_formatter(plain if narrow and max(spread) < 4 * min(spread) else NullFormatter())
        axes.margins(0.12)
        axes.set_xlabel(f"{unit} (logarithmic)", loc="right")
        axes.set_ylabel("mAP@0.5 on val, %")
    return Panel(out[0], f"mAP@0.5 on val in per cent against {unit}, {len(points)} networks")


def learning(
    logs: Mapping[str, Sequence[Mapping[str, Any]]], key: str, style: Mapping[str, Style], label: str
) -> Panel | None:
    """A logged value against steps; None if no log has it.

    `map50` is drawn in per cent, `distillation_cosine` in -1..1, losses and shares logarithmically.
    """
    lines = {
        title: [(line["step"], float(line[key])) for line in own if isinstance(line.get(key), int | float)]
        for title, own in logs.items()
    }
    lines = {title: points for title, points in lines.items() if points}
    if not lines:
        return None
    scores = key == "map50"
    with panel(f"learning-{key}", 2.5) as (axes, out):
        for title, points in lines.items():
            own = style[title]
            steps, values = np.array(points).T
            if scores:
                axes.plot(steps, 100 * values, own.dashes, marker=own.marker, markersize=4, color=own.colour)
            else:
                axes.plot(steps, _smooth(values), own.dashes, color=own.colour, linewidth=1.1)
        if scores:
            axes.set_ylim(bottom=0)
        elif key == "distillation_cosine":
            axes.axhline(0, color=MUTED, linewidth=0.7)
            axes.set_ylim(-1, 1)
        else:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(FuncFormatter(_few_minors))
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlim(left=0)
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(label)
    return Panel(out[0], f"{label} against optimizer steps for {', '.join(lines)}")


def precision_recall(
    name: str,
    number: int,
    curves: Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]],
    style: Mapping[str, Style],
) -> Panel:
    """Precision against recall of one class; `curves` by title."""
    with panel(f"precision-{number}", 2.1, 2.35) as (axes, out):
        for title, (recall, precision) in curves.items():
            own = style[title]
            axes.plot(*_thin(recall, precision), own.dashes, color=own.colour, linewidth=1.3)
        axes.set(xlim=(0, 102), ylim=(0, 102), xlabel="recall, %", ylabel="precision, %")
        axes.set_title(_shown(name, 24))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_ticks([0, 50, 100])
    return Panel(out[0], f"precision against recall of the class {name}, per cent, for {', '.join(curves)}")


def error_costs(values: Mapping[str, Mapping[str, float]], style: Mapping[str, Style]) -> Panel:
    """The mAP that each kind of error costs, by network."""
    kinds = list(next(iter(values.values())))
    with panel("errors", 3.1) as (axes, out):
        spread = np.linspace(-0.3, 0.3, len(values)) if len(values) > 1 else [0.0]
        for row in range(len(kinds)):
            if row % 2 == 0:
                axes.axhspan(row - 0.5, row + 0.5, color=RULE, alpha=0.35, linewidth=0)
        for (title, own), offset in zip(values.items(), spread, strict=True):
            look = style[title]
            axes.plot(
                [100 * own[kind] for kind in kinds],
                np.arange(len(kinds)) + offset,
                look.marker,
                color=look.colour,
                markersize=4.5,
            )
        axes.grid(visible=False, axis="y")
        _rows(axes, kinds)
        axes.set_xlim(left=-0.3)
        axes.set_xlabel("mAP@0.5 lost to it, percentage points", loc="right")
    return Panel(out[0], f"mAP@0.5 lost to each kind of error, percentage points: {', '.join(kinds)}")


def levels(names: Sequence[str], share: Sequence[float], matched: Sequence[float]) -> Panel:
    """The share of the teacher's entries on each level of the dictionary, and how often the student's agree."""
    with panel("levels", 2.5) as (axes, out):
        places = np.arange(len(names))
        axes.bar(places, 100 * np.array(share), width=0.72, color=RULE, edgecolor=MUTED, linewidth=0.6)
        axes.plot(places, 100 * np.array(matched), "o-", color=BLUE, markersize=5)
        axes.set_xticks(places, names)
        axes.grid(visible=False, axis="x")
        axes.set_ylim(0, 100)
        axes.set_xlabel("level of the teacher's entry in the dictionary")
        axes.set_ylabel("share of entries, %")
    return Panel(
        out[0], "bars: share of the teacher's entries on each level; line: share of them where the student agrees"
    )


def near_regions(counts: Sequence[int]) -> Panel:
    """Histogram of regions by the share of their entries near the teacher's (the paper's figure 5)."""
    with panel("near", 2.5) as (axes, out):
        shares = 100 * np.array(counts) / max(1, sum(counts))
        width = 100 / len(counts)
        axes.bar((np.arange(len(counts)) + 0.5) * width, shares, width=0.9 * width, color=BLUE)
        axes.grid(visible=False, axis="x")
        axes.set_xlim(0, 100)
        axes.set_xlabel("entries within 0.3 of the teacher's, % of a region")
        axes.set_ylabel("share of regions, %")
    return Panel(out[0], "histogram over regions of the share of entries within 0.3 of the teacher's")


def box_sides(sides: Mapping[str, NDArray[np.float32]], stride: int) -> Panel:
    """Histogram of box sizes at the training size, with the stride of the detector's finest map."""
    every = np.concatenate(list(sides.values())) if sides else np.zeros(0)
    low, high = (float(every.min()), float(every.max())) if len(every) else (stride / 2, stride * 2.0)
    first = math.floor(2 * math.log2(max(1.0, min(low, stride / 1.5))))
    last = math.ceil(2 * math.log2(max(high, stride * 1.5)))
    edges = 2.0 ** (np.arange(first, last + 1) / 2)
    with panel("sides", 2.8) as (axes, out):
        for (split, own), look in zip(sides.items(), (Style(MUTED, "--", ""), STUDENT), strict=False):
            counts, _ = np.histogram(own, edges)
            axes.stairs(
                100 * counts / max(1, len(own)),
                edges,
                color=look.colour,
                linestyle=look.dashes,
                linewidth=1.5,
                label=split,
            )
        axes.axvline(stride, color=VERMILLION, linewidth=1.2, label=f"finest map's stride, {stride} px")
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.set_ylim(bottom=0)
        axes.set_xlim(edges[0] * 0.96, edges[-1] * 1.04)
        axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, handlelength=1.6, borderpad=0.2)
        axes.set_xlabel("root of a box's area, pixels (logarithmic)")
        axes.set_ylabel("share of the split's boxes, %")
    return Panel(out[0], f"histogram of box sizes in pixels, with the stride of the finest map, {stride} pixels")


def _error_bar(axes: Axes, value: float, row: int, below: float, above: float, style: Style) -> None:
    axes.errorbar(
        [value], [row], xerr=[[below], [above]], fmt=style.marker, color=style.colour, capsize=3, markersize=5.5
    )


def _rows(axes: Axes, names: Sequence[str]) -> None:
    """Names down the left side, the first at the top."""
    axes.set_yticks(range(len(names)), [_shown(name, 30) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _shown(name: str, most: int) -> str:
    """A name as a label: printable and not too long."""
    plain = "".join(one if one.isprintable() else " " for one in name)
    return plain if len(plain) <= most else f"{plain[: most - 1]}…"


def _smooth(values: NDArray[np.float64], window: int = 5) -> NDArray[np.float64]:
    """Moving averages over a few lines of the log, so that several curves stay readable."""
    if len(values) < 3 * window:
        return values
    padded = np.pad(values, window // 2, mode="edge")
    smooth: NDArray[np.float64] = np.convolve(padded, np.full(window, 1 / window), "valid")
    return smooth


def _few_minors(value: float, _: int) -> str:
    digit = value / 10 ** math.floor(math.log10(value)) if value > 0 else 0
    return f"{value:g}" if round(digit) in (2, 5) else ""


def _thin(
    recall: NDArray[np.float64], precision: NDArray[np.float64], most: int = 150
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A curve in per cent, from recall 0, without points too close to see."""
    if not len(recall):
        return np.zeros(1), np.zeros(1)
    keep = np.unique(np.append(np.searchsorted(recall, np.linspace(0, recall[-1], most)), np.argmax(recall)))
    x, y = recall[keep.clip(max=len(recall) - 1)], precision[keep.clip(max=len(recall) - 1)]
    return 100 * np.append(0.0, x), 100 * np.append(y[0], y)
