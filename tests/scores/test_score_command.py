"""`qmimic score`: what people and programs read."""

import json
from pathlib import Path
from typing import Any, NoReturn

import pytest
from score_cases import jittered

from qmimic.cli import main
from qmimic.data.sample import Dataset
from qmimic.scores.detections_file import write_detections


def strict(text: str) -> Any:
    """JSON as the standard has it: without NaN and infinity."""

    def refuse(name: str) -> NoReturn:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def coco_folder(tmp_path: Path, annotations: list[dict[str, Any]]) -> Path:
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": annotations,
    }
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "instances_val.json").write_text(json.dumps(content))
    return folder


def scored(tmp_path: Path, folder: Path, results: list[dict[str, Any]], *options: str) -> int:
    path = tmp_path / "detections.json"
    path.write_text(json.dumps(results))
    return main(["score", "--data", str(folder), "--detections", str(path), *options])


def box(image: int, x: float, category: int = 1, **keys: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": [x, 0, 40, 40], **keys}


def test_last_line_is_one_json_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Two cats, of which one is found first of all: recall 1/2 at precision 1. Dogs have no boxes and are left out.
    folder = coco_folder(tmp_path, [box(1, 0), box(2, 100)])
    assert scored(tmp_path, folder, [box(1, 0, score=0.9), box(2, 300, score=0.5)], "--json") == 0
    lines = capsys.readouterr().out.splitlines()
    scores = strict(lines[-1])
    assert set(scores) == {"voc07_map50", "voc_map50", "coco_map", "per_class"}
    assert scores["voc07_map50"] == pytest.approx(6 / 11)
    assert scores["voc_map50"] == pytest.approx(1 / 2)
    assert scores["coco_map"] == pytest.approx(51 / 101)
    assert set(scores["per_class"]) == {"cat"}
    assert scores["per_class"]["cat"] == {"ap07": pytest.approx(6 / 11), "ap": pytest.approx(1 / 2), "positives": 2}
    assert "54.5" in lines[0]


def test_without_json_a_person_reads_per_cent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = coco_folder(tmp_path, [box(1, 0)])
    assert scored(tmp_path, folder, [box(1, 0, score=0.9)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["cat", "mean"]
    assert lines[1].count("100.0") == 3


@pytest.mark.parametrize("annotations", [[], [box(1, 0, iscrowd=1)], [{**box(1, 0), "bbox": [5, 5, 0, 9]}]])
@pytest.mark.parametrize("results", [[], [box(1, 0, score=0.9)]])
def test_nothing_to_find_is_zero_not_nan(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], annotations: list[Any], results: list[Any]
) -> None:
    assert scored(tmp_path, coco_folder(tmp_path, annotations), results, "--json") == 0
    out = capsys.readouterr().out
    scores = strict(out.splitlines()[-1])
    assert scores == {"voc07_map50": 0, "voc_map50": 0, "coco_map": 0, "per_class": {}}
    assert "nan" not in out.lower()


def test_no_detections_score_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert scored(tmp_path, coco_folder(tmp_path, [box(1, 0)]), [], "--json") == 0
    scores = strict(capsys.readouterr().out.splitlines()[-1])
    assert scores["voc07_map50"] == scores["voc_map50"] == scores["coco_map"] == 0
    assert scores["per_class"]["cat"]["positives"] == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--split", "test"), "has no split 'test'; its splits: val"),
        ((), "entry 0 is for the image 9"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], says: str
) -> None:
    folder = coco_folder(tmp_path, [box(1, 0)])
    assert scored(tmp_path, folder, [box(9, 0, score=0.9)], "--json", *options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("qmimic: ")
    assert says in err
    assert err.count("\n") == 1


def test_real_data(tmp_path: Path, capsys: pytest.CaptureFixture[str], bccd: Dataset) -> None:
    assert bccd.root is not None
    path = tmp_path / "detections.json"
    write_detections(path, jittered(bccd.splits["val"], len(bccd.classes), 0), bccd.classes)
    arguments = ["score", "--data", str(bccd.root), "--split", "val", "--detections", str(path), "--json"]
    assert main(arguments) == 0
    scores = strict(capsys.readouterr().out.splitlines()[-1])
    assert list(scores["per_class"]) == list(bccd.classes)
    means = [sum(own[key] for own in scores["per_class"].values()) / 3 for key in ("ap07", "ap")]
    assert [scores["voc07_map50"], scores["voc_map50"]] == pytest.approx(means)
    assert 0 < scores["coco_map"] < scores["voc_map50"] < 1
