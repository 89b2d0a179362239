"""Recipes, detectors, pictures and run folders that cannot be used; what existed before stays as it was."""

import json
import struct
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cli_cases import RECIPE, Refused, coco, train
from qmimic.cli import main
from qmimic.run.folder import WRITTEN
from qmimic.serve.models import detector_files


def state(folder: Path) -> dict[str, bytes]:
    """Every file below a folder and its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("teachr.steps=3", "did you mean teacher?"),
        ("student.learning_rat=1", "did you mean student.learning_rate?"),
        ("augment.scale=[2, 1]", "smallest <= largest"),
        ("mimic.last_step=0.1 mimic.map_steps=0.5", "mimic.last_step needs to be at least mimic.map_steps"),
        ("student.quantize_map=true quantizer.per_channel=true", "quantizer.per_channel=false"),
        ("teacher=", "teacher: needs `name: value` pairs"),
        ("teacher.steps.more=3", "steps is a value, not a section"),
        (
            "quantized_teacher.milestones=[8, 11]",
            "quantized_teacher.milestones is no longer a setting: it is always [0.67, 0.89]; leave it",
        ),
        ("run.threads=1000000", "run.threads"),
        ("detector.head_width=1000000000000", "detector.head_width"),
        ('run.dir="a\\0b"', "NUL"),
        ("data.size=[100, 100]", "multiples of 16"),
        ("data.val=nothing", "its splits: train, val"),
        ("teacher.weights=missing.safetensors", "Cannot read the weights missing.safetensors"),
        ("mimic.weight=auot", "mimic.weight: needs a number or auto"),
        (
            "mimic.region_size=20 mimic.regions=foo",
            "mimic.region_size: needs at most 14 (given: 20)",
        ),
        ("mimic.region_count=1 mimic.sampling=balanced mimic.regions=student", "mimic.region_count to 2 or more"),
        ("mimic.pooling=crop mimic.region_size=7", "mimic.pooling=crop takes the entries as they lie"),
        ("teacher.steps", "is not an override"),
        ("teacher.steps=[1", "not valid YAML"),
    ],
)
def test_recipes_with_impossible_values(
    recipe: Path, tmp_path: Path, refused: Refused, override: str, why: str
) -> None:
    data = coco(tmp_path / "data")
    overrides = override.replace("] ", "]\n").split(" ") if override.count("=") > 1 else [override]
    assert why in refused("train", recipe, f"data.root={data}", f"run.dir={tmp_path / 'run'}", *overrides)


def test_recipes_that_are_no_recipe(tmp_path: Path, refused: Refused) -> None:
    assert "is a folder, not a file" in refused("train", tmp_path)
    for content in (
        b"- a\n- b\n",
        b"words",
        b"\x89PNG\r\n\x1a\n\0\0",
        b"a: 1\na: 2",
        b"a: &x 1\nb: *x",
        b"a: 2024-99-99",
    ):
        (tmp_path / "some.yaml").write_bytes(content)
        assert "some.yaml" in refused("train", tmp_path / "some.yaml")


def test_a_recipe_is_not_replaced_by_its_own_run(recipe: Path, tmp_path: Path, refused: Refused) -> None:
    data = coco(tmp_path / "data")
    assert "holds a recipe.yaml that no run wrote" in refused(
        "train", recipe, f"data.root={data}", f"run.dir={tmp_path}"
    )
    assert recipe.read_text() == RECIPE
    # The recipe that a run wrote is there to run again.
    assert train(recipe, data, tmp_path / "run") == 0
    assert train(tmp_path / "run" / "recipe.yaml", data, tmp_path / "run") == 0


@pytest.mark.parametrize("name", WRITTEN)
def test_a_run_overwrites_nothing_that_no_run_wrote(name: str, recipe: Path, tmp_path: Path, refused: Refused) -> None:
    data, run = coco(tmp_path / "data"), tmp_path / "run"
    run.mkdir()
    (run / name).write_text("{}")
    assert f"holds a {name} that no run wrote" in refused("train", recipe, f"data.root={data}", f"run.dir={run}")
    assert [path.name for path in run.iterdir()] == [name]
    assert (run / name).read_text() == "{}"


def test_networks_of_an_earlier_run_are_neither_lost_nor_shown_as_this_one_s(recipe: Path, tmp_path: Path) -> None:
    data, run = coco(tmp_path / "data"), tmp_path / "run"
    assert train(recipe, data, run, "baselines=[scratch]") == 0
    before = (run / "scratch.safetensors").read_bytes()
    assert [path.stem for path in detector_files(run)][-2:] == ["scratch", "student"]
    assert train(recipe, data, run) == 0
    assert (run / "scratch.safetensors").read_bytes() == before
    assert "scratch" not in [path.stem for path in detector_files(run)]


def test_detectors_of_another_kind(trained: Path, tmp_path: Path, refused: Refused) -> None:
    cats, student = trained / "cats", trained / "run" / "student.safetensors"
    tensors = load_file(student)
    with safe_open(str(student), framework="pt") as file:
        header = json.loads(file.metadata()["qmimic"])

    def written(**changes: object) -> Path:
        path = tmp_path / "changed.safetensors"
        save_file(tensors, path, {"qmimic": json.dumps({**header, **changes})})
        return path

    wider = {**header["spec"], "backbone": "resnet18/8"}
    said = refused("eval", written(spec=wider), "--data", cats)
    assert "another width" in said
    assert "changed.safetensors" in said
    more = {**header["spec"], "classes": ["cat", "dog"]}
    assert "another number of classes" in refused("predict", written(spec=more), cats, "--out", tmp_path / "out")
    assert "newer qmimic" in refused("eval", written(format=99), "--data", cats)
    assert "cannot be" in refused("eval", written(spec={"backbone": "none"}), "--data", cats)
    save_file(tensors, tmp_path / "plain.safetensors")
    assert "not a qmimic detector" in refused("eval", tmp_path / "plain.safetensors", "--data", cats)
    assert "cannot start from these weights" in refused(
        "train", trained / "recipe.yaml", f"data.root={cats}", f"run.dir={tmp_path}/r", f"teacher.weights={student}"
    )


def test_pictures_of_formats_that_cannot_be_read(trained: Path, tmp_path: Path, refused: Refused) -> None:
    student = trained / "run" / "student.safetensors"
    head = bytearray(192)
    head[:4] = b"DDS "
    struct.pack_into("<5I", head, 4, 124, 0x1007, 16, 16, 0)
    struct.pack_into("<2I", head, 76, 32, 4)
    head[84:88] = b"ZZZZ"  # a pixel format that no one knows
    for name, content in (("odd.dds", bytes(head)), ("zero.jpg", b""), ("text.png", b"hello")):
        (tmp_path / name).write_bytes(content)
        assert f"{name} is not a" in refused("predict", student, tmp_path / name, "--out", tmp_path / "out")
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    assert "shrink it" in refused("predict", student, tmp_path / "huge.png", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_drawings_never_replace_pictures(trained: Path, tmp_path: Path, refused: Refused) -> None:
    student = trained / "run" / "student.safetensors"
    photos = coco(tmp_path / "photos") / "val"
    Image.open(photos / "val0.png").save(photos / "val0.jpg")
    before = state(tmp_path)
    assert "name another" in refused("predict", student, photos / "val1.png", "--out", photos)
    assert "name another" in refused("predict", student, photos / "val0.jpg", "--out", photos / ".." / "val")
    other = photos.parent / "train" / "val0.png"
    Image.open(photos / "val0.png").save(other)
    assert "named val0" in refused("predict", student, photos / "val0.png", other, "--out", tmp_path / "out")
    other.unlink()
    assert state(tmp_path) == before


def test_the_longest_names_are_drawn(trained: Path, tmp_path: Path) -> None:
    picture = tmp_path / f"{'é' * 120}.jpeg"
    Image.new("RGB", (20, 10)).save(picture)
    student = str(trained / "run" / "student.safetensors")
    assert main(["predict", student, str(picture), "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{picture.stem}.png"]


@pytest.mark.parametrize("score", ["7", "-0.1", "nan", "inf"])
def test_scores_that_are_none(trained: Path, tmp_path: Path, refused: Refused, score: str) -> None:
    picture = trained / "cats" / "val" / "val0.png"
    said = refused(
        "predict", trained / "run" / "student.safetensors", picture, "--out", tmp_path, f"--min-score={score}"
    )
    assert f"{float(score)} is not a valid lowest score; give a number from 0 to 1" in said
    assert list(tmp_path.iterdir()) == []


def test_scoring_what_is_not_there(trained: Path, tmp_path: Path, refused: Refused) -> None:
    cats, student = trained / "cats", trained / "run" / "student.safetensors"
    assert "none.json" in refused("score", "--data", cats, "--detections", tmp_path / "none.json")
    assert "is a folder, not a file" in refused("score", "--data", cats, "--detections", tmp_path)
    found = tmp_path / "found.json"
    found.write_text('[{"file_name": "val0", "category": "cat", "bbox": [1, 2, 3, 4], "sco')
    assert "not a whole JSON" in refused("score", "--data", cats, "--detections", found)
    found.write_text('[{"file_name": "val0", "category": "cat", "bbox": [1, 2, NaN, 4], "score": 1}]')
    assert "entry 0" in refused("score", "--data", cats, "--detections", found)
    found.write_text("[]")
    assert "no split 'test'" in refused("score", "--data", cats, "--split", "test", "--detections", found)
    assert "There is no folder" in refused("score", "--data", tmp_path / "none", "--detections", found)
    assert "Cannot write" in refused("eval", student, "--data", cats, "--detections", tmp_path)
    assert "Cannot write" in refused("eval", student, "--data", cats, "--detections", found / "x.json")
    assert found.read_text() == "[]"


def test_a_lack_of_memory_is_no_traceback(
    recipe: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = coco(tmp_path / "data")
    torchs = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes.")
    for error in (MemoryError(), torchs, RuntimeError("CUDA out of memory. Tried to allocate 48.00 GiB.")):

        def lacking(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("qmimic.run.stages.build", lacking)
        said = refused("train", recipe, f"data.root={data}", f"run.dir={tmp_path / 'run'}")
        assert "not enough memory; lower batch_size" in said


@pytest.mark.parametrize("call", ["qmimic.files.writing.os.fsync", "qmimic.training.log.write_text"])
def test_a_disk_that_fills_up(
    trained: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    run = tmp_path / "run"
    arguments = ("train", trained / "recipe.yaml", f"data.root={trained / 'cats'}", f"run.dir={run}")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        assert "No space left" in refused(*arguments)
    assert not list(run.rglob(".*"))
    assert not list(run.rglob("result.json"))
    # With room again the same command goes on to the end.
    assert main([str(argument) for argument in arguments]) == 0
