"""The commands as a user meets them: good input works, bad input ends in one sentence and exit code 2."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from cli_cases import RECIPE, Refused, coco
from qmimic.cli import main
from qmimic.detectors.files import FORMAT


def test_eval_and_score_agree_and_end_in_one_json_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, found = str(trained / "cats"), str(tmp_path / "found.json")
    student = str(trained / "run" / "student.safetensors")
    assert main(["eval", student, "--data", data, "--detections", found, "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    # COCO's own tools read the same file: the folder has ids for its images and classes.
    entries = json.loads(Path(found).read_text())
    truth = COCO(str(trained / "cats" / "instances_val.json"))
    assert len(truth.loadRes(found).anns) == len(entries) > 0
    for entry in entries:
        assert truth.imgs[entry["image_id"]]["file_name"] == f"{entry['file_name']}.png"
        assert truth.cats[entry["category_id"]]["name"] == entry["category"]
    assert main(["score", "--data", data, "--split", "val", "--detections", found, "--json"]) == 0
    second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert first == second
    assert {"voc07_map50", "voc_map50", "coco_map", "per_class"} == first.keys()


def test_predict_draws_every_kind_of_picture(trained: Path, tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    noise.convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.asarray(noise.convert("L"), np.uint16) * 257).save(tmp_path / "sixteen bits.png")
    noise.save(tmp_path / "animated.gif", save_all=True, append_images=[noise.rotate(180)])
    noise.save(tmp_path / "türned.jpg", exif=turned)
    noise.resize((1, 1)).save(tmp_path / "dot.png")
    names = ["cmyk.jpg", "sixteen bits.png", "animated.gif", "türned.jpg", "dot.png"]
    out = tmp_path / "drawn here"
    student = str(trained / "run" / "student.safetensors")
    assert main(["predict", student, *(str(tmp_path / name) for name in names), "--out", str(out)]) == 0
    sizes = {path.name: Image.open(path).size for path in out.iterdir()}
    assert sizes == {
        "cmyk.png": (60, 40),
        "sixteen bits.png": (60, 40),
        "animated.png": (60, 40),
        "türned.png": (40, 60),
        "dot.png": (1, 1),
    }


def test_data_that_cannot_be_used(recipe: Path, tmp_path: Path, refused: Refused) -> None:
    def trains(data: Path) -> str:
        return refused("train", recipe, f"data.root={data}", f"run.dir={tmp_path / 'run'}")

    (tmp_path / "empty").mkdir()
    assert "empty holds no dataset" in trains(tmp_path / "empty")
    assert "There is no folder" in trains(tmp_path / "missing")

    cut = coco(tmp_path / "cut")
    image = cut / "train" / "train1.png"
    image.write_bytes(image.read_bytes()[:500])
    assert "train1.png" in trains(cut)
    image.write_bytes(b"")
    assert "train1.png" in trains(cut)

    labels = coco(tmp_path / "labels") / "instances_train.json"
    whole = labels.read_text()
    labels.write_text(whole[: len(whole) // 2])
    assert "instances_train.json is not a whole JSON file" in trains(tmp_path / "labels")
    for number in ("NaN", "Infinity"):
        labels.write_text(whole.replace("30", number, 1))
        assert "not finite" in trains(tmp_path / "labels")
    content = json.loads(whole)
    labels.write_text(json.dumps({**content, "annotations": []}))
    assert "no image of 'train' shows" in trains(tmp_path / "labels")
    val = tmp_path / "labels" / "instances_val.json"
    val.write_text(json.dumps({"images": json.loads(val.read_text())["images"]}))
    assert "label" in trains(tmp_path / "labels")
    assert not (tmp_path / "run").exists()


def test_a_class_that_only_val_shows(recipe: Path, tmp_path: Path, refused: Refused) -> None:
    data = coco(tmp_path / "data", classes=("cat", "dog"))
    labels = data / "instances_train.json"
    content = json.loads(labels.read_text())
    for box in content["annotations"]:
        box["category_id"] = 0
    labels.write_text(json.dumps(content))
    assert "class dog" in refused("train", recipe, f"data.root={data}", f"run.dir={tmp_path / 'run'}")


def test_recipes_that_cannot_be_used(recipe: Path, tmp_path: Path, refused: Refused) -> None:
    assert "did you mean teacher.steps?" in refused("train", recipe, "teacher.stepz=3")
    assert "data.train and data.val" in refused("train", recipe, "data.val=train")
    assert "Cannot read the recipe" in refused("train", tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("a: [1")
    assert "not valid YAML" in refused("train", tmp_path / "broken.yaml")
    assert "did you mean resnet18?" in refused("train", recipe, "teacher.backbone=resnet19/4")


def test_detectors_that_cannot_be_used(trained: Path, tmp_path: Path, refused: Refused) -> None:
    cats, student = trained / "cats", trained / "run" / "student.safetensors"
    content = student.read_bytes()
    for name, damaged in (("cut", content[: len(content) // 2]), ("text", b"hello"), ("empty", b"")):
        path = tmp_path / f"{name}.safetensors"
        path.write_bytes(damaged)
        assert f"{name}.safetensors is cut short" in refused("eval", path, "--data", cats)
    newer = tmp_path / "newer.safetensors"
    written = rf"\"format\": {FORMAT}".encode()
    assert written in content
    newer.write_bytes(content.replace(written, rb"\"format\": 9"))
    assert "newer qmimic" in refused("eval", newer, "--data", cats)
    assert "is a folder, not a file" in refused("eval", tmp_path, "--data", cats)
    pets = coco(tmp_path / "pets", classes=("cat", "dog"))
    assert "shows the class dog, which the detector does not know" in refused("eval", student, "--data", pets)
    assert "no split 'test'" in refused("eval", student, "--data", cats, "--split", "test")


def test_pictures_that_cannot_be_drawn(trained: Path, tmp_path: Path, refused: Refused) -> None:
    student, picture = trained / "run" / "student.safetensors", trained / "cats" / "val" / "val0.png"
    out = tmp_path / "out"
    assert "There is no image" in refused("predict", student, tmp_path / "none.jpg", "--out", out)
    assert "recipe.yaml is not a" in refused("predict", student, trained / "recipe.yaml", "--out", out)
    assert "There are no pictures in" in refused("predict", student, tmp_path, "--out", out)
    other = tmp_path / "val0.jpg"
    Image.open(picture).save(other)
    assert "named val0" in refused("predict", student, picture, other, "--out", out)
    assert "7.0 is not a valid lowest score" in refused("predict", student, picture, "--out", out, "--min-score", 7)
    assert not out.exists()
    assert "Cannot write" in refused("predict", student, picture, "--out", trained / "recipe.yaml")
    assert (trained / "recipe.yaml").read_text() == RECIPE


def test_a_run_folder_that_cannot_be_written(
    recipe: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = coco(tmp_path / "data")
    assert "Cannot write" in refused("train", recipe, f"data.root={data}", f"run.dir={recipe}/run")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("qmimic.detectors.files.save_file", full)
    assert "No space left" in refused("train", recipe, f"data.root={data}", f"run.dir={tmp_path / 'run'}")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    data = coco(tmp_path / "data", count=40)
    command = f"{sys.executable} -m qmimic data check {data} --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_a_run_keeps_the_account_of_its_data(trained: Path) -> None:
    kept = json.loads((trained / "run" / "data.json").read_text())
    assert kept["accounted"]["pictures"] == {"found": 8, "used": 8, "left_out": {}}
    assert kept["remarks"][0].startswith("pictures: 8 found, 8 used")
