"""The paper's recipes end to end, two steps long, on small made sets of the same layouts."""

import json
from pathlib import Path

import numpy as np
import pytest

import qmimic
from folders import picture, voc_list, voc_object, voc_xml
from qmimic.cli import main
from wider_cases import write_truth

RECIPES = Path(__file__).parents[2] / "recipes"
SHORT = [
    f"{stage}.{key}" for stage in ("teacher", "quantized_teacher", "student") for key in ("steps=2", "batch_size=2")
]
SMALL = ["data.size=[64, 96]", "detector.pre_nms=64", "detector.post_nms=16"]
SMALL += [*SHORT, "teacher.min_map=0", "run.threads=1", "run.report=false"]


def devkit(root: Path) -> Path:
    """VOC2007 and VOC2012 beside each other, with two classes and a difficult object."""
    for year, splits in (("VOC2007", ("trainval", "test")), ("VOC2012", ("trainval",))):
        for number, split in enumerate(splits):
            names = [f"{year}_{split}_{k}" for k in range(2)]
            for k, name in enumerate(names):
                picture(root / year / "JPEGImages" / f"{name}.jpg", (100, 80), 10 * number + k)
                voc_xml(
                    root / year,
                    name,
                    voc_object("cat", 5, 5, 60, 50),
                    voc_object("dog", 30, 20, 90, 70),
                    voc_object("cat", 1, 1, 20, 20, extra="<difficult>1</difficult>"),
                )
            voc_list(root / year, split, *names)
    return root


def faces(root: Path) -> Path:
    """WIDER FACE's folders with two images a split, one face of them invalid."""
    for split in ("train", "val"):
        lines = []
        for k in range(2):
            name = f"0--Parade/{split}_{k}"
            picture(root / f"WIDER_{split}" / "images" / f"{name}.jpg", (100, 80), k + 10 * (split == "val"))
            lines += [f"{name}.jpg", "2", "10 10 40 50 0 0 0 0 0 0", "60 20 8 9 2 0 0 1 0 0"]
        path = root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.parametrize("width", ["resnet18/16", "resnet18/64"])
def test_voc(tmp_path: Path, width: str) -> None:
    overrides = [f"data.root={devkit(tmp_path / 'VOCdevkit')}", f"run.dir={tmp_path / 'run'}", *SMALL]
    overrides += ["teacher.backbone=resnet18/8", "teacher.weights=null", f"student.backbone={width}"]
    run = qmimic.train(qmimic.load_recipe(RECIPES / "voc-resnet18-16-frcnn.yaml", overrides))
    assert [result.name for result in run.results] == ["teacher", "quantized_teacher", "scratch", "mimic", "student"]
    dataset = qmimic.load_dataset(tmp_path / "VOCdevkit")
    assert len(dataset.splits["2007_test"]) == 2
    scores = qmimic.evaluate(run.student, dataset, "2007_test")
    assert scores.voc07_map50 == pytest.approx(run.results[-1].map07)


@pytest.mark.parametrize("width", ["vgg16/32", "vgg16/64"])
def test_wider_face(tmp_path: Path, width: str, capsys: pytest.CaptureFixture[str]) -> None:
    data, run, found = faces(tmp_path / "faces"), tmp_path / "run", tmp_path / "found"
    overrides = [
        f"data.root={data}",
        f"run.dir={run}",
        *SMALL,
        "teacher.backbone=vgg16/16",
        "baselines=[scratch, mimic]",
        f"student.backbone={width}",
    ]
    assert main(["train", str(RECIPES / "wider-vgg16-32-rfcn.yaml"), *overrides]) == 0
    student = run / "student.safetensors"
    evaluate = ["eval", str(student), "--data", str(data), "--widerface", str(found)]
    assert main([*evaluate, "--sizes", "64x96", "96x128", "--flip"]) == 0
    image = {"boxes": np.array([[10, 10, 40, 50], [60, 20, 8, 9]]), **dict.fromkeys(("easy", "medium"), np.array([1]))}
    image["hard"] = np.array([1])
    write_truth(tmp_path / "truth", {"0--Parade": {"val_0": image, "val_1": image}})
    score = ["score", "--widerface", str(tmp_path / "truth"), "--detections", str(found), "--json"]
    capsys.readouterr()
    assert main(score) == 0
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(values) == {"easy", "medium", "hard"}
    assert all(0 <= value <= 1 for value in values.values())


def test_a_size_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("64", "64x", "x", "64*96"):
        assert main(["eval", "d.safetensors", "--data", "synthetic:digits", "--sizes", size]) == 2
        assert "is not a size" in capsys.readouterr().err
