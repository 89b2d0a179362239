"""A stage's log: what it holds after a kill, and its pictures."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from qmimic.errors import InputError
from qmimic.training.log import Log, draw_curves, read_log
from qmimic.training.trackers import Subject, Trackers


def lines(*steps: int) -> list[dict[str, Any]]:
    return [{"step": step, "lr": 0.1, "loss": 1 / step} for step in steps]


def told(folder: Path, *names: str) -> Trackers:
    subject = Subject("demo", "teacher", "0123456789ab", folder, folder.parent, {"seed": 0})
    return Trackers(names, subject, pytest.fail)


def logged(folder: Path, done: int, *new: int) -> None:
    with told(folder, "tensorboard") as trackers:
        log = Log(folder, done, trackers)
        for line in lines(*new):
            log.write(line)


def test_every_line_is_json(tmp_path: Path) -> None:
    logged(tmp_path, 0, 10, 20)
    text = (tmp_path / "log.jsonl").read_text()
    assert [json.loads(line) for line in text.splitlines()] == lines(10, 20)
    assert text.endswith("\n")
    assert read_log(tmp_path / "log.jsonl") == lines(10, 20)


def test_earlier_names_are_read_as_those_of_today(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        '{"step": 1, "loss": 2.0, "mimic": 0.5, "mimic_share": 0.1, "mimic_cosine": 0}\n'
    )
    now = {"step": 1, "loss": 2.0, "distillation": 0.5, "distillation_share": 0.1, "distillation_cosine": 0}
    assert read_log(tmp_path / "log.jsonl") == [now]


def test_lines_are_on_disk_at_once(tmp_path: Path) -> None:
    Log(tmp_path, 0, told(tmp_path)).write(lines(10)[0])
    assert read_log(tmp_path / "log.jsonl") == lines(10)


def test_after_a_resume_it_is_the_log_of_a_run_that_never_stopped(tmp_path: Path) -> None:
    logged(tmp_path / "whole", 0, 10, 20, 30, 40)
    # Killed at 30 with a checkpoint of 20: the step after it is done, and logged, again.
    logged(tmp_path / "killed", 0, 10, 20, 30)
    logged(tmp_path / "killed", 20, 30, 40)
    assert (tmp_path / "killed" / "log.jsonl").read_bytes() == (tmp_path / "whole" / "log.jsonl").read_bytes()


def test_a_start_from_zero_empties_it(tmp_path: Path) -> None:
    logged(tmp_path, 0, 10, 20)
    logged(tmp_path, 0)
    assert (tmp_path / "log.jsonl").read_bytes() == b""


@pytest.mark.parametrize("size", [1, 2, 9, 25, 38])
def test_a_last_line_cut_by_a_kill_is_left_out(tmp_path: Path, size: int) -> None:
    logged(tmp_path, 0, 10, 20)
    path = tmp_path / "log.jsonl"
    content = path.read_bytes()
    path.write_bytes(content + content.splitlines(keepends=True)[-1][:size].replace(b"\n", b"")[:-1])
    assert read_log(path) == lines(10, 20)
    logged(tmp_path, 20, 30)
    assert read_log(path) == lines(10, 20, 30)


@pytest.mark.parametrize(
    "tail", [b"\x00\x00\x00", b"\xff\xfe{", b"[]\n", b"7\n", b'{"loss": 1}\n', b'{"step": null}\n']
)
def test_what_is_no_line_of_ours_ends_the_log(tmp_path: Path, tail: bytes) -> None:
    logged(tmp_path, 0, 10)
    path = tmp_path / "log.jsonl"
    path.write_bytes(path.read_bytes() + tail)
    assert read_log(path) == lines(10)
    logged(tmp_path, 10, 20)
    assert read_log(path) == lines(10, 20)


def test_without_a_file_there_are_no_lines(tmp_path: Path) -> None:
    assert read_log(tmp_path / "log.jsonl") == []


def test_tensorboard_shows_the_resumed_run(tmp_path: Path) -> None:
    logged(tmp_path, 0, 10, 20, 30)
    logged(tmp_path, 20, 30, 40)
    events = EventAccumulator(str(tmp_path / "tensorboard"), purge_orphaned_data=True)
    events.Reload()
    scalars = events.Scalars("loss")
    assert [event.step for event in scalars] == [10, 20, 30, 40]
    assert [event.value for event in scalars] == pytest.approx([1 / 10, 1 / 20, 1 / 30, 1 / 40])


def test_a_full_disk_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = Log(tmp_path, 0, told(tmp_path))

    def no_space(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("qmimic.files.writing.own_handle", no_space)
        with pytest.raises(InputError, match=r"Cannot write .*log\.jsonl: No space left on device; free some space"):
            log.write(lines(10)[0])


CURVES = {
    "usual": {
        "teacher": [*lines(10, 20), {"step": 20, "map50": 0.5}],
        "student": [*lines(10), {"step": 10, "map50": 0.1}],
    },
    "nothing": {},
    "losses only": {"teacher": lines(10)},
    "scores only": {"teacher": [{"step": 10, "map50": 0.0}]},
    "loss of zero": {"teacher": [{"step": 10, "loss": 0.0}, {"step": 20, "loss": 1.0}]},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("logs", CURVES.values(), ids=CURVES)
def test_curves_are_a_png(tmp_path: Path, logs: dict[str, list[dict[str, Any]]]) -> None:
    path = tmp_path / "run" / "curves.png"
    draw_curves(logs, path)
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert image.size == (1200, 480)
    assert [child.name for child in path.parent.iterdir()] == ["curves.png"]


def test_curves_show_the_lines(tmp_path: Path) -> None:
    draw_curves({}, tmp_path / "empty.png")
    draw_curves(CURVES["usual"], tmp_path / "usual.png")

    def colours(name: str) -> int:
        with Image.open(tmp_path / name) as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        return int((abs(pixels[..., 0] - pixels[..., 2]) > 60).sum())

    assert colours("empty.png") == 0
    assert colours("usual.png") > 300
