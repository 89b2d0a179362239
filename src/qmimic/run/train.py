"""The main job: a recipe becomes a run folder with a teacher, its students, a table and a picture."""

import contextlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from qmimic.arms import ARMS, TEACHER_STAGES
from qmimic.config import Recipe, save_recipe
from qmimic.data.splits import VAL
from qmimic.detectors.build import equal_cost
from qmimic.detectors.files import load_detector
from qmimic.detectors.prediction import predict
from qmimic.draw import contact_sheet, draw
from qmimic.errors import InputError
from qmimic.files import replacing, write_text
from qmimic.run.folder import (
    CURVES,
    DATA,
    ENVIRONMENT,
    EXAMPLES,
    FAILURE,
    NETWORKS,
    RECIPE,
    TABLE,
    StageResult,
    mark_begun,
    ranked,
    require_run_folder,
    write_results,
)
from qmimic.run.lock import exclusive_lock
from qmimic.run.prepare import Prepared, environment, prepare
from qmimic.run.stage import Stage
from qmimic.run.stages import (
    Teachers,
    labels_of,
    macs_to_prune_to,
    require_networks,
    teachers_of,
    train_student,
)
from qmimic.run.teacher_labels import write_facts
from qmimic.run.teaching import require_teachable
from qmimic.tables import TIMM, parse_backbone
from qmimic.training.log import LOG, draw_curves, read_log
from qmimic.training.loop import Watcher
from qmimic.training.progress import Silent

PICTURES, PICTURE_MIN_SCORE = 12, 0.4


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run folder.
        results: of the stages, in the order of the table.
        student: the file of the recipe's own student.
        best: the file of the student or baseline with the highest mAP@0.5 on val; the one to ship.
        remarks: sentences for the reader, such as that a student is below its scratch twin.
        report: the HTML page; None if none was written (the layer above a run writes it).
    """

    folder: Path
    results: tuple[StageResult, ...]
    student: Path
    best: Path
    remarks: tuple[str, ...]
    report: Path | None = None


def train(recipe: Recipe, watcher: Watcher) -> RunResult:
    """Run a recipe: teacher, quantized teacher, baselines and student; what is finished already is not repeated.

    Args:
        recipe: resolved.
        watcher: told of progress.

    Returns:
        What the run folder holds; see docs/run-folder.md.

    Raises:
        InputError: bad data, a weak teacher, a loss that is not finite, a folder that cannot be written or in which
            another run is at work.
    """
    prepared = prepare(recipe)
    # Of many processes one writes and speaks.
    if not prepared.accelerator.is_main_process:
        return _train(prepared, Silent())
    resolved, where = recipe.folder / RECIPE, recipe.folder / ENVIRONMENT
    with exclusive_lock(recipe.folder):
        require_run_folder(recipe.folder)
        write_text(where, json.dumps(environment(prepared), indent=1))  # first: it marks the folder as ours
        save_recipe(recipe, resolved)
        _write_data(prepared)
        with contextlib.suppress(InputError):  # damaged ones are written anew at the end
            mark_begun(recipe.folder)
        (recipe.folder / FAILURE).unlink(missing_ok=True)
        try:
            return _train(prepared, watcher)
        except InputError as error:
            with contextlib.suppress(InputError):  # the disk may be full
                write_text(recipe.folder / FAILURE, f"{error}\n")
            raise


def _train(prepared: Prepared, watcher: Watcher) -> RunResult:
    recipe = prepared.recipe
    for remark in prepared.remarks:
        watcher.say(remark)
    students = arms(prepared)  # first: a fault in them must not wait for a trained teacher
    stages: list[Stage] = []
    teachers = labels = None
    if any(own.needs_teachers for own in students.values()):
        teachers = teachers_of(prepared, any(own.needs_grid for own in students.values()), watcher)
        if isinstance(teachers, Teachers):
            stages += [stage for stage in (teachers.full_precision, teachers.quantized) if stage]
        else:
            for own in students.values():
                if own.mimic.mode != "none":
                    require_teachable(replace(prepared, recipe=own), teachers.teacher)
        labels = labels_of(prepared, teachers, watcher)
    for name, own in students.items():
        stages.append(train_student(replace(prepared, recipe=own), name, teachers, watcher, labels))

    results = tuple(stage.result for stage in stages)
    said = (*([labels.facts.said()] if labels else []), *remarks(results))
    if prepared.accelerator.is_main_process:
        if labels:
            write_facts(recipe.folder, labels)
        _write_results(prepared, stages, said)
        for name in sorted({*NETWORKS} - {f"{one.name}.safetensors" for one in results}):
            if (recipe.folder / name).exists():
                watcher.say(f"{recipe.folder / name} stays, and is not of this run: an earlier one had other arms.")
    student, best = (recipe.folder / f"{one.name}.safetensors" for one in (results[-1], ranked(results)[0]))
    return RunResult(recipe.folder, results, student, best, said)


def _write_results(prepared: Prepared, stages: list[Stage], said: tuple[str, ...]) -> None:
    """Everything in the run folder that a person opens: detectors, curves, examples and the table."""
    folder = prepared.recipe.folder
    results = tuple(stage.result for stage in stages)
    for stage in stages:
        _publish(stage.file, folder / f"{stage.result.name}.safetensors")
    draw_curves({s.result.name: read_log(s.folder / LOG) for s in stages}, folder / CURVES)
    _draw_examples(prepared, stages[-1], folder / EXAMPLES)
    write_results(folder, results, said)
    table = markdown(results, prepared.recipe.published)
    write_text(folder / TABLE, table + "\n" + "".join(f"\n{remark}\n" for remark in said))


def _write_data(prepared: Prepared) -> None:
    """What the run was given: the account of pictures, labels and boxes, and what was said of them."""
    accounts = prepared.dataset.accounted
    content = {"accounted": accounts.as_json() if accounts else None, "remarks": prepared.remarks}
    write_text(prepared.recipe.folder / DATA, json.dumps(content, indent=1))


def arms(prepared: Prepared) -> dict[str, Recipe]:
    """The recipes of a run's students by name, the recipe's own last.

    Raises:
        InputError: a network cannot be made or started, or the teacher cannot be pruned or cannot teach a student.
    """
    recipe = prepared.recipe
    found, student = recipe.students, recipe.student.backbone
    for name in recipe.baselines:
        if convolutions := ARMS[name].convolutions:
            if student.startswith(TIMM):
                raise InputError(
                    f"There is no {student} of {convolutions} convolutions: leave {name} out of baselines, or take "
                    "a student of qmimic's own, such as resnet18/16."
                )
            family = f"{parse_backbone(student)[0].split('_')[0]}_{convolutions}"
            found[name] = found[name].changed({"student.backbone": equal_cost(prepared.spec(student), family)})
    pruned = [name for name, own in found.items() if own.pruning.method != "none"]
    if pruned and not recipe.trains_teacher:
        raise InputError(
            f"{pruned[0]} is cut out of a teacher that the run trains; teacher.kind={recipe.teacher.kind} is a file. "
            "Leave it out of baselines and pruning.method, or set teacher.kind=detector."
        )
    if pruned:
        macs_to_prune_to(prepared)
    require_networks(prepared, found.values())
    for own in found.values():
        if own.mimic.mode != "none" and own.trains_teacher:
            require_teachable(replace(prepared, recipe=own))
    return found


def remarks(results: tuple[StageResult, ...]) -> tuple[str, ...]:
    """What must be said in words: a teacher or a student below the student trained alone, or a student not the best."""
    scores = {result.name: result.map50 for result in results}
    said = []
    known = [scores[name] for name in TEACHER_STAGES if name in scores]
    if known and max(known) < scores.get("scratch", 0.0):
        said.append(
            f"The teacher ({100 * max(known):.1f} mAP@0.5) is weaker than the student trained from scratch "
            f"({100 * scores['scratch']:.1f}), so there is nothing to learn from it: train it for longer, take a wider "
            "one, or start it from published weights (teacher.weights)."
        )
    for name in ("student", "mimic"):
        if name in scores and "scratch" in scores and scores[name] < scores["scratch"]:
            said.append(
                f"The {name} ({100 * scores[name]:.1f} mAP@0.5) is below the same network trained from scratch "
                f"({100 * scores['scratch']:.1f}): here the teacher did not help. One seed proves little; try others."
            )
    if "labelled" in scores:
        brought = scores["student"] - scores["labelled"]
        said.append(
            f"The unlabelled pictures brought {100 * brought:+.1f} points: the student has "
            f"{100 * scores['student']:.1f} mAP@0.5 with them and {100 * scores['labelled']:.1f} without. One seed "
            "proves little; try others."
        )
    for one in results:
        if one.distillation_share is not None and one.distillation_cosine is not None:
            said.append(
                f"The distillation gradient of {one.name} was {100 * one.distillation_share:.0f} % of detection's at "
                f"the student's map on average, at a cosine of {one.distillation_cosine:.2f}."
            )
    best = ranked(results)[0]
    if best.name != "student":
        said.append(
            f"The best of these students on val is {best.name} ({100 * best.map50:.1f} mAP@0.5): "
            f"{best.name}.safetensors is the file to ship."
        )
    return tuple(said)


COLUMNS = (
    "network",
    "backbone",
    "mAP@0.5",
    "VOC07",
    "COCO",
    "matching",
    "non-zero",
    "parameters",
    "MMACs",
    "kB",
)


SHORT_COLUMNS = (
    "network",
    "backbone",
    "mAP\n@0.5",
    "VOC\n07",
    "\nCOCO",
    "\nmatch",
    "non-\nzero",
    "\nMMACs",
    "\nkB",
)


def short_rows(results: tuple[StageResult, ...]) -> list[tuple[str, ...]]:
    """The same for a terminal of 80 columns: without parameters, and the student's mode left to the title."""
    return [
        (result.name.replace("_", " "), *row[1:7], *row[8:]) for result, row in zip(results, rows(results), strict=True)
    ]


def rows(results: tuple[StageResult, ...]) -> list[tuple[str, ...]]:
    """The table of a run as text, one row a stage, columns as `COLUMNS`."""

    def percent(value: float | None) -> str:
        return "-" if value is None else f"{100 * value:.1f}"

    return [
        (
            result.title,
            result.backbone,
            percent(result.map50),
            percent(result.map07),
            percent(result.coco_map),
            percent(result.matching),
            percent(result.matching_nonzero),
            f"{result.parameters:,}",
            f"{result.macs / 1e6:.1f}",
            f"{result.bytes / 1000:.0f}",
        )
        for result in results
    ]


def markdown(results: tuple[StageResult, ...], published: Mapping[str, str]) -> str:
    """The table of a run as Markdown, with a column of what others report where there is any."""
    lines = [COLUMNS, ("---",) * 2 + ("---:",) * (len(COLUMNS) - 2), *rows(results)]
    if published:
        own = ["published", "---:", *(published.get(result.name, "-") for result in results)]
        lines = [(*line, cell) for line, cell in zip(lines, own, strict=True)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _publish(source: Path, target: Path) -> None:
    with replacing(target) as temporary:
        shutil.copyfile(source, temporary)


def _draw_examples(prepared: Prepared, student: Stage, path: Path) -> None:
    detector, _ = load_detector(student.file)
    pictures = []
    for sample in prepared.dataset.splits[VAL][:PICTURES]:
        image = prepared.dataset.load(sample)
        pictures.append(draw(image, predict(detector, image), prepared.dataset.classes, PICTURE_MIN_SCORE))
    with replacing(path) as temporary:
        contact_sheet(pictures, columns=4).save(temporary, compress_level=1)  # a third of the time; a sixth larger
