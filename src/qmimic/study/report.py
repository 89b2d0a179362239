"""A study's table as statistics, Markdown and plots: means, paired differences to the control, intervals."""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from qmimic.files import is_there, read_text, replacing, write_text
from qmimic.scores.statistics import CONFIDENCE, Estimate, estimate, interval, percent
from qmimic.study.spec import Study
from qmimic.study.table import read_results, read_study

MANY = 10  # comparisons, from which on some come out by chance
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


@dataclass(frozen=True)
class ArmSummary:
    """One arm at one point of the grid.

    Attributes:
        arm, point: which.
        score: mAP@0.5, 0..1; gain: its paired difference to the control, None for the control itself.
        of_teacher: mean of its mAP@0.5 over that of the teacher of the same seed and fold; None without one.
        matching, matching_nonzero: means, None without a mimic.
        backbone, parameters, macs, bytes: of its network.
        failed: runs that are missing because they failed, and why the first did.
    """

    arm: str
    point: dict[str, Any]
    score: Estimate
    gain: Estimate | None
    of_teacher: float | None
    matching: float | None
    matching_nonzero: float | None
    backbone: str
    parameters: int
    macs: int
    bytes: int
    failed: tuple[str, ...]


def repetitions(rows: Sequence[dict[str, Any]]) -> dict[int, float]:
    """mAP@0.5 by repetition: each seed, averaged over its folds; with a single seed, each fold.

    Folds of one seed share most of their training images, and seeds share them all: counting folds times seeds as
    independent would make intervals too narrow. A seed with a missing fold is left out.
    """
    by_seed: dict[int, dict[int, float | None]] = defaultdict(dict)
    for row in rows:
        by_seed[row["seed"]][row["fold"]] = row["map50"] if row["status"] == "done" else None
    if len(by_seed) == 1:
        by_seed = {fold: {fold: value} for own in by_seed.values() for fold, value in own.items()}
    whole = {seed: [value for value in own.values() if value is not None] for seed, own in by_seed.items()}
    return {seed: float(np.mean(values)) for seed, values in whole.items() if len(values) == len(by_seed[seed])}


def summarize(study: Study, results: Sequence[dict[str, Any]]) -> list[ArmSummary]:
    """A summary of every arm at every point, in the study's order."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    teachers: dict[tuple[int, int], set[float]] = defaultdict(set)
    for row in results:
        if row["teacher_map50"]:
            teachers[row["seed"], row["fold"]].add(row["teacher_map50"])
        groups[repr(row["point"]), row["arm"]].append(row)
    found = []
    for (point, arm), rows in groups.items():
        own = repetitions(rows)
        control = repetitions(groups[point, study.compared_to])
        pairs = [value - control[key] for key, value in own.items() if key in control]
        done = [row for row in rows if row["status"] == "done"]
        shares = []
        for row in done:
            # A student without a teacher is compared with the others' teacher, if they all have the same.
            known = {row["teacher_map50"]} if row["teacher_map50"] else teachers[row["seed"], row["fold"]]
            shares += [row["map50"] / one for one in known if len(known) == 1]
        some: dict[str, Any] = done[0] if done else {"backbone": "-", "parameters": 0, "macs": 0, "bytes": 0}
        found.append(
            ArmSummary(
                arm=arm,
                point=rows[0]["point"],
                score=estimate(list(own.values())),
                gain=None if arm == study.compared_to else estimate(pairs),
                of_teacher=float(np.mean(shares)) if shares else None,
                matching=_mean(done, "matching"),
                matching_nonzero=_mean(done, "matching_nonzero"),
                backbone=some["backbone"],
                parameters=some["parameters"],
                macs=some["macs"],
                bytes=some["bytes"],
                failed=tuple(row["error"] for row in rows if row["status"] == "failed"),
            )
        )
    return found


def _mean(rows: Sequence[dict[str, Any]], column: str) -> float | None:
    values = [row[column] for row in rows if row.get(column) is not None]
    return float(np.mean(values)) if values else None


NOTE, MAX_NOTE_BYTES = "note.md", 1 << 16


def note_of(folder: Path) -> str:
    """The text that belongs before a study's table: its `note.md`; empty without one.

    Raises:
        InputError: the note cannot be read, is too long or is not UTF-8.
    """
    path = folder / NOTE
    return read_text(path, MAX_NOTE_BYTES, folder).strip() if is_there(path) else ""


def markdown(study: Study, results: Sequence[dict[str, Any]], note: str = "") -> str:
    """The report of one study as Markdown, without its plots; `note` goes before the table."""
    arms = summarize(study, results)
    counts = Counter(row["status"] for row in results)
    unfinished = "".join(f", {count} {status}" for status, count in counts.items() if status != "done")
    lines = [f"## {study.name}", ""]
    if study.question:
        lines += [study.question, ""]
    if note:
        lines += [note, ""]
    folds = f", {study.folds}-fold cross-validation" if study.folds > 1 else ""
    folds += ", one fold a seed" if study.fold_of_seed else ""
    lines.append(
        f"{counts['done']} of {len(results)} runs done{unfinished}; seeds "
        f"{', '.join(map(str, study.seeds))}{folds}. mAP@0.5 in %, ± standard error; the difference to "
        f"{study.compared_to} is paired by seed, with its 95 % interval (Student's t)."
    )
    lines += _teachers(study, results, arms)
    begun = [own for own in arms if own.score.count or own.failed]
    lines += ["", *_table(study, begun), ""]
    if len(begun) < len(arms):
        lines += [f"Not run yet: {', '.join(_label(own) for own in arms if own not in begun)}.", ""]
    lines += [*verdicts(study, arms), *orders(study, results)]
    compared = sum(own.gain is not None and own.gain.count > 1 for own in arms)
    if compared >= MANY:
        lines.append(
            f"At 95 %, about {(1 - CONFIDENCE) * compared:.0f} of these {compared} intervals can be expected to miss "
            "the true value."
        )
    for own in arms:
        if own.failed:
            lines += ["", f"{own.arm}: {len(own.failed)} runs failed. {own.failed[0]}"]
    return "\n".join(lines) + "\n"


def _teachers(study: Study, results: Sequence[dict[str, Any]], arms: Sequence[ArmSummary]) -> list[str]:
    """What the teachers reach, and which are weaker than a control without one; arms that share them are joined."""
    taught: dict[str, dict[tuple[str, int, int], float]] = defaultdict(dict)
    for row in results:
        if row["teacher_map50"]:
            taught[row["arm"]][repr(row["point"]), row["seed"], row["fold"]] = row["teacher_map50"]
    groups: list[tuple[list[str], dict[tuple[str, int, int], float]]] = []
    for arm, own in taught.items():
        for names, known in groups:
            if all(known.get(place, value) == value for place, value in own.items()):
                names.append(arm)
                known.update(own)
                break
        else:
            groups.append(([arm], dict(own)))
    alone = [own.score.mean for own in arms if own.arm == study.compared_to and own.score.count]
    said = []
    for names, _ in groups:
        rows = [row for row in results if row["arm"] in names]
        means = []
        for column in ("teacher_map50", "quantized_map50"):
            values = {(row["seed"], row["fold"], row[column]) for row in rows if row[column]}
            means += [float(np.mean([value for *_, value in values]))] if values else []
        if len(means) < 2:
            continue
        whose = f" of {', '.join(names)}" if len(groups) > 1 else ""
        said.append(
            f"The teachers{whose} reach {percent(means[0])} on average, and {percent(means[1])} quantized and "
            "fine-tuned."
        )
        if study.compared_to not in taught and alone and max(means) < min(alone):
            said.append(
                f"They are weaker than {study.compared_to}, so there is nothing to learn from them: train them for "
                "longer, or start them from published weights (teacher.weights)."
            )
    return said


def verdicts(study: Study, arms: Sequence[ArmSummary]) -> list[str]:
    """What the intervals say in words, one sentence for each point of the grid."""
    points: dict[str, list[ArmSummary]] = defaultdict(list)
    for own in arms:
        points[_place(own.point)].append(own)
    return [_verdict(study.compared_to, place, group) for place, group in points.items()]


def _place(point: Mapping[str, Any]) -> str:
    """A point of the grid as the end of a sentence; empty without a grid."""
    return "".join(f" at {key} {value}" for key, value in point.items())


def _verdict(control: str, place: str, group: Sequence[ArmSummary]) -> str:
    told: dict[str, list[str]] = {"above": [], "below": [], "not distinguishable from": []}
    for own in group:
        if own.gain is not None and own.gain.count > 1:
            low, high = own.gain.mean - own.gain.margin, own.gain.mean + own.gain.margin
            told["above" if low > 0 else "below" if high < 0 else "not distinguishable from"].append(own.arm)
    said = [
        f"{', '.join(names)} {'is' if len(names) == 1 else 'are'} {word} {control}"
        for word, names in told.items()
        if names
    ]
    return f"By these intervals{place}: {'; '.join(said) or 'nothing can be said yet'}.\n"


def orders(study: Study, results: Sequence[dict[str, Any]]) -> list[str]:
    """Whether the order that the study asks about appears, one sentence for each point that has the arms twice.

    It appears where every arm is above the one before by its interval, and is refuted where no interval reaches what is
    claimed.
    """
    points: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in results:
        points[_place(row["point"])][row["arm"]].append(row)
    said = []
    for place, arms in points.items():
        names = [study.compared_to, *study.order]
        scores = [repetitions(arms[name]) for name in names]
        steps = [estimate([own[key] - before[key] for key in own if key in before]) for before, own in pairwise(scores)]
        if not steps or any(step.count < 2 for step in steps):
            continue
        if all(step.mean > step.margin for step in steps):
            verdict = "The order appears"
        elif all(
            100 * (step.mean + step.margin) < least for step, least in zip(steps, study.order.values(), strict=True)
        ):
            verdict = "The order is refuted here"
        else:
            verdict = "The order neither appears nor is refuted"
        pairs = zip(names, names[1:], steps, study.order.values(), strict=False)
        each = (f"{own} over {before} {interval(step)}, claimed {least:g}" for before, own, step, least in pairs)
        said.append(f"{verdict}{place}: {'; '.join(each)}.\n")
    return said


def _table(study: Study, arms: Sequence[ArmSummary]) -> list[str]:
    keys = list(study.grid)
    header = [*keys, "arm", "backbone", "n", "mAP@0.5", f"difference to {study.compared_to}", "matching", "non-zero"]
    header[-2:-2] = ["of teacher", *(["published"] if study.published else [])]
    header += ["parameters", "MMACs", "kB"]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * (len(keys) + 2) + "---:|" * (len(header) - len(keys) - 2)]
    for own in arms:
        error = "" if math.isnan(own.score.error) else f" ± {100 * own.score.error:.1f}"
        cells = [*(str(own.point[key]) for key in keys), own.arm, own.backbone, str(own.score.count)]
        cells += [percent(own.score.mean) + error, "-" if own.gain is None else interval(own.gain)]
        cells += [percent(own.of_teacher, 0), *([study.published.get(own.arm, "-")] if study.published else [])]
        cells += [percent(own.matching), percent(own.matching_nonzero), f"{own.parameters:,}", f"{own.macs / 1e6:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{own.bytes / 1000:.0f}"]) + " |")
    return lines


def short_table(study: Study, arms: Sequence[ArmSummary]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The table for a terminal of 80 columns: its column heads (the differences' names the control) and its rows.

    If the grid is over backbones, its column replaces the backbone's.
    """
    keys = list(study.grid)
    named = "student.backbone" in keys
    heads = (
        *(key.split(".")[-1] for key in keys),
        "arm",
        *(() if named else ("backbone",)),
        "\nn",
        "\nmAP@0.5",
        f"difference\nto {study.compared_to}",
    )
    rows = []
    for own in arms:
        error = "" if math.isnan(own.score.error) else f" ± {100 * own.score.error:.1f}"
        texts = [*(str(own.point[key]) for key in keys), own.arm, *(() if named else (own.backbone,))]
        texts += [
            str(own.score.count),
            percent(own.score.mean) + error,
            "-" if own.gain is None else interval(own.gain),
        ]
        rows.append((*texts, percent(own.of_teacher, 0), f"{own.bytes / 1000:.0f}"))
    return (*heads, "% of\nteacher", "\nkB"), rows


def as_json(study: Study, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Arms, their estimates and verdicts as plain values; null where there is no number."""
    arms = summarize(study, results)
    statuses = Counter(row["status"] for row in results)
    plain = {
        "name": study.name,
        "control": study.compared_to,
        "runs": dict(statuses),
        "verdicts": [*verdicts(study, arms), *orders(study, results)],
    }
    found: dict[str, Any] = _without_nan({**plain, "arms": [asdict(own) for own in arms]})
    return found


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def draw_gains(study: Study, arms: Sequence[ArmSummary], path: Path) -> None:
    """Differences to the control with their intervals, one row for each arm and point."""
    shown = [own for own in arms if own.gain is not None and own.gain.count]
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.35 * max(1, len(shown))), layout="constrained")
    for row, own in enumerate(reversed(shown)):
        assert own.gain is not None
        margin = 0 if math.isnan(own.gain.margin) else 100 * own.gain.margin
        axes.errorbar(100 * own.gain.mean, row, xerr=margin, fmt="o", color=COLOURS[0], capsize=3)
    axes.axvline(0, color="0.6", linewidth=1)
    axes.set_yticks(range(len(shown)), [_label(own) for own in reversed(shown)])
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


def _label(own: ArmSummary) -> str:
    return own.arm + "".join(f", {key.split('.')[-1]} {value}" for key, value in own.point.items())


def report(folders: Sequence[Path], out: Path) -> str:
    """Write the report of studies as one Markdown file, with its plots beside it, and return its text.

    Args:
        folders: that `run_study` wrote.
        out: the Markdown file.

    Raises:
        InputError: a folder is not a study, or the report cannot be written.
    """
    parts = ["# Results", "", f"Made by `qmimic study report {' '.join(map(str, folders))} --out {out}`.", ""]
    for folder in folders:
        study, results = read_study(folder), read_results(folder)
        arms = summarize(study, results)
        pictures = out.parent / f"{out.stem}-{study.name}"
        draw_gains(study, arms, Path(f"{pictures}-gains.png"))
        parts += [markdown(study, results, note_of(folder)), f"![Differences]({pictures.name}-gains.png)", ""]
        if len({own.macs for own in arms if own.score.count}) > 1:  # at a single cost the table says everything
            draw_cost(arms, Path(f"{pictures}-cost.png"))
            parts += [f"![mAP against cost]({pictures.name}-cost.png)", ""]
    text = "\n".join(parts)
    write_text(out, text)
    return text
