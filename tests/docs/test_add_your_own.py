"""docs/how-to/add-your-own.md: its files and their lines, put into a copy of the package, train and ship."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from own_parts import BLOCK, put_in
from pages import ROOT, blocks, commands
from PIL import Image
from test_commands import INTEGERS, QUICK

from qmimic.data import synthetic

PAGE = ROOT / "docs" / "how-to" / "add-your-own.md"
SCRIPT = """
import json, sys
from qmimic.cli import main
from qmimic.runtime.__main__ import main as runtime
for words in json.load(sys.stdin):
    code = main(words[1:]) if words[0] == "qmimic" else runtime(words[3:])
    assert code == 0, f"{words} ended with {code}"
from qmimic.detectors.channels import channel_groups
from qmimic import build_detector
print(len(channel_groups(build_detector("strided/8", ("a",), (64, 64)))), "groups of channels")
"""


def test_one_file_and_one_line_are_enough(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    text = PAGE.read_text(encoding="utf-8")
    put_in(text, tmp_path)
    (tmp_path / "recipes").mkdir()
    (recipe,) = (block.text for block in blocks(PAGE) if block.language == "yaml")
    (tmp_path / "recipes" / "own.yaml").write_text(recipe)
    digits = synthetic.digits(8, 4, 0)
    folder = tmp_path / "photos-csv"
    folder.mkdir()
    with (folder / "boxes.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("split", "image", "class", "x1", "y1", "x2", "y2"))
        for split in ("train", "val"):
            for sample in digits.splits[split]:
                pixels, _ = digits.fitted(sample, (128, 128))
                Image.fromarray(pixels).save(folder / f"{sample.image_id}.png")
                for label, box in zip(sample.labels, sample.boxes.tolist(), strict=True):
                    table.writerow((split, f"{sample.image_id}.png", digits.classes[label], *box))
    shutil.copy(folder / f"{digits.splits['val'][0].image_id}.png", tmp_path / "photo.jpg")
    orders = [list(command.words) for command in commands(PAGE)]
    for words in orders:
        if words[1] == "train":
            idle = ("pruning.", *(["teacher.", "quantized_teacher."] if "teacher.kind=gradients" in words else []))
            words += [one for one in QUICK if "backbone" not in one and not one.startswith(idle)]
        elif words[1] == "export":
            words += ["--set", *INTEGERS]
    assert [words[1] for words in orders] == ["cost", "data", "train", "train", "train", "export", "bench", "-m"]
    own = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=json.dumps(orders), cwd=tmp_path, env=own, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "strided/4" in done.stdout
    assert "train: 8 images" in done.stdout
    saved = (tmp_path / "runs" / "own" / "recipe.yaml").read_text()
    assert "distiller: generated" in saved
    assert "reach: 2" in saved
    assert "architecture: light_rcnn" in saved
    saved = (tmp_path / "runs" / "attention" / "recipe.yaml").read_text()
    assert "distiller: attention" in saved
    assert "student: attention, mode quantization" in done.stdout
    saved = (tmp_path / "runs" / "gradients" / "recipe.yaml").read_text()
    assert "kind: gradients" in saved
    assert "distance: cosine" in saved
    assert "kind: squares" in saved
    assert {"student.gz", "student-int8.gz"} <= {path.name for path in (tmp_path / "runs/own/deploy").iterdir()}
    assert "groups of channels" in done.stdout


@pytest.mark.parametrize("path", [path for kind, path, _ in BLOCK.findall(PAGE.read_text("utf-8")) if kind == "python"])
def test_the_examples_stand_on_their_floors(path: str) -> None:
    """The tree has no such file yet, so that the page's example can be followed to the letter."""
    assert not (ROOT / path).exists()
