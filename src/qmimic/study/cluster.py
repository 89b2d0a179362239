"""A study's jobs on a Ray cluster: the same jobs, rows and resume as on one machine. Needs `pip install 'qmimic[ray]'`.

All machines must see the folders of the study and of its data under the same paths, as for Accelerate's training on
several machines; only this process writes the table.
"""

import contextlib
import io
import os
import socket
from pathlib import Path
from typing import Any

from qmimic.config import Recipe
from qmimic.errors import InputError
from qmimic.files import appending
from qmimic.study.table import recipe_of, update
from qmimic.study.worker import Reporter, outcome

CONNECT_SECONDS = 5.0
LOST = 70  # exit code of a job whose machine was lost


class Cluster:
    """A connection to a Ray cluster; a context manager.

    Args:
        address: `auto` for the cluster that this machine is part of, or host:port.

    Raises:
        InputError: Ray is not installed, or no cluster answers there.
    """

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("Studies on a cluster need Ray; pip install 'qmimic[ray]'.") from error
        self._ray = ray
        try:
            if ":" in address:  # Ray itself would wait for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
            ray.init(address=address, log_to_driver=False, logging_level="error")
        except (OSError, RuntimeError, ValueError, OverflowError) as error:
            said = (str(error).strip().splitlines() or ["no answer"])[0].rstrip(".")
            raise InputError(f"No Ray cluster at {address!r} ({said}); start one with `ray start --head`.") from error
        self._board = ray.remote(num_cpus=0)(Board).remote()
        self._work = ray.remote(num_cpus=1, max_retries=0)(remote_job)

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    @property
    def cores(self) -> int:
        """Cores of all machines: how many jobs run at a time."""
        return max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def start(self, folder: Path, job: str, log: Path) -> "ClusterJob":
        """Run a job somewhere; see `qmimic.study.schedule.Start`."""
        kind, recipe = recipe_of(folder, job)
        where = (str(Path.cwd()), str(folder), str(log))
        reference = self._work.remote(where, job, kind, recipe.model_dump_json(), self._board)
        return ClusterJob(self._ray, reference, self._board, folder, job)


class Board:
    """Where jobs report their progress."""

    def __init__(self) -> None:
        self.progress: dict[str, tuple[int, int]] = {}

    def put(self, job: str, step: int, steps: int) -> None:
        """Record that a job has done this many steps."""
        self.progress[job] = step, steps

    def get(self, job: str) -> tuple[int, int]:
        """A job's steps done, and its total."""
        return self.progress.get(job, (0, 0))


class ClusterJob:
    """A job on the cluster; see `Worker`."""

    def __init__(self, ray: Any, reference: Any, board: Any, folder: Path, job: str) -> None:
        self._ray, self._reference, self._board = ray, reference, board
        self.folder, self.job = folder, job

    def exit_code(self) -> int | None:
        """See `Worker`."""
        ready, _ = self._ray.wait([self._reference], timeout=0)
        if not ready:
            step, steps = self._ray.get(self._board.get.remote(self.job))
            update(self.folder, self.job, step=step, steps=steps)
            return None
        try:
            update(self.folder, self.job, **self._ray.get(self._reference))
        except self._ray.exceptions.RayError as error:
            said = (str(error).strip().splitlines() or ["no word"])[-1]
            update(self.folder, self.job, status="failed", error=f"The job was lost: {said}")
            return LOST
        return 0

    def stop(self) -> None:
        """See `Worker`."""
        self._ray.cancel(self._reference, force=True)
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.get(self._reference)


def remote_job(where: tuple[str, str, str], job: str, kind: str, recipe: str, board: Any) -> dict[str, str | float]:
    """Compute a job on the machine that Ray chose; gives its row.

    Args:
        where: the driver's working folder, the study's folder, and the log.
        job, kind: id and kind of the job.
        recipe: as JSON.
        board: a handle of `Board`.
    """
    here, folder, log = where
    try:
        os.chdir(here)
        with appending(Path(log)):
            pass
    except OSError as error:
        reason = (
            f"{socket.gethostname()} cannot use {error.filename} ({error.strerror}); put the study on a disk that all "
            "machines share under one path."
        )
        return {"status": "failed", "error": reason}
    except InputError as error:
        return {"status": "failed", "error": f"{socket.gethostname()}: {error}"}
    os.environ["OMP_NUM_THREADS"] = "1"
    watcher = Reporter(lambda step, steps: board.put.remote(job, step, steps))
    with (
        appending(Path(log)) as file,
        io.TextIOWrapper(file, "utf-8", write_through=True) as output,
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(output),
    ):
        return outcome(Path(folder), job, kind, Recipe.model_validate_json(recipe), watcher)
