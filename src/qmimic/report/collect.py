"""From a run folder to the facts of its report; for a part that cannot be made, a sentence says why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from qmimic.data.chosen import open_dataset
from qmimic.data.sample import Dataset
from qmimic.errors import InputError
from qmimic.files import read_json
from qmimic.report.labels import Labels, read_labels
from qmimic.report.latency import Timing, timing
from qmimic.report.maps import Maps, feature_maps
from qmimic.report.mistakes import WorstImage, worst_images
from qmimic.report.networks import DeployedFile, Scored, deployed_files, judge
from qmimic.run.folder import ENVIRONMENT, FinishedRun
from qmimic.run.teacher_labels import Facts as LabelFacts
from qmimic.run.teacher_labels import read_facts
from qmimic.training.log import LOG, read_log

T = TypeVar("T")


@dataclass(frozen=True)
class Absent:
    """A part that cannot be shown, with the reason."""

    reason: str


@dataclass(frozen=True)
class Facts:
    """Everything that a run's report shows.

    Attributes:
        run: recipe, table and remarks.
        said: sentences on inconsistencies.
        deployed: files that were exported from this run.
        left_out: a sentence for each file in its `deploy` folder that is none of them.
        scored: all networks on val.
        worst: images with most of the student's errors.
        timing: latencies of the networks.
        logs: lines of the training logs by network title, for networks that have any.
        maps: feature maps of student and teacher.
        labels: facts about the data.
        taught: what the teacher labelled, and the folder of these labels; None if the recipe names no such pictures.
        environment: what the run ran on.
    """

    run: FinishedRun
    said: tuple[str, ...]
    deployed: tuple[DeployedFile, ...]
    left_out: tuple[str, ...]
    scored: Scored | Absent
    worst: tuple[WorstImage, ...]
    timing: Timing | Absent
    logs: Mapping[str, list[dict[str, Any]]]
    maps: Maps | Absent
    labels: Labels | Absent
    taught: tuple[LabelFacts, Path] | Absent | None
    environment: Mapping[str, str | int] | Absent


def collect(run: FinishedRun, say: Callable[[str], None]) -> Facts:
    """The facts of a finished run.

    Args:
        run: as read.
        say: told, in a sentence, what slow work comes next.
    """
    deployed, left_out = deployed_files(run)
    dataset = _or_reason(lambda: open_dataset(run.recipe.data))

    def of_data(make: Callable[[Dataset], T]) -> T | Absent:
        return dataset if isinstance(dataset, Absent) else _or_reason(lambda: make(dataset))

    judged = of_data(lambda data: judge(run, data, deployed, say))
    scored, changed = (judged, ()) if isinstance(judged, Absent) else judged
    worst: tuple[WorstImage, ...] = ()
    if not isinstance(dataset, Absent) and not isinstance(scored, Absent):
        worst = worst_images(scored, run.results[-1].title, dataset)
    logs = {result.title: read_log(run.stage(result) / LOG) for result in run.results}
    return Facts(
        run=run,
        said=changed,
        deployed=deployed,
        left_out=left_out,
        scored=scored,
        worst=worst,
        timing=_or_reason(lambda: timing(run, deployed, say)),
        logs={title: lines for title, lines in logs.items() if lines},
        maps=of_data(lambda data: feature_maps(run, data, say)),
        labels=of_data(lambda data: read_labels(run.recipe, data, run.folder, say)),
        taught=None if run.recipe.data.unlabelled is None else _or_reason(lambda: read_facts(run.folder)),
        environment=_or_reason(lambda: _environment(run.folder / ENVIRONMENT)),
    )


def _or_reason(make: Callable[[], T]) -> T | Absent:
    """A part, or the reason why it is missing. A run with bad files still gets a report; bugs still raise."""
    try:
        return make()
    except InputError as error:
        return Absent(str(error))


def _environment(path: Path) -> Mapping[str, str | int]:
    try:
        return TypeAdapter(dict[str, str | int]).validate_python(read_json(path))
    except ValidationError as error:
        raise InputError(f"{path} does not describe the machine that the run used.") from error
