"""A study of seconds on a folder of noise."""

from pathlib import Path
from typing import Any

from cli_cases import RECIPE, coco
from qmimic.study import worker
from qmimic.study.schedule import run_study
from qmimic.study.spec import expand, load_study
from qmimic.study.table import JobRow, read_results

STUDY = """
name: small
recipe: recipe.yaml
question: Does it run?
set: {data.root: DATA, data.cache_mib: 8}
arms:
  scratch: {mimic.mode: none}
  mimic: {mimic.mode: mimic}
  quantized: {mimic.mode: quantization, mimic.weight: 0.5}
seeds: [3, 4]
"""


def study_file(root: Path, text: str = STUDY) -> Path:
    """The study's file beside its recipe and data."""
    data = root / "data" if (root / "data").is_dir() else coco(root / "data")
    (root / "recipe.yaml").write_text(RECIPE)
    path = root / "study.yaml"
    path.write_text(text.replace("DATA", str(data)))
    return path


class Here:
    """A job that runs in this process, at once; notes the order of all."""

    started: list[str]

    def __init__(self, folder: Path, job: str, log: Path) -> None:
        self.started.append(job)
        self.code = worker.main(folder, job)

    def exit_code(self) -> int | None:
        return self.code

    def stop(self) -> None: ...


def run_here(path: Path, folder: Path, workers: int = 2) -> tuple[list[JobRow], list[str]]:
    """Run a study in this process; its jobs, and the ids in the order in which they were started."""
    study = load_study(path)
    started: list[str] = []
    start = type("Noted", (Here,), {"started": started})
    return run_study(study, expand(study, path, folder), folder, workers, lambda jobs: None, start), started


def without_times(folder: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in read_results(folder)]
