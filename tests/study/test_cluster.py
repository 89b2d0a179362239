"""A study on a Ray cluster of two workers, on this machine: the same table as in processes."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from study_cases import run_here, study_file, without_times

from cli_cases import Refused
from qmimic.cli import main
from qmimic.study.table import read_jobs

pytest.importorskip("ray", reason="ray is not installed; pip install 'qmimic[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster: a head that takes no jobs, and two machines of one core each."""
    from ray.cluster_utils import Cluster

    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    for _ in range(2):
        machines.add_node(num_cpus=1)
    yield machines.address
    machines.shutdown()


def test_a_study_on_a_cluster_gives_the_table_of_one_machine(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = study_file(tmp_path)
    path.write_text(path.read_text().replace("seeds: [3, 4]", "seeds: [3]"))
    assert main(["study", str(path), "--out", str(tmp_path / "there"), "--ray", cluster]) == 0
    assert "3 of 3 runs done" in capsys.readouterr().out
    run_here(path, tmp_path / "here")
    assert without_times(tmp_path / "there") == without_times(tmp_path / "here")
    assert all((tmp_path / "there" / "logs" / f"{job.id}.log").stat().st_size for job in read_jobs(tmp_path / "there"))


def test_what_goes_wrong_on_a_cluster_is_a_row_or_a_sentence(
    cluster: str, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = study_file(tmp_path)
    text = path.read_text().replace("mimic.weight: 0.5", "student.learning_rate: 1.0e30")
    path.write_text(text.replace("seeds: [3, 4]", "seeds: [3]"))
    assert main(["study", str(path), "--out", str(tmp_path / "out"), "--ray", cluster]) == 1
    failed = [job for job in read_jobs(tmp_path / "out") if job.status == "failed"]
    assert failed
    assert all("loss of student became" in job.error for job in failed)
    assert "No Ray cluster at '127.0.0.1:1'" in refused("study", path, "--ray", "127.0.0.1:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'qmimic[ray]'" in refused("study", path, "--ray", "auto")
