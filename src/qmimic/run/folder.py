"""What a run leaves in its folder, and how it is read back (docs/run-folder.md); without torch.

A run folder may come from a stranger: what is read is checked, and no name in it leads out of the folder.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked_dataclass

from qmimic.arms import ARMS, STUDENT, TEACHER_STAGES
from qmimic.config import Recipe, explain, load_recipe
from qmimic.errors import InputError
from qmimic.files import MissingError, is_there, read_json, write_text
from qmimic.tables import taught_by

DEPLOY = "deploy"
KEY = r"[0-9a-f]{12}"  # the form of a fingerprint in names
BANK = "bank"  # what teachers see, kept as long as students want it
AGAIN = "begun again"  # in the results of a run that was started once more
RECIPE, RESULTS, STAGES, STAGE_RESULT = "recipe.yaml", "results.json", "stages", "result.json"
ENVIRONMENT, FAILURE, DATA = "environment.json", "failed.txt", "data.json"
TABLE, CURVES, EXAMPLES, REPORT = "results.md", "curves.png", "examples.png", "report.html"
# What a teacher labelled: a folder, and which of its labels the students learnt from.
LABELS, LABELS_FACTS, LABELS_PICTURE = "unlabelled", "unlabelled.json", "labels.png"
# What a run, a fit or a study makes in its folder, and what trackers make there. None of it may be a link.
OURS = frozenset(
    {STAGES, DEPLOY, LABELS, BANK, "pixels", "report", "winner", "jobs", "logs", "study.sqlite", "mlflow.db"}
    | {f"study.sqlite-{kind}" for kind in ("journal", "wal", "shm")}
)
TRACKERS = frozenset({"wandb", "mlruns", "mlartifacts", "trackio"})

NETWORKS = tuple(f"{name}.safetensors" for name in (*TEACHER_STAGES, *ARMS, STUDENT))  # that it publishes
WRITTEN = (RECIPE, RESULTS, TABLE, ENVIRONMENT, FAILURE, DATA, LABELS_FACTS, CURVES, EXAMPLES, REPORT, *NETWORKS)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Share = Annotated[float, Field(ge=0, le=1.0001)]  # a sum of parts may round above 1
Count = Annotated[int, Field(ge=0)]


def _once(earlier: str) -> Any:
    """Of a field that had another name in earlier results."""
    return Field(validation_alias=AliasChoices(earlier.replace("mimic", "distillation"), earlier))


@checked_dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False, extra="forbid"))
class StageResult:
    """The result of a finished stage, kept as `result.json`.

    Attributes:
        name: of the stage: teacher, quantized_teacher, student, one of the baselines, or a pruned teacher.
        key: its fingerprint.
        backbone: family and width divisor.
        map50: VOC mAP@0.5 (area) on val, 0..1.
        map07: the same by the 11-point rule.
        coco_map: COCO mAP on val, 0..1.
        parameters: of the deployed detector, batch norm folded.
        macs: multiply-accumulates of one image, end to end.
        bytes: size of its file.
        matching, matching_nonzero: share of entries on val regions, 0..1, and of the teacher's non-zero ones, that
            are on the same level as the quantized teacher's; None without a mimic.
        matching_near: share of entries within 0.3 of the teacher's, which the paper counts; None without a mimic.
        distillation_share, distillation_cosine: norm of the distillation gradient at the student's map in that of
            detection's, and their cosine, means over training; None of a student that is not taught.
        map50_before: of a quantized teacher before its fine-tuning.
        mode, distiller: `mimic.mode` and `mimic.distiller` of a student; empty for teachers.
    """

    name: Name
    key: Name
    backbone: str
    map50: Share
    map07: Share
    coco_map: Share
    parameters: Count
    macs: Count
    bytes: Count
    matching: Share | None = None
    matching_nonzero: Share | None = None
    matching_near: Share | None = None
    distillation_share: Annotated[float | None, Field(ge=0), _once("mimic_share")] = None
    distillation_cosine: Annotated[float | None, Field(ge=-1.0001, le=1.0001), _once("mimic_cosine")] = None
    map50_before: Share | None = None
    mode: str = ""
    distiller: str = ""

    @property
    def title(self) -> str:
        """Its name in tables; the student's says how it was taught, a baseline's where that is not as its name says."""
        name, how = self.name.replace("_", " "), taught_by(self.mode, self.distiller)
        other = how != taught_by(self.mode, "")
        return f"{name} ({how})" if self.name == STUDENT or other else name


def ranked(results: tuple[StageResult, ...]) -> list[StageResult]:
    """The student and its baselines, without teachers, by mAP@0.5 on val; of equals the later, as the student is."""
    return sorted((one for one in reversed(results) if one.name not in TEACHER_STAGES), key=lambda one: -one.map50)


@dataclass(frozen=True)
class FinishedRun:
    """A finished run.

    Attributes:
        folder: the run folder.
        recipe: resolved.
        results: of the stages, in the order of the table; the last is the recipe's own student.
        remarks: sentences for the reader.
    """

    folder: Path
    recipe: Recipe
    results: tuple[StageResult, ...]
    remarks: tuple[str, ...]

    def stage(self, result: StageResult) -> Path:
        """The folder of a stage: `detector.safetensors`, log, checkpoints."""
        return stage_folder(self.folder, result.name, result.key)


_RESULTS = TypeAdapter(tuple[StageResult, ...])
_REMARKS = TypeAdapter(tuple[str, ...])


def is_run(folder: Path) -> bool:
    """Whether a run has begun in a folder: its first file says with which versions, or was damaged since."""
    try:
        environment = read_json(folder / ENVIRONMENT)
    except MissingError:
        return False
    except InputError:
        return (folder / STAGES).is_dir() and is_there(folder / RECIPE)
    return isinstance(environment, dict) and {"qmimic", "torch"} <= environment.keys()


def require_run_folder(folder: Path) -> None:
    """Check that a run can begin in a folder without overwriting what is not a run's.

    Raises:
        InputError: the folder is no run's, and holds a file of a name that a run writes.
    """
    if is_run(folder):
        return
    found = next((name for name in WRITTEN if os.path.lexists(folder / name)), None)
    if found:
        raise InputError(
            f"The run folder {folder} holds a {found} that no run wrote, and this run would overwrite it; set run.dir "
            "to another folder."
        )


def stage_folder(run: Path, name: str, key: str) -> Path:
    """Where a run keeps the stage of that name and fingerprint."""
    return run / STAGES / f"{name}-{key}"


def read_run(folder: Path) -> FinishedRun:
    """Read a finished run.

    Raises:
        InputError: the folder is not a run's, the run has not finished, or qmimic did not write its files.
    """
    if not is_there(folder / RECIPE):
        raise InputError(f"{folder} is not a run folder (it has no {RECIPE}); name a folder that `qmimic train` wrote.")
    recipe = load_recipe(folder / RECIPE, [])
    if not is_there(folder / RESULTS):
        raise InputError(f"The run in {folder} has not finished; `qmimic train {folder / RECIPE}` continues it.")
    tree = _read_summed(folder / RESULTS)
    try:
        if not isinstance(tree, dict):
            raise InputError(f"{folder / RESULTS} is not a table of results; run the recipe again.")
        results = _RESULTS.validate_python(tree.get("stages"))
        remarks = _REMARKS.validate_python(tree.get("remarks", ()))
    except ValidationError as error:
        raise InputError(f"{folder / RESULTS} is not a table of results: {explain(error)}") from error
    if not ranked(results):
        raise InputError(f"{folder / RESULTS} holds no student; run the recipe again.")
    return FinishedRun(folder, recipe, results, remarks)


def read_stage(folder: Path) -> StageResult | None:
    """A stage's result; None if the stage has not finished, or its file is damaged."""
    try:
        return stage_result(folder)
    except InputError:
        return None


def stage_result(folder: Path) -> StageResult:
    """What the folder of a finished stage says of it.

    Raises:
        MissingError: the stage has not ended.
        InputError: its file is damaged.
    """
    path = folder / STAGE_RESULT
    tree = _read_summed(path)
    try:
        return TypeAdapter(StageResult).validate_python(tree)
    except ValidationError as error:
        raise InputError(f"{path} is not the result of a stage: {explain(error)}") from error


def write_stage(folder: Path, result: StageResult) -> None:
    """Keep a stage's result with its checksum: the mark of a finished stage.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    _write_summed(folder / STAGE_RESULT, asdict(result))


def write_results(folder: Path, results: Sequence[StageResult], remarks: Sequence[str]) -> None:
    """Keep a run's table with its checksum: the mark of a finished run. Raises: as `write_stage`."""
    _write_summed(folder / RESULTS, {"stages": [asdict(one) for one in results], "remarks": list(remarks)})


def mark_begun(folder: Path) -> None:
    """Note in the results of a run that it is started again, until it writes new ones. Raises: as `write_stage`."""
    with contextlib.suppress(MissingError):
        tree = _read_summed(folder / RESULTS)
        if isinstance(tree, dict):
            _write_summed(folder / RESULTS, {**tree, AGAIN: True})


def is_at_its_end(folder: Path) -> bool:
    """Whether a run has written its results and was not started again since; no clock is asked, for clocks jump.

    Raises:
        InputError: the results are damaged.
    """
    try:
        tree = _read_summed(folder / RESULTS)
    except MissingError:
        return False
    return isinstance(tree, dict) and AGAIN not in tree


def _write_summed(path: Path, tree: dict[str, Any]) -> None:
    write_text(path, json.dumps({**tree, "sum": _sum(tree)}, indent=1))


def _read_summed(path: Path) -> Any:
    """The value of a JSON file, without its checksum; files of earlier versions have none.

    Raises:
        MissingError, InputError: as `read_json`; or the checksum does not fit.
    """
    tree = read_json(path)
    if isinstance(tree, dict) and "sum" in tree and tree.pop("sum") != _sum(tree):
        raise InputError(f"{path} is damaged: its checksum does not fit; run the recipe again.")
    return tree


def _sum(tree: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()[:16]
