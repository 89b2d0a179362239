"""What is missed and how it is shown, on one image worked out by hand."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from qmimic.data.sample import Dataset, Sample
from qmimic.detections import Detections
from qmimic.report import page
from qmimic.report.mistakes import confused, covered, draw_errors, lost_by_kind, worst_images
from qmimic.report.networks import Judged, Scored
from qmimic.report.panels import styles
from qmimic.scores.error_types import costs, find_errors
from qmimic.scores.matches import match
from qmimic.scores.voc import voc_ap

CLASSES = ("cat", "dog")
# In an image of 100 x 100: a small cat, a medium cat half covered by a large dog.
BOXES = np.array([(0, 0, 8, 8), (20, 20, 40, 40), (30, 20, 90, 80)], np.float32)
LABELS = np.array([0, 0, 1])


def image_of(name: str, boxes: np.ndarray, labels: np.ndarray) -> Sample:
    none = np.zeros(len(boxes), np.bool_)
    return Sample(name, None, boxes, labels, none, none, (100, 100))


def scored() -> tuple[Scored, Dataset]:
    """The medium cat is found, the dog is called a cat, the small cat is missed; a second image is faultless."""
    samples = [image_of("easy", BOXES[1:2], LABELS[1:2]), image_of("hard", BOXES, LABELS)]
    found = {
        "easy": Detections(BOXES[1:2], np.array([0.9], np.float32), np.array([0])),
        "hard": Detections(BOXES[1:], np.array([0.8, 0.7], np.float32), np.array([0, 0])),
    }
    errors = find_errors(match(samples, found, len(CLASSES)))
    own = Judged(voc_ap(samples, found, CLASSES), errors, costs(errors), 0.5, errors, None, found)
    dataset = Dataset("drawn", None, CLASSES, {"val": samples}, render=lambda _: Image.new("RGB", (100, 50), "grey"))
    return Scored(samples, CLASSES, {"student": own}), dataset


def test_what_another_box_covers() -> None:
    # The cat's right half; of the dog 10 x 20 of 60 x 60. A box of another image covers nothing.
    shares = covered(np.array([0, 0, 0, 1]), np.concatenate([BOXES, BOXES[:1]]).astype(np.float64))
    assert shares == pytest.approx([0, 0.5, 200 / 3600, 0])
    assert covered(np.zeros(0, np.int64), np.zeros((0, 4))).shape == (0,)


def test_boxes_not_found_by_size_and_crowding() -> None:
    shares = {own.name.split(":")[0]: (own.boxes, own.lost["student"]) for own in lost_by_kind(scored()[0])}
    assert shares == {
        "small": (1, 1),
        "medium": (2, 0),
        "large": (1, 1),
        "crowded": (1, 0),
        "free of other boxes": (3, 2),
    }


def test_which_class_is_taken_for_which() -> None:
    errors = scored()[0].networks["student"].shown
    table = confused(errors, CLASSES)
    assert table.classes == CLASSES
    assert table.rows == ((2, 0, 0, 1), (1, 0, 0, 1))  # as cat, as dog, as any other, not found
    assert table.pairs == (("dog", "cat", 1),)
    one = confused(errors, CLASSES, most=1)
    assert (one.classes, one.left_out) == (("cat",), 1)


def test_the_worst_images_come_first_and_those_without_errors_not_at_all() -> None:
    own, dataset = scored()
    (worst,) = worst_images(own, "student", dataset)
    assert worst.image_id == "hard"
    assert worst.lost == ("cat", "dog")
    assert worst.false == ("cat 0.70 (classification)",)
    assert worst.size == (480, 240)
    raw = base64.b64decode(worst.uri.removeprefix("data:image/jpeg;base64,"))
    with Image.open(io.BytesIO(raw)) as drawn:
        assert drawn.size == worst.size
        assert len(raw) < 60_000


@pytest.mark.parametrize("box", [(-50.0, -50.0, 500.0, 500.0), (3.0, 3.0, 3.0, 3.0), (99.0, 49.0, 100.0, 50.0)])
def test_any_box_can_be_drawn(box: tuple[float, float, float, float]) -> None:
    for colour in ("#56B4E9", "#F0E442", "#D55E00"):
        uri, size = draw_errors(Image.new("RGB", (100, 50)), [(box, colour, "a long name " * 9)])
        assert uri.startswith("data:image/jpeg;base64,")
        assert size == (480, 240)


def test_a_split_without_boxes_has_nothing_to_find() -> None:
    none = image_of("empty", np.zeros((0, 4), np.float32), np.zeros(0, np.int64))
    found = {"empty": Detections(BOXES[:1], np.array([0.9], np.float32), np.array([0]))}
    errors = find_errors(match([none], found, len(CLASSES)))
    own = Judged(voc_ap([none], found, CLASSES), errors, costs(errors), 1.0, errors, None, found)
    empty = Scored([none], CLASSES, {"student": own})
    assert [share.boxes for share in lost_by_kind(empty)] == [0] * 5
    assert confused(errors, CLASSES).rows == ((0, 0, 0, 0), (0, 0, 0, 0))
    shown = page._scored(empty, styles(["student"]), "student")
    assert shown["curves"] == []
    assert shown["error_rows"][0]["counts"]["background"] == 1
