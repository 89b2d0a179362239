"""Trackers beside the log: each number once, after a kill too; one that fails or hangs stops nothing."""

import json
import sqlite3
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from cli_cases import Refused, train
from qmimic.config import load_recipe
from qmimic.errors import InputError
from qmimic.run.folder import read_run
from qmimic.training import trackers
from qmimic.training.log import Log
from qmimic.training.trackers import TRACKERS, Past, Subject, Trackers, require

STEPS = (10, 20, 30, 40)


def line(step: int) -> dict[str, Any]:
    return {"step": step, "lr": 0.1, "loss": 1 / step}


def opened(folder: Path, name: str, say: Callable[[str], None] = pytest.fail) -> Trackers:
    settings = {"seed": 0, "teacher.steps": 40, "data.size": [64, 64], **{f"key{k}": k for k in range(150)}}
    (folder / "stage").mkdir(exist_ok=True)
    return Trackers([name], Subject("demo", "teacher", "0123456789ab", folder / "stage", folder, settings), say)


def killed_and_resumed(folder: Path, name: str) -> None:
    """Steps 10 to 30 with a checkpoint of 20, then a kill, then the rest."""
    first = opened(folder, name)
    log = Log(folder / "stage", 0, first)
    for step in STEPS[:3]:
        log.write(line(step))
    first.__exit__()  # what was told is stored; but no scores
    with opened(folder, name) as second:
        log = Log(folder / "stage", 20, second)
        for step in STEPS[2:]:
            log.write(line(step))
        second.end({"map50": 0.5})


def needs(name: str) -> None:
    if find_spec(name) is None:
        pytest.skip(f"{name} is not installed: pip install 'qmimic[{name}]'")


def test_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    killed_and_resumed(tmp_path, "tensorboard")
    events = EventAccumulator(str(tmp_path / "stage" / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(s, pytest.approx(1 / s)) for s in STEPS]
    assert [(one.step, one.value) for one in events.Scalars("final/map50")] == [(40, 0.5)]
    text = events.Tensors("recipe/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "teacher.steps: 40" in text


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mlflow")
    from mlflow import MlflowClient

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(trackers, "OPENS", 120)  # its tables take a while on a machine at work
    monkeypatch.setattr(trackers, "CLOSES", 120)
    killed_and_resumed(tmp_path, "mlflow")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("demo")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("teacher", "FINISHED")
    assert run.data.params["teacher.steps"] == "40"
    assert len(run.data.params) == 153
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(one.step, one.value) for one in history] == [(step, 1 / step) for step in STEPS]
    assert run.data.metrics["final/map50"] == 0.5


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    needs("trackio")
    import trackio.sqlite_storage
    import trackio.utils

    for module in (trackio.utils, trackio.sqlite_storage, trackio):  # read once, when it is imported
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio")
    killed_and_resumed(tmp_path, "trackio")
    assert capsys.readouterr().out == ""
    with sqlite3.connect(tmp_path / "trackio" / "demo.db") as database:
        rows = [(step, json.loads(text)) for step, text in database.execute("SELECT step, metrics FROM metrics")]
        ((config,),) = database.execute("SELECT config FROM configs").fetchall()
    assert sorted((step, own["loss"]) for step, own in rows if "loss" in own) == [(step, 1 / step) for step in STEPS]
    assert [own["final/map50"] for _, own in rows if "final/map50" in own] == [0.5]
    assert json.loads(config)["teacher.steps"] == 40


def records(raw: bytes) -> list[bytes]:
    """Of a file of W&B: LevelDB's log format, blocks of 32 KiB after a header of 7 bytes."""
    found, part, place = [], b"", 7
    while place + 7 <= len(raw):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", raw, place + 4)
        part += raw[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            found.append(part)
            part = b""
    return found


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(trackers, "OPENS", 120)
    monkeypatch.setattr(trackers, "CLOSES", 120)
    killed_and_resumed(tmp_path, "wandb")
    (file,) = tmp_path.glob("wandb/offline-run-*-teacher-0123456789ab/*.wandb")
    numbers, final, settings = defaultdict(list), {}, {}
    for raw in records(file.read_bytes()):
        one = Record.FromString(raw)
        for item in one.history.item:
            numbers[item.key or ".".join(item.nested_key)].append((one.history.step.num, json.loads(item.value_json)))
        final |= {item.key or ".".join(item.nested_key): item.value_json for item in one.summary.update}
        settings |= {item.key: item.value_json for item in one.run.config.update}
    assert numbers["loss"] == [(step, pytest.approx(1 / step)) for step in STEPS]
    assert final["final/map50"] == "0.5"
    assert settings["teacher.steps"] == "40"


class Fake:
    """A tracker that keeps what it is told; `fails` says what it does at a step."""

    told: list[tuple[int, Mapping[str, float]]]
    closed: list[Mapping[str, float] | None]

    def __init__(self, fails: Callable[[int], None]) -> None:
        self.fails, self.told, self.closed = fails, [], []

    def holds(self, name: str, step: int) -> bool:
        return False

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.fails(step)
        self.told.append((step, values))

    def close(self, scores: Mapping[str, float] | None) -> None:
        self.closed.append(scores)


def raising(at: int) -> Callable[[int], None]:
    def fails(step: int) -> None:
        if step == at:
            raise ConnectionError("the server\nhas gone")

    return fails


def test_one_that_fails_is_named_once_and_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, whole = Fake(raising(20)), Fake(raising(-1))
    monkeypatch.setitem(TRACKERS, "mlflow", lambda *_: broken)
    monkeypatch.setitem(TRACKERS, "wandb", lambda *_: whole)
    said: list[str] = []
    subject = Subject("demo", "teacher", "0123456789ab", tmp_path, tmp_path, {})
    with Trackers(["mlflow", "wandb"], subject, said.append) as both:
        log = Log(tmp_path, 0, both)
        for step in STEPS:
            log.write(line(step))
        both.end({"map50": 0.5})
    assert said == ["The tracker mlflow failed (the server has gone); training goes on without it."]
    assert [step for step, _ in broken.told] == [10]
    assert [step for step, _ in whole.told] == list(STEPS)
    assert whole.closed == [{"map50": 0.5}]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == len(STEPS)


def test_one_that_hangs_holds_nothing_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENS", "CLOSES"):
        monkeypatch.setattr(trackers, name, 0.1)
    for_good = threading.Event()
    monkeypatch.setitem(TRACKERS, "mlflow", lambda *_: Fake(lambda _: bool(for_good.wait()) and None))
    said: list[str] = []
    with opened(tmp_path, "mlflow", said.append) as hanging:
        log = Log(tmp_path / "stage", 0, hanging)
        for step in STEPS:
            log.write(line(step))
    assert len(log.lines) == len(STEPS)
    assert said == ["The tracker mlflow failed (it does not answer); training goes on without it."]
    for_good.set()


def test_a_stage_that_breaks_off_has_no_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake(raising(-1))
    monkeypatch.setitem(TRACKERS, "mlflow", lambda *_: fake)

    def breaks_off() -> None:
        with opened(tmp_path, "mlflow") as own:
            own.begin(Past())
            raise InputError("The loss became nan.")

    with pytest.raises(InputError, match="became nan"):
        breaks_off()
    assert fake.closed == [None]


def test_a_run_goes_on_to_the_same_weights_without_its_tracker(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("qmimic.run.prepare.require", lambda _: None)

    def refuses(*_: object) -> Fake:
        raise SystemExit("log in first")

    monkeypatch.setitem(TRACKERS, "wandb", refuses)
    run = tmp_path / "run"
    assert train(trained / "recipe.yaml", trained / "cats", run, "run.trackers=[wandb]") == 0
    said = capsys.readouterr().out
    assert "The tracker wandb failed (log in first); training goes on without it." in said
    before, now = read_run(trained / "run"), read_run(run)
    # Neither the folder nor the trackers decide what comes out.
    assert [own.key for own in now.results] == [own.key for own in before.results]
    assert (run / "student.safetensors").read_bytes() == (trained / "run" / "student.safetensors").read_bytes()
    assert not list(run.rglob("tensorboard"))


def test_a_library_that_is_missing_is_said_before_training(
    trained: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    run = tmp_path / "run"
    said = refused("train", trained / "recipe.yaml", f"data.root={trained / 'cats'}", f"run.dir={run}")
    assert "run.trackers names tensorboard, which is not installed: pip install 'qmimic[train]'" in said
    assert not run.exists()
    with pytest.raises(InputError, match=r"pip install 'qmimic\[wandb\]'"):
        require(["wandb"])
    require([])


def test_other_names_are_no_trackers() -> None:
    with pytest.raises(InputError, match=r"run\.trackers"):
        load_recipe(None, ["run.trackers=[neptune]"])
    assert load_recipe(None, ["run.trackers=[]"]).run.trackers == ()
