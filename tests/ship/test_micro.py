"""A detector for a microcontroller: its arena, the commands that ship and search one, and what they refuse."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_litert import on_grids, outputs, written

from cli_cases import Refused, coco, train
from qmimic.bench.arena import arena_bytes
from qmimic.cli import main
from qmimic.errors import InputError
from qmimic.run import candidates
from qmimic.runtime import Detector
from tiny_detectors import one_stage

runtime = pytest.importorskip("tflite_micro").runtime
SETTINGS = [
    "mimic.mode=none",
    "baselines=[]",
    "student.steps=30",
    "student.batch_size=4",
    "run.threads=1",
    "run.report=false",
]


def invoked(path: Path, pixels: np.ndarray) -> np.ndarray:
    """The output of the interpreter of microcontrollers."""
    model = runtime.Interpreter.from_bytes(path.read_bytes(), arena_size=1 << 22)
    model.set_input((pixels[None] ^ 128).view(np.int8), 0)
    model.invoke()
    return np.asarray(model.get_output(0))


def test_its_interpreter_computes_what_litert_computes(tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    shipped = written(on_grids(backbone="repvgg/16"), path)
    generator = np.random.default_rng(0)
    for _ in range(3):
        pixels = generator.integers(0, 256, (*shipped.metadata.size, 3), dtype=np.uint8)
        own, wanted = invoked(path, pixels), outputs(path, pixels[None])
        assert own.dtype == wanted.dtype == np.int8
        difference = np.abs(own.astype(int) - wanted)
        assert (difference > 1).mean() < 0.02  # a value on a midpoint may round either way


def test_the_arena_holds_the_largest_maps(tmp_path: Path) -> None:
    whole = written(on_grids(backbone="repvgg/16"), tmp_path / "a.tflite")
    height, width = whole.metadata.size
    found = arena_bytes(tmp_path / "a.tflite")
    assert 2 * height * width * 3 < found < 10 * height * width * 3
    written(one_stage(backbone="repvgg/16").eval(), tmp_path / "b.tflite")
    assert arena_bytes(tmp_path / "b.tflite") > 2 * found  # in float
    (tmp_path / "c.tflite").write_bytes(b"\0\0\0\0TFL3" + b"\0" * 50)
    with pytest.raises(InputError, match=r"cannot load .*c\.tflite"):
        arena_bytes(tmp_path / "c.tflite")


def test_from_pictures_to_c(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused) -> None:
    data, run = coco(tmp_path / "data"), tmp_path / "run"
    own = ["student.backbone=repvgg/16", "detector={architecture: one_stage, score_threshold: 0.001}"]
    assert train(recipe, data, run, *own, *SETTINGS) == 0
    student = str(run / "student.safetensors")
    assert "give --int8 and --to litert as well" in refused("export", student, "--c")
    assert "such as 320x240" in refused("export", student, "--int8", "--to", "litert", "--c", "big")
    words = ["export", student, "--int8", "--to", "litert", "--c", "96x80", "--set", "int8.max_loss=1", "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [Path(one).name for one in said["sources"]] == [
        "student_int8.h",
        "student_int8_data.c",
        "student_int8_detect.c",
    ]
    assert "#define STUDENT_INT8_CAMERA_WIDTH 96\n" in Path(said["sources"][0]).read_text()
    shipped = run / "deploy" / "student-int8.tflite"
    assert Detector(shipped).metadata.precision == "int8"
    assert main(["predict", str(shipped), str(data / "val" / "val0.png"), "--out", str(tmp_path / "p")]) == 0
    assert main(["bench", str(run / "deploy"), "--rounds", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = said["files"]
    assert [Path(one["path"]).name for one in rows] == ["student-int8.tflite", "student.tflite"]
    assert said["fastest"] == min(rows, key=lambda one: one["p50"])["path"]
    assert rows[0]["arena"] == pytest.approx(arena_bytes(shipped) / 1000)
    assert rows[0]["arena"] < rows[1]["arena"]
    assert main(["bench", str(shipped), "--rounds", "2"]) == 0
    assert "arena" in capsys.readouterr().out


def test_a_search_keeps_within_the_arena(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(candidates, "TRIED", ("resnet18/32",))
    monkeypatch.setattr(candidates, "SIDES", (64, 128))
    data, out = coco(tmp_path / "data"), tmp_path / "fit"
    limits = ["--max-arena-kb", "130", "--out", str(out)]
    own = ["--set", *SETTINGS, "student.steps=4", "detector.score_threshold=0.001", "int8.max_loss=1", "int8.steps=0"]
    assert main(["fit", str(data), *limits, *own, "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    file = Path(said["file"]["path"])
    assert file.suffix == ".tflite"
    assert said["excess"] <= 1
    assert arena_bytes(file) <= 130_000
    costs = json.loads((out / "costs.json").read_text())["options"]
    assert {one["candidate"]["architecture"] for one in costs} == {"one_stage"}
    assert all(one["arena"] > 0 for one in costs)
    said = refused("fit", str(data), "--max-arena-kb", "3", "--out", str(out), *own)
    assert "No network fits: the closest" in said
    assert " kB of arena: " in said
    assert "only for .tflite files" in refused("fit", str(data), "--max-arena-kb", "99", "--to", "onnx")
