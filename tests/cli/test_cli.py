"""The commands as a user meets them: good input works, bad input ends in one sentence and exit code 2."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qmimic.cli import main

RECIPE = """
data: {size: [64, 64]}
detector: {anchor_count: 2, pre_nms: 64, post_nms: 16, roi_samples: 16, rpn_samples: 32}
teacher: {backbone: resnet18/16, steps: 2, batch_size: 4, min_map: 0}
quantized_teacher: {steps: 0}
student: {backbone: resnet18/32, steps: 2, batch_size: 4}
baselines: []
run: {threads: 1}
mimic:
  # nothing but a comment: the defaults
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def coco(root: Path, count: int = 4, classes: tuple[str, ...] = ("cat",), suffix: str = ".png") -> Path:
    """A COCO folder of noise with one box an image; image i has class i modulo the number of classes."""
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        images, boxes = [], []
        for number in range(count):
            name = f"{split}{number}{suffix}"
            pixels = np.random.default_rng(number + 10 * (split == "val")).integers(0, 256, (48, 64, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / split / name)
            images.append({"id": number, "file_name": name})
            category = number % len(classes)
            boxes.append({"id": number, "image_id": number, "category_id": category, "bbox": [4, 6, 30, 20]})
        categories = [{"id": place, "name": name} for place, name in enumerate(classes)]
        content = {"images": images, "annotations": boxes, "categories": categories}
        (root / f"instances_{split}.json").write_text(json.dumps(content))
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a few steps; its data lie beside it in `cats`."""
    root = tmp_path_factory.mktemp("trained")
    (root / "recipe.yaml").write_text(RECIPE)
    coco(root / "cats")
    assert train(root / "recipe.yaml", root / "cats", root / "run") == 0
    return root


def train(recipe: Path, data: Path, run: Path, *overrides: str) -> int:
    return main(["train", str(recipe), f"data.root={data}", f"run.dir={run}", *overrides])


Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that has to end in one sentence on stderr and exit code 2; gives the sentence."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("qmimic: ")
        assert said.count("\n") == 1
        assert "Traceback" not in said
        return said

    return run


def test_eval_and_score_agree_and_end_in_one_json_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, found = str(trained / "cats"), str(tmp_path / "found.json")
    student = str(trained / "run" / "student.safetensors")
    assert main(["eval", student, "--data", data, "--detections", found, "--json"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
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


def test_a_single_image_and_odd_kinds_train(recipe: Path, tmp_path: Path) -> None:
    assert train(recipe, coco(tmp_path / "one", count=1, suffix=".gif"), tmp_path / "run") == 0


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
    assert "instances_train.json is no whole JSON file" in trains(tmp_path / "labels")
    for number in ("NaN", "Infinity"):
        labels.write_text(whole.replace("30", number, 1))
        assert "not finite" in trains(tmp_path / "labels")
    content = json.loads(whole)
    labels.write_text(json.dumps({**content, "annotations": []}))
    assert "no image of 'train' shows" in trains(tmp_path / "labels")
    (tmp_path / "labels" / "instances_val.json").write_text(json.dumps({"images": content["images"]}))
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
    newer.write_bytes(content.replace(b'\\"format\\": 1', b'\\"format\\": 9'))
    assert "newer qmimic" in refused("eval", newer, "--data", cats)
    assert "no checkpoint" in refused("eval", tmp_path, "--data", cats)
    pets = coco(tmp_path / "pets", classes=("cat", "dog"))
    assert "its own classes" in refused("eval", student, "--data", pets)
    assert "no split 'test'" in refused("eval", student, "--data", cats, "--split", "test")


def test_pictures_that_cannot_be_drawn(trained: Path, tmp_path: Path, refused: Refused) -> None:
    student, picture = trained / "run" / "student.safetensors", trained / "cats" / "val" / "val0.png"
    out = tmp_path / "out"
    assert "There is no image" in refused("predict", student, tmp_path / "none.jpg", "--out", out)
    assert "recipe.yaml is no" in refused("predict", student, trained / "recipe.yaml", "--out", out)
    assert "is no whole image" in refused("predict", student, tmp_path, "--out", out)
    other = tmp_path / "val0.jpg"
    Image.open(picture).save(other)
    assert "named val0" in refused("predict", student, picture, other, "--out", out)
    assert "--min-score 7" in refused("predict", student, picture, "--out", out, "--min-score", 7)
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

    monkeypatch.setattr("qmimic.models.checkpoint.save_file", full)
    assert "No space left" in refused("train", recipe, f"data.root={data}", f"run.dir={tmp_path / 'run'}")
    assert not list((tmp_path / "run").rglob("*.safetensors"))


def test_ctrl_c_keeps_the_last_checkpoint_and_says_how_to_go_on(recipe: Path, tmp_path: Path) -> None:
    data, run = coco(tmp_path / "data"), tmp_path / "run"
    command = [sys.executable, "-m", "qmimic", "train", str(recipe), f"data.root={data}", f"run.dir={run}"]
    command += ["teacher.steps=100000", "teacher.checkpoint_every=2"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and so perhaps these tests, ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    for _ in range(600):
        if list(run.rglob("step-*.safetensors")):
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.strip().splitlines() == [
        "qmimic: interrupted; the last checkpoint is kept, the same command goes on from it."
    ]
    assert list(run.rglob("step-*.safetensors"))


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    data = coco(tmp_path / "data", count=40)
    command = f"{sys.executable} -m qmimic data check {data} --json | head -c 10"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stderr == ""
