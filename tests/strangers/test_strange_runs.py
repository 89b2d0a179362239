"""A run folder from a stranger, or from a disk that rots."""

import io
import json
import shutil
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from torch import nn

from cli_cases import Refused
from qmimic.cli import main
from qmimic.cli.output import table
from qmimic.detectors.files import read_tensors, write_tensors
from qmimic.errors import InputError
from qmimic.run.folder import read_run, read_stage
from qmimic.training.state import load_checkpoint, save_checkpoint


def listing(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    "name", ["stages", "pixels", "bank", "report", "deploy", "stages/teacher/checkpoints", "wandb"]
)
def test_a_run_folder_with_a_link_of_ours_is_refused_before_anything_is_written(
    trained: Path, tmp_path: Path, refused: Refused, name: str
) -> None:
    run, own = tmp_path / "run", tmp_path / "own"
    shutil.copytree(trained / "run", run)
    own.mkdir()
    (own / "step-0000001.safetensors").write_text("mine")
    if name.startswith("stages/"):
        stage = next((run / "stages").glob("teacher-*"))
        place = stage / "checkpoints"
    else:
        place = run / name
    if place.is_dir():
        shutil.rmtree(place)
    place.symlink_to(own)
    before = listing(run)
    recipe, data = trained / "recipe.yaml", f"data.root={trained / 'cats'}"
    said = refused("train", recipe, data, f"run.dir={run}", "teacher.steps=3")
    assert f"{place.name} is a link, and nothing is written through it" in said
    if name != "wandb":
        assert "is a link" in refused("report", run)
        assert "is a link" in refused("export", run / "student.safetensors", "--data", trained / "cats")
    assert listing(own) == {"step-0000001.safetensors": b"mine"}
    assert listing(run) == before


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "a.safetensors"
    write_tensors(path, {"a": torch.arange(6.0), "b": torch.tensor(3)}, {"key": "k", "step": 1})
    return path.read_bytes()


@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@settings(max_examples=300)
def test_any_flipped_bit_of_a_checkpoint_is_seen(good: bytes, place: float, bit: int) -> None:
    import tempfile

    content = bytearray(good)
    content[int(place * len(content))] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors")
        path.write_bytes(content)
        try:
            found = read_tensors(path)
        except InputError:
            return
        path.write_bytes(good)
        whole = read_tensors(path)
    # What is not seen has changed nothing, such as a space in the header, or has lost all that says it is ours.
    assert found.header in (whole.header, {})
    if found.header:
        assert found.tensors.keys() == whole.tensors.keys()
        assert all(torch.equal(found.tensors[name], whole.tensors[name]) for name in whole.tensors)


@pytest.mark.parametrize("step", [-1, 5, 10**12, True, "1", None])
def test_a_step_outside_the_schedule_is_passed_over(tmp_path: Path, step: object) -> None:
    module = nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(module.parameters())
    save_checkpoint(tmp_path, 3, "key", module, optimizer, None)
    path = tmp_path / "step-0000003.safetensors"
    assert load_checkpoint(tmp_path, "key", module, optimizer, None, 4) == 3
    file = read_tensors(path)
    header = {name: value for name, value in file.header.items() if name not in ("sum", "format")}
    write_tensors(path, file.tensors, {**header, "step": step})
    with pytest.warns(UserWarning, match="is damaged"):
        assert load_checkpoint(tmp_path, "key", module, optimizer, None, 4) == 0


def test_only_checkpoints_are_removed_beside_checkpoints(tmp_path: Path) -> None:
    own = ("step-mine.safetensors", ".step-mine.safetensors", "step-0000001.safetensors.bak", "notes.txt")
    for name in own:
        (tmp_path / name).write_text("mine")
    module = nn.Linear(2, 2)
    for step in range(1, 5):
        save_checkpoint(tmp_path, step, "key", module, torch.optim.AdamW(module.parameters()), None)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {*own, "step-0000003.safetensors", "step-0000004.safetensors"}


@pytest.mark.parametrize("name", ["result.json", "detector.safetensors"])
def test_a_finished_stage_that_is_damaged_is_done_again_and_says_so(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "run", run)
    stage = next((run / "stages").glob("student-*"))
    path = stage / name
    before, weights = path.read_bytes(), (stage / "detector.safetensors").read_bytes()
    if name == "result.json":
        tree = json.loads(before)
        path.write_text(json.dumps({**tree, "map50": tree["map50"] / 2 + 0.25}, indent=1))
        assert read_stage(stage) is None
    else:
        content = bytearray(before)
        content[-5] ^= 1
        path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert main(["train", str(trained / "recipe.yaml"), f"data.root={trained / 'cats'}", f"run.dir={run}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{stage.name} was done before and cannot be used, so it is done again" in shown
    assert (stage / "detector.safetensors").read_bytes() == weights
    assert path.read_bytes() == before


def test_broken_runs_are_listed_beside_the_others_as_they_are(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = tmp_path / "runs"
    for name in ("good", "deep", "digits", "said"):
        shutil.copytree(trained / "run", runs / name)
    stage = next((runs / "deep" / "stages").glob("student-*"))
    (stage / "result.json").write_text('{"name":' * 5000)
    (runs / "deep" / "results.json").write_text("[" * 100_000)
    (runs / "digits" / "results.json").write_text(f'{{"stages": [{{"bytes": {"9" * 5000}}}]}}')
    (runs / "said" / "failed.txt").write_text("Cannot read [/data/x], [bold]sorry[/bold] \x1b[31m")
    assert main(["runs", "--json", str(runs)]) == 0
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)["runs"]}
    assert found.keys() == {"good", "deep", "digits", "said"}
    assert found["good"]["status"] == "done"
    assert found["said"]["detail"] == "Cannot read [/data/x], [bold]sorry[/bold] ?[31m"
    assert main(["runs", str(runs)]) == 0
    shown = "".join(capsys.readouterr().out.split())
    assert "[/data/x],[bold]sorry[/bold]" in shown


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=30))
def test_text_of_data_is_never_markup(text: str) -> None:
    file = io.StringIO()
    Console(file=file, width=200).print(table((f"[{text}]", "score"), [(f"[{text}]", "1")], title=f"[/{text}]"))
    assert file.getvalue().count(text) >= 3


def test_any_changed_digit_of_the_results_is_seen(trained: Path, tmp_path: Path) -> None:
    run = shutil.copytree(trained / "run", tmp_path / "run")
    whole = (run / "results.json").read_text()
    places = [place for place, sign in enumerate(whole) if sign.isdigit()]
    assert len(places) > 50
    results, seen = read_run(run).results, 0
    for place in places:
        other = "5" if whole[place] != "5" else "6"
        (run / "results.json").write_text(f"{whole[:place]}{other}{whole[place + 1 :]}")
        try:
            found = read_run(run)
        except InputError:
            seen += 1
        else:  # the last of many digits need not change a number
            assert found.results == results
    assert seen > 0.9 * len(places)
    (run / "results.json").write_text(whole)
    assert read_run(run).results
