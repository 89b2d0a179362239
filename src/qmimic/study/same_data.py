"""Whether a study's data are still those that its finished jobs were computed on."""

from pathlib import Path

from qmimic.config import REST
from qmimic.data.chosen import content_fingerprint, open_with_unlabelled
from qmimic.data.sample import Dataset
from qmimic.data.unlabelled import Unlabelled
from qmimic.errors import InputError
from qmimic.files import is_there
from qmimic.study.spec import Run, jobs_of
from qmimic.study.table import data_of_done


def data_of(kind: str, dataset: Dataset, unlabelled: Unlabelled | None) -> str:
    """A name for the contents that a job is computed on; copies of a folder have the same.

    Args:
        kind: teacher, quantized or student; students alone see pictures without labels.
        dataset, unlabelled: of the job's recipe.
    """
    return content_fingerprint(dataset, unlabelled if kind == "student" else None)


def check_same_data(folder: Path, runs: tuple[Run, ...]) -> None:
    """Refuse to go on where labels or pictures are others than those of finished jobs: one table would mix both.

    Jobs of tables that do not say what they were computed on are not compared; nor are those whose data are not here.

    Args:
        folder: of the study.
        runs: all of them.

    Raises:
        InputError: they differ, or the data cannot be read.
    """
    done = data_of_done(folder)
    present: dict[str, str] = {}
    others: dict[str, str] = {}
    for job in (job for run in runs for job in jobs_of(run) if job.id in done):
        config = job.recipe.data
        if job.kind != "student":
            config = config.model_copy(update={"unlabelled": None})
        places = [config.root, *([config.unlabelled] if config.unlabelled not in (None, REST) else [])]
        if not all(is_there(Path(place)) for place in places):  # digits that are drawn lie nowhere
            continue
        name = config.model_dump_json()
        if name not in present:
            present[name] = data_of(job.kind, *open_with_unlabelled(config))
        if present[name] != done[job.id]:
            others[job.id] = config.root
    if others:
        raise InputError(
            f"The labels or pictures of {next(iter(others.values()))} have changed since {len(others)} of the finished "
            f"jobs in {folder} were computed; put the former ones back, or begin anew in another folder with --out."
        )
