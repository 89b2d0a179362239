"""WIDER FACE's protocol against the same written as loops, on made images and on the benchmark's own ground truth."""

import json
from pathlib import Path

import numpy as np
import pytest

from qmimic.cli import main
from qmimic.detections import Detections
from qmimic.errors import InputError
from qmimic.scores.widerface import LEVELS, read_detections, read_truth, widerface_ap, write_detections
from wider_cases import Image, naive_ap, write_mat, write_text, write_truth


def made(seed: int, images: int = 6) -> tuple[dict[str, dict[str, Image]], dict[str, np.ndarray]]:
    """Faces, of which each level counts some, and detections on, beside and away from them."""
    chance = np.random.default_rng(seed)
    events: dict[str, dict[str, Image]] = {"0--Parade": {}, "1--Handshaking": {}}
    found = {}
    for number in range(images):
        count = int(chance.integers(0, 6)) if number else 4
        boxes = np.concatenate([chance.integers(0, 200, (count, 2)), chance.integers(5, 80, (count, 2))], 1)
        image: Image = {"boxes": boxes}
        for level, share in zip(LEVELS, (0.3, 0.6, 1.0), strict=True):
            image[level] = np.flatnonzero(chance.random(count) < share) + 1
        event = list(events)[number % 2]
        events[event][f"{number}_a"] = image
        near = np.repeat(boxes, 2, 0) + chance.normal(0, 4, (2 * count, 4))
        far = np.concatenate([chance.uniform(0, 200, (3, 2)), chance.uniform(5, 60, (3, 2))], 1)
        sides = np.concatenate([near, far])[: int(chance.integers(0, 2 * count + 4))] if number != 1 else far[:0]
        rows = np.concatenate([sides, chance.random((len(sides), 1)).round(3)], 1)
        found[f"{event}/{number}_a"] = rows[np.argsort(-rows[:, 4], kind="stable")]
    return events, found


@pytest.mark.parametrize("seed", range(8))
def test_scores_equal_the_protocol_as_loops(tmp_path: Path, seed: int) -> None:
    events, found = made(seed)
    truth = read_truth(write_truth(tmp_path / "truth", events))
    read, said = read_detections(write_text(tmp_path / "found", found), truth)
    scores = widerface_ap(truth, read)
    assert said == ()
    assert scores.detections == sum(map(len, found.values()))
    for level in LEVELS:
        assert getattr(scores, level) == pytest.approx(naive_ap(events, found, level), abs=1e-9)
    assert scores.hard > 0


def test_a_case_by_hand(tmp_path: Path) -> None:
    # Two counted faces and one that is not: a hit, a second hit on the same face, a hit on the third, a miss.
    boxes = np.array([[0, 0, 9, 9], [100, 100, 9, 9], [50, 0, 9, 9]])
    image: Image = {"boxes": boxes, **{level: np.array([1, 2]) for level in LEVELS}}
    rows = np.array(
        [[0, 0, 9, 9, 1.0], [50, 0, 9, 9, 0.9], [0, 0, 9, 8, 0.8], [200, 0, 9, 9, 0.5], [100, 100, 9, 9, 0.0]]
    )
    truth = read_truth(write_truth(tmp_path / "truth", {"e": {"i": image}}))
    scores = widerface_ap(truth, {"e/i": rows})
    # Precision 1 up to recall 1/2; at recall 1 two of four that count are right.
    assert scores.easy == scores.hard == pytest.approx(0.5 * 1 + 0.5 * 2 / 4)
    assert scores.lowest_score == 0


def test_nothing_found_is_zero(tmp_path: Path) -> None:
    events, found = made(0)
    truth = read_truth(write_truth(tmp_path / "truth", events))
    scores = widerface_ap(truth, {image_id: np.zeros((0, 5)) for image_id in found})
    assert (scores.easy, scores.medium, scores.hard, scores.detections) == (0, 0, 0, 0)


def test_own_ground_truth_equals_the_protocol_as_loops(real_data: Path) -> None:
    """The benchmark's files, with detections on some of its images: loops over all of them would take minutes."""
    truth = read_truth(real_data / "widerface-eval")
    assert len(truth) == 3226
    chance = np.random.default_rng(0)
    events: dict[str, dict[str, Image]] = {}
    found = {}
    for number, image in enumerate(truth):
        event, name = image.image_id.split("/")
        kept: Image = {level: np.flatnonzero(own) + 1 for level, own in image.counted.items()}
        events.setdefault(event, {})[name] = {"boxes": image.boxes, **kept}
        rows = np.zeros((0, 5))
        if number % 50 == 0 and len(image.boxes) < 60:
            sides = image.boxes + chance.normal(0, 0.08, image.boxes.shape) * image.boxes[:, [2, 3, 2, 3]]
            rows = np.concatenate([sides, chance.random((len(sides), 1))], 1)
        found[image.image_id] = rows[np.argsort(-rows[:, 4])]
    scores = widerface_ap(truth, found)
    for level in LEVELS:
        assert getattr(scores, level) == pytest.approx(naive_ap(events, found, level), abs=1e-9)
        assert getattr(scores, level) > 0.005


def test_the_command_ends_in_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    events, found = made(1)
    folders = write_truth(tmp_path / "truth", events), write_text(tmp_path / "found", found)
    assert main(["score", "--widerface", str(folders[0]), "--detections", str(folders[1]), "--json"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == {level: pytest.approx(naive_ap(events, found, level)) for level in LEVELS}
    assert f"lowest score {min(r[:, 4].min() for r in found.values() if len(r)):g}" in lines[1]


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    events, found = made(2)
    truth = read_truth(write_truth(tmp_path / "truth", events))
    ours = {
        image_id: Detections(
            np.concatenate([rows[:, :2], rows[:, :2] + rows[:, 2:4]], 1).astype(np.float32),
            rows[:, 4].astype(np.float32),
            np.zeros(len(rows), np.int64),
        )
        for image_id, rows in found.items()
    }
    write_detections(tmp_path / "found", ours)
    read, _ = read_detections(tmp_path / "found", truth)
    for image_id, rows in found.items():
        np.testing.assert_allclose(read[image_id], rows, atol=0.011)


def test_unsorted_and_repeated_lines_are_said_so(tmp_path: Path) -> None:
    events, found = made(3)
    truth = read_truth(write_truth(tmp_path / "truth", events))
    expected = widerface_ap(truth, found)
    shuffled = {image_id: rows[::-1] for image_id, rows in found.items()}
    read, said = read_detections(write_text(tmp_path / "a", shuffled), truth)
    assert widerface_ap(truth, read) == expected
    assert len(said) == 1
    assert "not in falling order" in said[0]
    twice = {image_id: np.repeat(rows, 2, 0) for image_id, rows in found.items()}
    read, said = read_detections(write_text(tmp_path / "b", twice), truth)
    assert f"{expected.detections} lines repeat" in said[0]
    assert widerface_ap(truth, read).hard == pytest.approx(naive_ap(events, twice, "hard"))


def refusal(folder: Path, events: dict[str, dict[str, Image]], truth_folder: Path) -> str:
    truth = read_truth(write_truth(truth_folder, events))
    with pytest.raises(InputError) as caught:
        read_detections(folder, truth)
    return str(caught.value)


def test_bad_detections_are_refused(tmp_path: Path) -> None:
    events, found = made(4)
    name = "0--Parade/0_a"
    truth = tmp_path / "truth"
    assert "There is no folder" in refusal(tmp_path / "none", events, truth)
    folder = write_text(tmp_path / "found", found)
    good = (folder / f"{name}.txt").read_text()
    for text, part in (
        ("", "the number of detections"),
        (f"{name}\n2\n1 2 3 4 .5\n", "that many lines"),
        (f"{name}\n1\n1 2 3 4\n", "five numbers"),
        (f"{name}\n1\n1 2 3 4 5 # 6\n", "five numbers"),
        (f"{name}\n2\n1 2 3 4 5\n1 2 3\n", "five numbers"),
        (f"{name}\n1\n1 2 three 4 5\n", "five numbers"),
        (f"{name}\n1\n1 2 3 4 nan\n", "none of them NaN"),
        (f"{name}\n1\n1 2 inf 4 .5\n", "none of them NaN"),
    ):
        (folder / f"{name}.txt").write_text(text)
        assert part in refusal(folder, events, truth)
    (folder / f"{name}.txt").write_text(good)
    (folder / "0--Parade" / "who.txt").write_text("who\n0\n")
    assert "belongs to no image" in refusal(folder, events, truth)
    (folder / "0--Parade" / "who.txt").unlink()
    (folder / f"{name}.txt").unlink()
    assert f"lacks {name}.txt" in refusal(folder, events, truth)
    for path in (folder / "1--Handshaking").iterdir():
        path.unlink()
    (folder / "1--Handshaking").rmdir()
    assert "lacks the event folder 1--Handshaking" in refusal(folder, events, truth)


def test_bad_ground_truth_is_refused(tmp_path: Path) -> None:
    events, _ = made(5)
    folder = write_truth(tmp_path, events)
    for name in ("wider_face_val.mat", "wider_hard_val.mat"):
        good = (folder / name).read_bytes()
        for content, part in ((good[: len(good) // 2], "cut short"), (b"", "cut short"), (b"MATLAB" * 99, "cut short")):
            (folder / name).write_bytes(content)
            with pytest.raises(InputError, match=part):
                read_truth(folder)
        (folder / name).unlink()
        with pytest.raises(InputError, match="There is no"):
            read_truth(folder)
        (folder / name).write_bytes(good)
    write_mat(folder / "wider_easy_val.mat", events)  # without a list of counted faces
    with pytest.raises(InputError, match="does not say which faces"):
        read_truth(folder)
    write_mat(folder / "wider_easy_val.mat", dict(reversed(events.items())), "easy")
    with pytest.raises(InputError, match="one release"):
        read_truth(folder)
