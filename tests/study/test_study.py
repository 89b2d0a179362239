"""Studies run: order and sharing of jobs, failures as rows, and the same table after any kill."""

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
from study_cases import STUDY, Here, run_here, study_file, without_times

from cli_cases import coco
from qmimic.cli import main
from qmimic.config import DataConfig
from qmimic.data.chosen import open_with_unlabelled
from qmimic.errors import InputError
from qmimic.study import same_data, worker
from qmimic.study.report import report
from qmimic.study.same_data import data_of
from qmimic.study.schedule import run_study
from qmimic.study.spec import expand, jobs_of, load_study
from qmimic.study.table import names, plan, read_jobs, read_results, set_aside, update


def test_a_study_computes_what_is_shared_once_and_first(tmp_path: Path) -> None:
    path, folder = study_file(tmp_path), tmp_path / "out"
    jobs, started = run_here(path, folder, workers=1)
    assert {job.status for job in jobs} == {"done"}
    kinds = {job.id: job.kind for job in jobs}
    assert sorted(kinds[job] for job in started) == ["quantized"] * 2 + ["student"] * 6 + ["teacher"] * 2
    needs = {job.id: job.needs for job in jobs}
    for place, job in enumerate(started):
        assert not needs[job] or needs[job] in started[:place]
    # Seed by seed, so that a study that is cut short has whole pairs.
    called = names(folder)
    assert [called[job].split(", ")[1] for job in started if job in called] == ["seed 3"] * 3 + ["seed 4"] * 3
    results = read_results(folder)
    assert [(row["arm"], row["seed"]) for row in results] == [
        (arm, seed) for arm in ("scratch", "mimic", "quantized") for seed in (3, 4)
    ]
    assert all(0 <= row["map50"] <= 1 and row["parameters"] > 0 for row in results)
    assert results[0]["teacher_map50"] is None
    assert results[2]["teacher_map50"] == results[4]["teacher_map50"]
    assert results[2]["matching"] is not None
    # Again: nothing is left to do.
    assert run_here(path, folder)[1] == []
    text = report([folder], tmp_path / "report.md")
    assert "6 of 6 runs done" in text
    assert (tmp_path / "report-small-gains.png").is_file()


def test_other_data_are_not_mixed_with_those_of_finished_jobs(tmp_path: Path) -> None:
    path, folder = study_file(tmp_path), tmp_path / "out"
    run_here(path, folder)
    shutil.copytree(tmp_path / "data", tmp_path / "kept")  # without the times of change
    shutil.rmtree(tmp_path / "data")
    assert run_here(study_file(tmp_path), folder)[1] == []  # new pictures, made alike
    labels = tmp_path / "data" / "instances_train.json"
    before = labels.read_text()
    content = json.loads(before)
    content["annotations"][0]["bbox"][2] += 1
    labels.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"data have changed since 10 of the finished jobs in .*out were computed"):
        run_here(path, folder)
    labels.write_text(before)
    assert run_here(path, folder)[1] == []
    # A copy of the table beside other data, or beside none, is read as ever.
    shutil.rmtree(tmp_path / "data")
    assert "6 of 6 runs done" in report([folder], tmp_path / "report.md")


def test_spare_pictures_count_for_students_alone(tmp_path: Path) -> None:
    spare = shutil.copytree(coco(tmp_path / "other", 9) / "train", tmp_path / "spare")
    config = DataConfig(root=str(coco(tmp_path / "data")), unlabelled=str(spare))
    before = {kind: data_of(kind, *open_with_unlabelled(config)) for kind in ("teacher", "student")}
    (spare / "train8.png").unlink()
    after = {kind: data_of(kind, *open_with_unlabelled(config)) for kind in ("teacher", "student")}
    assert before["teacher"] == after["teacher"]
    assert before["student"] != after["student"]


def test_data_that_are_not_here_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spare = tmp_path / "spare"
    text = STUDY.replace("{mimic.mode: mimic}", f"{{mimic.mode: mimic, data.unlabelled: {spare}}}")
    path = study_file(tmp_path, text)
    runs = tuple(run for run in expand(load_study(path), path, tmp_path / "out") if run.arm == "mimic")
    ids = {job.kind: job.id for job in jobs_of(runs[0])}
    monkeypatch.setattr(same_data, "data_of_done", lambda _: {ids["student"]: "other"})
    same_data.check_same_data(tmp_path, runs)
    shutil.copytree(coco(tmp_path / "more", 9) / "train", spare)
    with pytest.raises(InputError, match=r"have changed since 1 of the finished jobs"):
        same_data.check_same_data(tmp_path, runs)
    # A teacher does not see them, so it is compared without them.
    shutil.rmtree(spare)
    monkeypatch.setattr(same_data, "data_of_done", lambda _: {ids["teacher"]: "other"})
    with pytest.raises(InputError, match=r"have changed since 1 of the finished jobs"):
        same_data.check_same_data(tmp_path, runs)


def test_a_changed_study_keeps_what_still_holds(tmp_path: Path) -> None:
    path, folder = study_file(tmp_path), tmp_path / "out"
    run_here(path, folder)
    study_file(tmp_path, STUDY.replace("mimic.weight: 0.5", "mimic.weight: 0.7"))
    jobs, started = run_here(path, folder)
    assert len(started) == 2
    assert len(jobs) == 10
    assert len(read_results(folder)) == 6


def test_what_a_study_no_longer_names_is_set_aside_and_comes_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = study_file(tmp_path), tmp_path / "out"
    run_here(path, folder)
    whole = without_times(folder)
    study_file(tmp_path, STUDY.replace("  quantized: {mimic.mode: quantization, mimic.weight: 0.5}\n", ""))
    jobs, started = run_here(path, folder)
    assert (len(jobs), started, set_aside(folder)) == (8, [], 2)  # a student of each seed
    assert len(read_results(folder)) == 4
    assert main(["study", str(path), "--out", str(folder), "--workers", "1"]) == 0
    assert f"2 finished jobs in {folder} belong to no run of this study any more" in " ".join(
        capsys.readouterr().out.split()
    )
    study_file(tmp_path)
    assert run_here(path, folder)[1] == []
    assert without_times(folder) == whole
    assert set_aside(folder) == 0


def test_a_table_alone_can_be_gone_on_with(tmp_path: Path) -> None:
    path, folder, moved = study_file(tmp_path), tmp_path / "out", tmp_path / "moved"
    run_here(path, folder)
    moved.mkdir()
    shutil.copy(folder / "study.sqlite", moved)
    assert run_here(path, moved)[1] == []  # all is done, nobody misses the stages
    whole = without_times(folder)
    lost = next(job.id for job in read_jobs(moved) if job.kind == "student" and job.needs)
    update(moved, lost, status="waiting", result="{}")
    jobs, started = run_here(path, moved)
    # Its teachers come back before it, and only its own.
    kinds = {job.id: job.kind for job in jobs}
    assert [kinds[job] for job in started] == ["teacher", "quantized", "student"]
    assert without_times(moved) == whole


def test_a_continued_table_waits_for_what_its_jobs_need_now(tmp_path: Path) -> None:
    """Tables may be older than what a job needs: it must not wait for one that nobody does any more."""
    path, folder = study_file(tmp_path), tmp_path / "out"
    study = load_study(path)
    folder.mkdir()
    plan(folder, study, expand(study, path, folder))
    before = read_jobs(folder)
    student = next(job.id for job in before if job.kind == "student" and job.needs)
    update(folder, student, needs="0123456789ab")
    assert read_jobs(folder) != before
    plan(folder, study, expand(study, path, folder))
    assert read_jobs(folder) == before


def test_a_failure_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    text = STUDY.replace("mimic.weight: 0.5", "student.weights: none.safetensors")
    path, folder = study_file(tmp_path, text.replace("[3, 4]", "[3]")), tmp_path / "out"
    run_here(path, folder)
    rows = {row["arm"]: row for row in read_results(folder)}
    assert rows["scratch"]["status"] == rows["mimic"]["status"] == "done"
    assert rows["quantized"]["status"] == "failed"
    assert "none.safetensors" in rows["quantized"]["error"]
    assert rows["quantized"]["map50"] is None
    # It is tried again next time.
    assert len(run_here(path, folder)[1]) == 1


def test_what_needs_a_failed_job_fails_with_it(tmp_path: Path) -> None:
    path, folder = study_file(tmp_path, STUDY.replace("[3, 4]", "[3]") + "\n"), tmp_path / "out"
    (tmp_path / "recipe.yaml").write_text((tmp_path / "recipe.yaml").read_text().replace("min_map: 0}", "min_map: 1}"))
    _, started = run_here(path, folder)
    rows = {row["arm"]: row for row in read_results(folder)}
    assert rows["scratch"]["status"] == "done"
    assert rows["mimic"]["status"] == rows["quantized"]["status"] == "failed"
    assert "The job that it depends on failed: The teacher reaches only" in rows["mimic"]["error"]
    assert len(started) == 2


def test_a_process_that_dies_is_a_failed_row_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = study_file(tmp_path, STUDY.replace("[3, 4]", "[3]")), tmp_path / "out"

    class Dies:
        def __init__(self, folder: Path, job: str, log: Path) -> None:
            log.write_text("some output\nSegmentation fault\n")

        def exit_code(self) -> int | None:
            return -11

        def stop(self) -> None: ...

    monkeypatch.setattr("qmimic.study.schedule.Process", Dies)
    assert main(["study", str(path), "--out", str(folder)]) == 1
    jobs = read_jobs(folder)
    assert {job.status for job in jobs} == {"failed"}
    assert "ended with code -11: Segmentation fault" in jobs[0].error
    assert capsys.readouterr().out.count("\nfailed: ") == len(jobs)


def test_a_study_killed_at_any_moment_ends_in_the_same_table(tmp_path: Path) -> None:
    path = study_file(tmp_path, STUDY.replace("[3, 4]", "[3]").replace("set: {", "set: {student.checkpoint_every: 1, "))
    run_here(path, tmp_path / "whole")
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "qmimic", "study", str(path), "--out", str(folder), "--workers", "2"]
    for wanted in (1, 3):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1200):
            done = 0
            if (folder / "study.sqlite").is_file():
                try:
                    done = sum(job.status == "done" for job in read_jobs(folder))
                except InputError:
                    done = 0  # the table is being made
            if done >= wanted or process.poll() is not None:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    _, started = run_here(path, folder)
    assert len(started) < 5
    assert without_times(folder) == without_times(tmp_path / "whole")


def test_orphans_of_a_killed_study_are_waited_for(tmp_path: Path) -> None:
    path, folder = study_file(tmp_path, STUDY.replace("[3, 4]", "[3]")), tmp_path / "out"
    run_here(path, folder)
    job = read_jobs(folder)[0].id
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path; from qmimic.run.lock import exclusive_lock\n"
            "with exclusive_lock(Path(sys.argv[1])): print('in', flush=True); time.sleep(2)",
            str(folder / "jobs" / job),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    update(folder, job, status="running")
    assert worker.main(folder, job) == 0
    assert read_jobs(folder)[0].status == "done"
    holder.wait()


def test_the_command_runs_and_reports(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, folder = study_file(tmp_path, STUDY.replace("[3, 4]", "[3]")), tmp_path / "out"
    assert main(["study", str(path), "--out", str(folder)]) == 0
    out = capsys.readouterr().out
    assert "3 of 3 runs done" in out
    assert str(folder / "report.md") in out
    assert main(["study", "report", str(folder), "--out", str(tmp_path / "r.md")]) == 0
    assert (tmp_path / "r.md").read_text().startswith("# Results")
    with sqlite3.connect(folder / "study.sqlite") as table:
        assert table.execute("SELECT count(*) FROM results WHERE map50 IS NOT NULL").fetchone() == (3,)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("report",), "Name the folders"),
        (("report", "nowhere"), "nowhere is not a study"),
        (("none.yaml",), "Cannot read the study none.yaml"),
        (("none.yaml", "extra"), "one argument too many"),
        (("none.yaml", "--workers", "0"), "give at least 1"),
    ],
)
def test_bad_arguments_end_in_one_sentence(
    arguments: tuple[str, ...], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 2
    error = capsys.readouterr().err
    assert part in error
    assert error.count("\n") == 1


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.sqlite").write_bytes(b"SQLite format 3\0" + b"x" * 500)
    with pytest.raises(InputError, match="cannot be used"):
        report([tmp_path], tmp_path / "r.md")


def test_a_table_of_another_study_format_is_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "study.sqlite") as table:
        table.execute("CREATE TABLE study (description TEXT)")
        table.execute('INSERT INTO study VALUES (\'{"name": "x"}\')')
    with pytest.raises(InputError, match="describes an invalid study"):
        report([tmp_path], tmp_path / "r.md")


def test_banks_go_when_all_students_of_their_seed_are_done(tmp_path: Path) -> None:
    path, folder = (
        study_file(
            tmp_path, STUDY.replace("set: {", "set: {augment.scale: [1, 1], augment.shift: 0, augment.colour: 0, ")
        ),
        tmp_path / "out",
    )
    study = load_study(path)
    runs = expand(study, path, folder)
    seed_of = {job.id: run.seed for run in runs for job in jobs_of(run)}
    filled: dict[int, int] = {}
    banks: list[tuple[int, int]] = []

    class Counting(Here):
        started: ClassVar[list[str]] = []

        def __init__(self, folder: Path, job: str, log: Path) -> None:
            before = len(list((folder / "bank").glob("*.bin")))
            super().__init__(folder, job, log)
            seed = seed_of[job]
            filled[seed] = max(filled.get(seed, 0), len(list((folder / "bank").glob("*.bin"))))
            banks.append((seed, before))

    run_study(study, runs, folder, 1, lambda jobs: None, Counting)
    assert all(filled[seed] for seed in study.seeds), "its students do keep what their teacher sees"
    firsts = [next(before for seed, before in banks if seed == own) for own in study.seeds]
    assert firsts == [0, 0], "a seed begins without the banks of the one before"
    assert not list((folder / "bank").iterdir())
