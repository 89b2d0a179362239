"""A study's table as Markdown, JSON and short tables, each from the same summary."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from qmimic.files import is_there, read_text, write_text
from qmimic.scores.statistics import CONFIDENCE, interval, percent
from qmimic.study.figures import draw_cost, draw_gains
from qmimic.study.spec import Study
from qmimic.study.summary import ArmSummary, orders, summarize, verdicts
from qmimic.study.table import read_results, read_study

MANY = 10  # comparisons, from which on some come out by chance
NOTABLE = 1.1  # costs whose ratio is less are one; what is pruned differs by a few per cent
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
        lines += [f"Not run yet: {', '.join(own.title for own in arms if own not in begun)}.", ""]
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
        if not means:
            continue
        whose = f" of {', '.join(names)}" if len(groups) > 1 else ""
        quantized = f", and {percent(means[1])} quantized and fine-tuned" if len(means) > 1 else ""
        said.append(f"The teachers{whose} reach {percent(means[0])} on average{quantized}.")
        if study.compared_to not in taught and alone and max(means) < min(alone):
            said.append(
                f"They are weaker than {study.compared_to}, so there is nothing to learn from them: train them for "
                "longer, or start them from published weights (teacher.weights)."
            )
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
        costs = [own.macs for own in arms if own.score.count]
        if costs and max(costs) > NOTABLE * min(costs):  # at a single cost the table says everything
            draw_cost(arms, Path(f"{pictures}-cost.png"))
            parts += [f"![mAP against cost]({pictures.name}-cost.png)", ""]
    text = "\n".join(parts)
    write_text(out, text)
    return text
