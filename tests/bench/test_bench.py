"""Costs of files, measured in turn."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from cli_cases import Refused
from qmimic.bench import measure as measuring
from qmimic.bench.measure import files_of, largest_resident, measure
from qmimic.bench.timing import WARM_UP, alternate
from qmimic.cli import main
from qmimic.errors import InputError


def test_runs_take_turns() -> None:
    order: list[str] = []
    seconds = alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "a", "b", "b"] * (WARM_UP + 3)  # each once before its clock starts
    assert {name: len(own) for name, own in seconds.items()} == {"a": 3, "b": 3}
    assert all((own >= 0).all() for own in seconds.values())


@pytest.fixture(scope="module")
def deployed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deployed")
    assert main(["export", str(trained / "run" / "student.safetensors"), "--out", str(folder)]) == 0
    return folder


def test_what_a_file_costs(deployed: Path) -> None:
    (cost,) = measure(files_of([deployed]), [1], rounds=5)
    assert 0 < cost.p50 <= cost.p95
    assert cost.megapixels == 64 * 64 / 1e6
    assert cost.per_megapixel == pytest.approx(cost.p50 / 0.004096)
    assert cost.per_second == pytest.approx(1000 / cost.p50)
    assert cost.kilobytes == (deployed / "student.onnx").stat().st_size / 1000
    assert cost.parameters == 27831
    assert 20 < cost.peak < 400  # of a process without torch, whatever this one holds


def test_the_largest_memory_is_this_process_s() -> None:
    before = largest_resident()
    held = np.ones(80_000_000, np.uint8)
    assert largest_resident() >= before
    assert largest_resident() > held.nbytes / 1e6


def test_peers_stand_in_the_same_table(deployed: Path, real_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peer = real_data / "peers" / "yunet_n.onnx"
    assert main(["bench", str(deployed), "--against", str(peer), "--rounds", "3", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["files"]
    assert [Path(row["path"]).name for row in rows] == ["student.onnx", "yunet_n.onnx"]
    assert rows[1]["megapixels"] == 320 * 320 / 1e6
    assert rows[1]["macs"] is None
    assert main(["bench", str(deployed), "--rounds", "2"]) == 0
    said = capsys.readouterr().out
    assert "p50" in said
    assert max(map(len, said.splitlines())) <= 80


def test_a_description_of_others_is_no_fault(deployed: Path, tmp_path: Path) -> None:
    model = onnx.load(deployed / "student.onnx")
    for text in ("not json", "[1]", '{"parameters": "x"}'):
        onnx.helper.set_model_props(model, {"qmimic": text})
        onnx.save(model, tmp_path / "other.onnx")
        (cost,) = measure([tmp_path / "other.onnx"], [1], rounds=1, memory=False)
        assert (cost.parameters, cost.macs, cost.peak) == (None, None, 0)


def test_sizes_that_nobody_fixed_are_refused(tmp_path: Path, refused: Refused) -> None:
    value = onnx.helper.make_tensor_value_info
    made = [value(name, onnx.TensorProto.FLOAT, ["n", 3, "h", "w"]) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", made[:1], made[1:])
    opset = onnx.helper.make_opsetid("", 17)
    onnx.save(onnx.helper.make_model(graph, opset_imports=[opset], ir_version=9), tmp_path / "free.onnx")
    said = refused("bench", tmp_path / "free.onnx")
    assert said.startswith("qmimic: free.onnx takes x of any size ([any, 3, any, any])")


def test_bad_input(deployed: Path, tmp_path: Path, refused: Refused) -> None:
    assert "holds no file to run" in refused("bench", tmp_path)
    assert "There is no file" in refused("bench", tmp_path / "none.onnx")
    (tmp_path / "a.onnx").write_text("no model")
    assert "a.onnx cannot be run by ONNX Runtime" in refused("bench", tmp_path / "a.onnx")
    assert "--threads and --rounds need 1 or more" in refused("bench", deployed, "--threads", "0")


def stranger(path: Path, kind: int, shape: list[int | str]) -> Path:
    """A file of somebody else's: what goes in comes out."""
    value = onnx.helper.make_tensor_value_info
    node = onnx.helper.make_node("Identity", ["x"], ["y"])
    graph = onnx.helper.make_graph([node], "g", [value("x", kind, shape)], [value("y", kind, shape)])
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "DOUBLE", "INT32", "INT64", "INT8", "UINT8", "UINT16", "BOOL"])
def test_inputs_of_every_type_that_numpy_has_are_timed(kind: str, tmp_path: Path) -> None:
    path = stranger(tmp_path / "a.onnx", getattr(onnx.TensorProto, kind), [1, 3, 32, 48])
    (cost,) = measure([path], [1], 3, memory=False)
    assert cost.p50 > 0
    assert cost.megapixels == pytest.approx(32 * 48 / 1e6)


def test_what_cannot_be_timed_is_named_with_its_file(tmp_path: Path) -> None:
    text = stranger(tmp_path / "text.onnx", onnx.TensorProto.STRING, [1, 3])
    with pytest.raises(InputError, match=r"text\.onnx takes x as text or bfloat16"):
        measure([text], [1], 1, memory=False)
    free = stranger(tmp_path / "free.onnx", onnx.TensorProto.FLOAT, ["b", 3, "h", "w"])
    with pytest.raises(InputError, match=r"free\.onnx takes x of any size \(\[any, 3, any, any\]\)"):
        measure([free], [1], 1, memory=False)


def test_times_are_those_of_one_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [stranger(tmp_path / f"{n}.onnx", onnx.TensorProto.FLOAT, [n, 3, 32, 48]) for n in (1, 8)]
    seconds = {str(path): np.full(5, 0.016) for path in files}
    monkeypatch.setattr(measuring, "alternate", lambda *_: seconds)
    one, eight = measure(files, [1], 5, memory=False)
    assert (one.p50, eight.p50) == (pytest.approx(16), pytest.approx(2))
    assert one.megapixels == eight.megapixels
    assert eight.per_second == pytest.approx(8 * one.per_second)
