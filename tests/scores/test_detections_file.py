"""Detection files: ids and names in any mixture, errors in one sentence, nothing lost on the way."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_cases import detections, sample

from qmimic.data.formats import load_dataset
from qmimic.data.sample import Dataset
from qmimic.errors import InputError
from qmimic.scores.detections_file import read_detections, write_detections

BOX = [10.5, 20, 30, 40]


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """A COCO folder whose ids have gaps and are not in the order of names; labels: 0 is eel, 1 is cat."""
    content = {
        "images": [{"id": 7, "file_name": "beach.jpg"}, {"id": 3, "file_name": "photos/a.jpg"}],
        "categories": [{"id": 5, "name": "cat"}, {"id": 2, "name": "eel"}],
        "annotations": [{"image_id": 7, "category_id": 5, "bbox": [0, 0, 10, 10]}],
    }
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "instances_val.json").write_text(json.dumps(content))
    return load_dataset(folder)


@pytest.fixture
def plain() -> Dataset:
    """A data set without a COCO file."""
    images = sample("beach", [(0, 0, 10, 10)], [1]), sample("a", [], []), sample("a.b", [], [])
    return Dataset("plain", None, ("cat", "eel"), {"val": images})


def written(folder: Path, content: Any) -> Path:
    path = folder / "detections.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def entry(**keys: Any) -> dict[str, Any]:
    return {"image_id": 7, "category_id": 5, "bbox": BOX, "score": 0.5} | keys


def named(**keys: Any) -> dict[str, Any]:
    return {"bbox": BOX, "score": 0.5} | keys


def test_ids_are_those_of_the_coco_file(tmp_path: Path, dataset: Dataset) -> None:
    assert dataset.classes == ("eel", "cat")
    entries = [entry(score=0.25), entry(category_id=2, score=0.75), entry(image_id=3, bbox=[0, 0, 1, 2])]
    found = read_detections(written(tmp_path, entries), dataset, "val")
    assert set(found) == {"beach", "a"}
    np.testing.assert_array_equal(found["beach"].boxes, [[10.5, 20, 40.5, 60]] * 2)
    np.testing.assert_array_equal(found["beach"].scores, [0.75, 0.25])  # falling, whatever the file's order
    np.testing.assert_array_equal(found["beach"].labels, [0, 1])
    np.testing.assert_array_equal(found["a"].boxes, [[0, 0, 1, 2]])
    assert [v.dtype for v in vars(found["a"]).values()] == [np.float32, np.float32, np.int64]


def test_names_and_ids_mix(tmp_path: Path, dataset: Dataset) -> None:
    entries = [
        named(file_name="beach.jpg", category="cat"),
        named(file_name="beach", category_id=5),
        named(file_name="/elsewhere/beach.png", category="cat"),
        named(image_id=7, category="cat"),
        named(image_id="beach", category="cat"),
        entry(area=3, segmentation=[], id=4),  # other keys of COCO's results do no harm
    ]
    found = read_detections(written(tmp_path, entries), dataset, "val")
    assert set(found) == {"beach"}
    np.testing.assert_array_equal(found["beach"].labels, [1] * 6)


def test_without_a_coco_file_ids_are_names_and_places(tmp_path: Path, plain: Dataset) -> None:
    entries = [named(image_id="beach", category_id=1), named(image_id="beach", category_id=2)]
    found = read_detections(written(tmp_path, entries), plain, "val")
    np.testing.assert_array_equal(found["beach"].labels, [0, 1])


def test_a_dot_in_a_name_is_no_suffix(tmp_path: Path, plain: Dataset) -> None:
    entries = [named(file_name=name, category="cat", score=0.5) for name in ("a.b", "a.b.jpg", "x/a.b")]
    assert set(read_detections(written(tmp_path, entries), plain, "val")) == {"a.b"}
    assert set(read_detections(written(tmp_path, [named(file_name="a.jpg", category="cat")]), plain, "val")) == {"a"}


def test_real_ids_lead_to_real_names(tmp_path: Path, bccd: Dataset) -> None:
    # The folder's classes are in order of name, its COCO copy numbers RBC 1, WBC 2, Platelets 3.
    assert bccd.root is not None
    assert bccd.classes == ("Platelets", "RBC", "WBC")
    content = json.loads((bccd.root / "instances_val.json").read_text())
    names = {category["id"]: category["name"] for category in content["categories"]}
    results = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 1} for a in content["annotations"]]
    found = read_detections(written(tmp_path, results), bccd, "val")
    truth = {one.image_id: one for one in bccd.splits["val"]}
    for image in content["images"]:
        own = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        one, labelled = found[Path(image["file_name"]).stem], truth[Path(image["file_name"]).stem]
        assert [bccd.classes[label] for label in one.labels] == [names[a["category_id"]] for a in own]
        np.testing.assert_array_equal(np.sort(one.boxes, axis=0), np.sort(labelled.boxes, axis=0))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('[{"image_id": 7, "bbox": [1, 2', "not a whole JSON file"),
        ("", "not a whole JSON file"),
        ("[" * 100_000, "not a whole JSON file"),
        ({"annotations": []}, "list"),
        ("3", "list"),
        ([entry(), 3], "entry 1"),
        ([entry(), entry(image_id=8)], "entry 1 is for the image 8, which is not in val"),
        ([entry(), named(file_name="sea.jpg", category="cat")], "entry 1 is for the image 'sea.jpg'"),
        ([entry(category_id=1)], "entry 0 has the category 1; known: eel, cat"),
        ([entry(), entry(category="dog")], "entry 1 has the category 'dog'; known: eel, cat"),
        ([entry(), entry(score=float("nan"))], "entry 1, score: needs a finite number"),
        ([entry(bbox=[0, float("inf"), 1, 1])], "entry 0, bbox.1: needs a finite number"),
        ([entry(bbox=[0, 0, 1e300, 1])], "entry 0 has a side or score beyond"),
        ([entry(score=-1e39)], "entry 0 has a side or score beyond"),
        ([entry(), entry(bbox=[5, 5, -1, 2])], "entry 1 has a negative width or height"),
        ([entry(bbox=[5, 5, 1, -2])], "entry 0 has a negative width or height"),
        ([entry(bbox=[5, 5, 1])], "entry 0, bbox"),
        ([entry(bbox="5 5 1 1")], "entry 0, bbox"),
        ([entry(score="high")], "entry 0, score"),
        ([{"image_id": 7, "category_id": 5, "score": 1}], "entry 0, bbox: is missing"),
        ([{"image_id": 7, "category_id": 5, "bbox": BOX}], "entry 0, score: is missing"),
        ([named(category_id=5)], "entry 0 names no image; give it an image_id or a file_name"),
        ([named(image_id=7)], "entry 0 names no category; give it a category_id or a category"),
    ],
)
def test_errors_are_one_sentence(tmp_path: Path, dataset: Dataset, content: Any, says: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError) as caught:
        read_detections(path, dataset, "val")
    message = str(caught.value)
    assert str(path) in message
    assert says in message
    assert "\n" not in message
    assert message.endswith(".")
    assert len(message) < 300 + len(str(path))


def test_a_missing_file_is_one_sentence(tmp_path: Path, dataset: Dataset) -> None:
    with pytest.raises(InputError, match=r"Cannot read .*nowhere\.json"):
        read_detections(tmp_path / "nowhere.json", dataset, "val")


ROWS = st.lists(
    st.tuples(
        st.tuples(*[st.floats(0, 4000, width=32)] * 4).map(
            lambda b: [*np.minimum(b[:2], b[2:]), *np.maximum(b[:2], b[2:])]
        ),
        st.floats(0, 1, width=32),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["beach", "a", "a.b"]), ROWS))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, rows: dict[str, Any]) -> None:
    images = tuple(sample(name, [], []) for name in ("a", "beach", "a.b"))
    dataset = Dataset("plain", None, ("cat", "eel"), {"val": images})
    path = tmp_path_factory.mktemp("round") / "new" / "detections.json"
    found = {name: detections(own) for name, own in rows.items()}
    write_detections(path, found, dataset.classes)
    again = read_detections(path, dataset, "val")
    assert set(again) == set(found)
    for name, own in found.items():
        np.testing.assert_array_equal(again[name].boxes, own.boxes)
        np.testing.assert_array_equal(again[name].scores, own.scores)
        np.testing.assert_array_equal(again[name].labels, own.labels)
