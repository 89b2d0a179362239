"""The facts of a run as one HTML file that loads nothing else; all text from data is escaped."""

import math
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import yaml
from numpy.typing import NDArray
from PIL import Image

from qmimic.config import Recipe
from qmimic.data.images import read_image
from qmimic.errors import InputError
from qmimic.files import check_writable, refuse_links, write_text
from qmimic.report import figures
from qmimic.report.collect import Absent, Facts, collect
from qmimic.report.labels import Labels
from qmimic.report.latency import Timing
from qmimic.report.maps import Maps, Matching
from qmimic.report.mistakes import confused, data_uri, lost_by_kind
from qmimic.report.networks import TWIN, Judged, Scored
from qmimic.report.panels import Panel, Style, styles, swatch
from qmimic.report.template import NONE, environment, gain, percent
from qmimic.run.folder import LABELS_PICTURE, OURS, REPORT, RESULTS, TRACKERS, FinishedRun, ranked, read_run
from qmimic.scores.bootstrap import RESAMPLES, Interval
from qmimic.scores.coco import coco_ap
from qmimic.scores.curves import precision_recall
from qmimic.scores.error_types import KINDS
from qmimic.ship.write import proved

MOST_CLASSES = 12  # classes with a panel of their own
MOST_DEFECTS = 50


@dataclass(frozen=True, kw_only=True)
class Row:
    """A network in the main table; unknown values are None."""

    title: str
    main: bool
    backbone: str
    map50: float | None
    published: str | None
    gain: Interval | None
    map07: float | None
    coco: float | None
    matching: float | None = None
    nonzero: float | None = None
    parameters: int | None
    macs: int | None
    bytes: int
    milliseconds: float | None


def write_report(folder: Path, out: Path | None = None, say: Callable[[str], None] = lambda _: None) -> Path:
    """Write the report of a finished run.

    Args:
        folder: of the run.
        out: the HTML file; None: `report.html` in the folder.
        say: told, in a sentence, what slow work comes next.

    Returns:
        The file.

    Raises:
        InputError: the folder holds no finished run, or the file cannot be written. A part of the report that cannot be
            made says so in its place.
    """
    refuse_links(folder, OURS, TRACKERS)
    path, run = out or folder / REPORT, read_run(folder)
    check_writable(path)
    save(path, page(collect(run, say)))
    return path


def report_of(folder: Path, wanted: bool, say: Callable[[str], None]) -> Path | None:
    """Write the report of a run that has just ended, if its recipe asks for one; its failure must not fail the run.

    Args:
        folder: of the run.
        wanted: `run.report` of its recipe.
        say: told, in a sentence, what slow work comes next, and why there is no report.
    """
    if not wanted or not (folder / RESULTS).is_file():
        return None
    try:
        return write_report(folder, say=say)
    except InputError as error:
        say(f"The report could not be written: {error}")
        return None


def save(path: Path, text: str) -> None:
    """Write a page; characters that UTF-8 cannot hold are escaped."""
    write_text(path, text.encode("utf-8", "backslashreplace").decode())


def page(facts: Facts) -> str:
    """The report of a run as HTML."""
    run, recipe = facts.run, facts.run.recipe
    rows = table(facts)
    style = styles([row.title for row in rows])
    timing = None if isinstance(facts.timing, Absent) else facts.timing
    learning = [
        figures.learning(facts.logs, "map50", style, "mAP@0.5, %"),
        figures.learning(facts.logs, "loss", style, "training loss"),
    ]
    dose = [
        figures.learning(facts.logs, "distillation_share", style, "distillation over detection gradient"),
        figures.learning(facts.logs, "distillation_cosine", style, "cosine of the two gradients"),
    ]
    context: dict[str, Any] = {
        "facts": facts,
        "recipe": recipe,
        "summary": summary(facts),
        "rows": rows,
        "swatches": {title: swatch(own) for title, own in style.items()},
        "student": run.results[-1].title,
        "images": NONE if isinstance(facts.scored, Absent) else f"{len(facts.scored.samples):,}",
        "resamples": f"{RESAMPLES:,}",
        "timing": timing,
        "learning": [one for one in learning if one],
        "dose": [one for one in dose if one],
        "dose_caption": _dose(recipe),
        "kinds": KINDS,
        "deployed": _deployed(facts, timing),
        "commands": commands(run),
        "recipe_text": yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True),
        **_comparison(rows, style),
    }
    if not isinstance(facts.scored, Absent):
        context |= _scored(facts.scored, style, run.results[-1].title)
    if not isinstance(facts.maps, Absent):
        context |= _maps(facts.maps)
    if not isinstance(facts.labels, Absent):
        context |= _labels(facts.labels, recipe)
    if facts.taught and not isinstance(facts.taught, Absent):
        context |= {"taught_picture": _picture(facts.taught[1] / LABELS_PICTURE, run.folder)}
    return environment().get_template("run.html").render(context)


def table(facts: Facts) -> list[Row]:
    """The rows of the main table: the run's networks, then its int8 files."""
    networks = {} if isinstance(facts.scored, Absent) else facts.scored.networks
    times = {} if isinstance(facts.timing, Absent) else facts.timing.milliseconds
    rows = []
    for result in facts.run.results:
        own = networks.get(result.title)
        rows.append(
            Row(
                title=result.title,
                main=result is facts.run.results[-1],
                backbone=result.backbone,
                map50=result.map50,
                published=facts.run.recipe.published.get(result.name),
                gain=own.gain if own else None,
                map07=result.map07,
                coco=result.coco_map,
                matching=result.matching,
                nonzero=result.matching_nonzero,
                parameters=result.parameters,
                macs=result.macs,
                bytes=result.bytes,
                milliseconds=times.get(result.title),
            )
        )
    for file in facts.deployed:
        if file.metadata.precision != "fp32":
            judged = networks.get(file.title)
            rows.append(
                Row(
                    title=file.title,
                    main=False,
                    backbone=file.metadata.backbone,
                    map50=judged.scores.map_area if judged else None,
                    published=None,
                    gain=judged.gain if judged else None,
                    map07=judged.scores.map07 if judged else None,
                    coco=_coco(facts, judged),
                    parameters=file.metadata.parameters,
                    macs=file.metadata.macs,
                    bytes=file.bytes,
                    milliseconds=times.get(file.title),
                )
            )
    return rows


def _coco(facts: Facts, judged: Judged | None) -> float | None:
    if judged is None or isinstance(facts.scored, Absent):
        return None
    return coco_ap(facts.scored.samples, judged.found, facts.scored.classes).ap


def summary(facts: Facts) -> str:
    """The outcome in two or three sentences."""
    student, recipe = facts.run.results[-1], facts.run.recipe
    said = (
        f"The {student.title}, with {student.parameters:,} parameters and {student.macs / 1e6:.1f} million "
        f"multiply-accumulates per image, reaches {percent(student.map50)} mAP@0.5 on {recipe.data.scored}"
    )
    own = None if isinstance(facts.scored, Absent) else facts.scored.networks[student.title].gain
    if own is None or math.isnan(own.low):
        return f"{said}."
    word = "above" if own.low > 0 else "below" if own.high < 0 else "not distinguishable from"
    return (
        f"{said}, {gain(own)} points relative to the same network from scratch (95 % interval over the pictures). "
        f"By this interval, it is {word} that network. Only one seed was run, and seeds differ too."
    )


def commands(run: FinishedRun) -> str:
    """The commands to repeat or continue the run."""
    folder, data = run.folder, run.recipe.data
    best = shlex.quote(str(folder / f"{ranked(run.results)[0].name}.safetensors"))
    lines = [("train it again, in another folder", f"qmimic train {_path(folder / 'recipe.yaml')} run.dir=again")]
    root = shlex.quote(data.root)
    if not data.root.startswith("synthetic:"):
        lines.append(("what is wrong with the data", f"qmimic data check {root}"))
    if not data.fold:  # no command can name a fold
        lines.append(("score the best student", f"qmimic eval {best} --data {root} --split {shlex.quote(data.val)}"))
    lines += [
        ("draw what it finds in a picture", f"qmimic predict {best} photo.jpg --out drawn"),
        ("files to ship", f"qmimic export {best} --int8 --to onnx,openvino"),
        ("this page", f"qmimic report {_path(folder)}"),
    ]
    return "\n\n".join(f"# {what}\n{line}" for what, line in lines)


def _picture(path: Path, root: Path) -> str | None:
    """A picture of a run as the address of itself; None where it is gone."""
    try:
        return data_uri(read_image(path, root), "JPEG")
    except InputError:
        return None


def _path(path: Path) -> str:
    return shlex.quote(str(path))


def _comparison(rows: list[Row], style: Mapping[str, Style]) -> dict[str, Any]:
    """The figures under the main table."""
    gains = {row.title: row.gain for row in rows if row.gain is not None and math.isfinite(row.gain.low)}
    scored = [row for row in rows if row.map50 is not None]
    times = [(row.title, row.milliseconds, row.map50) for row in scored if row.milliseconds and row.map50 is not None]
    macs = [(row.title, row.macs / 1e6, row.map50) for row in scored if row.macs and row.map50 is not None]
    found: list[Panel] = []
    if gains:
        found.append(figures.gains(gains, style, TWIN))
    if len(macs) > 1:
        found.append(figures.costs(macs, style, "million multiply-accumulates per image", "macs"))
    if len(times) > 1:
        found.append(figures.costs(times, style, "milliseconds per picture, one thread", "latency"))
    said = "Differences with their 95 % intervals over the pictures, and" if gains else ""
    text = f"{said} mAP@0.5 against what the networks cost. Markers as in the table."
    return {"comparison": found, "comparison_caption": text.strip()}


def _scored(scored: Scored, style: Mapping[str, Style], student: str) -> dict[str, Any]:
    """The contents of the sections on curves and errors."""
    networks = scored.networks
    present = list(next(iter(networks.values())).scores.per_class.items())
    present = [(name, own) for name, own in present if own.positives]
    weakest = sorted(present, key=lambda one: networks[student].scores.per_class[one[0]].ap)[:MOST_CLASSES]
    shown = {name for name, _ in weakest}
    panels = []
    for label, name in enumerate(scored.classes):
        if name in shown:
            curves = {title: precision_recall(own.errors.matches, label) for title, own in networks.items()}
            panels.append(figures.precision_recall(name, label, curves, style))
    caption = "Precision against recall at IoU 0.5, one panel per class"
    if len(present) > MOST_CLASSES:
        caption += f": the {MOST_CLASSES} of {len(present)} classes on which the student is weakest"
    return {
        "curves": panels,
        "curves_caption": f"{caption}. Curves end at the detectors' own score threshold.",
        "by_class": [
            (name, own.positives, [one.scores.per_class[name].ap for one in networks.values()]) for name, own in present
        ],
        "error_costs": figures.error_costs({title: own.costs for title, own in networks.items()}, style),
        "error_rows": [
            {
                "title": title,
                "threshold": own.threshold,
                "found": int(own.shown.found.sum()),
                "lost": int((own.shown.wanted & ~own.shown.found).sum()),
                "counts": own.shown.counts,
            }
            for title, own in networks.items()
        ],
        "lost": lost_by_kind(scored),
        "confusion": confused(networks[student].shown, scored.classes),
    }


def _maps(maps: Maps) -> dict[str, Any]:
    """The maps as small pictures, and the figures of the matching."""
    return {
        "map_picture": data_uri(maps.picture, "PNG"),
        "map_bar": data_uri(_colours(np.linspace(0, 1, 64, dtype=np.float32)[None]), "PNG"),
        "map_columns": list(maps.rows[0].maps),
        "map_rows": [
            {
                "name": row.name,
                "highest": row.highest,
                "uris": [(n, data_uri(_colours(one / row.highest), "PNG")) for n, one in row.maps.items()],
            }
            for row in maps.rows
        ],
        **(_matching(maps.matching) if maps.matching else {"levels": None}),
    }


def _matching(matching: Matching) -> dict[str, Any]:
    levels = matching.levels
    total = max(1, sum(level.entries for level in levels))
    matched = sum(own.matched * own.entries for own in levels) / total
    share = [level.entries / total for level in levels]
    return {
        "levels": [
            figures.levels([own.name for own in levels], share, [own.matched for own in levels]),
            figures.near_regions(matching.regions),
        ],
        "levels_caption": (
            "Matching by level, on the regions that the mimic compares, quantized after pooling, in "
            f"{matching.images:,} val images. Bars: share of the teacher's entries on each level. Line: share of these "
            f"entries for which the student is on the same level; {percent(matched)} % over all levels. On the right, "
            "as in the paper: the regions by the share of their entries that are within 0.3 of the teacher's, in the "
            "map's own units."
        ),
    }


def _dose(recipe: Recipe) -> str:
    mimic = recipe.mimic
    held = f"held at {100 * mimic.share:g} %" if mimic.holds_share else f"not held: lambda is {mimic.weight:g}"
    return (
        "The dose: norm of the distillation gradient at the student's map relative to detection's (1: as strong), and "
        "the cosine between the two, each a mean over about ten steps. The share was "
        f"{held}, up to {100 * mimic.last_step:g} % of the steps."
    )


def _labels(labels: Labels, recipe: Recipe) -> dict[str, Any]:
    caption = f"Sizes of boxes at the training size of {recipe.data.size[0]} x {recipe.data.size[1]} pixels."
    if math.isfinite(labels.small):
        caption += (
            f" {percent(labels.small)} % of the boxes scored on are smaller than {labels.stride} x {labels.stride} "
            "pixels, the size of one entry of the detector's finest map."
        )
    sides = dict(zip(("trained on", "scored on"), labels.sides.values(), strict=True))
    defects = labels.checked.defects if labels.checked else ()
    return {
        "sides": figures.box_sides(sides, labels.stride),
        "sides_caption": caption,
        "defects": defects[:MOST_DEFECTS],
        "defects_more": max(0, len(defects) - MOST_DEFECTS),
    }


def _deployed(facts: Facts, timing: Timing | None) -> list[dict[str, Any]]:
    found = []
    for file in facts.deployed:
        try:
            proof = proved(file.metadata.parity)
        except (KeyError, TypeError, ValueError):
            proof = "not readable"
        own = {"name": file.path.name, "precision": file.metadata.precision, "bytes": file.bytes, "proof": proof}
        found.append({**own, "milliseconds": timing.milliseconds.get(file.title) if timing else None})
    return found


def _colours(values: NDArray[np.float32]) -> Image.Image:
    """Values 0..1 [H, W] in cividis, which is readable on dark and light pages and for the colour-blind."""
    painted = mpl.colormaps["cividis"](np.clip(values, 0, 1), bytes=True)
    return Image.fromarray(np.ascontiguousarray(painted[..., :3]))
