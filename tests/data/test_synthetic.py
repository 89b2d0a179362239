"""The embedded digits: drawn from a seed, boxes tight around the glyphs."""

import numpy as np
import pytest
from PIL import Image

from qmimic.data import synthetic
from qmimic.data.formats import load_dataset, usable
from qmimic.data.sample import Dataset


def pixels(dataset: Dataset, split: str, k: int) -> np.ndarray:
    return np.asarray(dataset.load(dataset.splits[split][k]))


def test_the_same_seed_draws_the_same_set() -> None:
    a, b = synthetic.digits(6, 3), synthetic.digits(4, 3)
    for split, count in (("train", 4), ("val", 3)):
        for k in range(count):
            one, two = a.splits[split][k], b.splits[split][k]
            assert one.image_id == two.image_id
            assert np.array_equal(one.boxes, two.boxes)
            assert np.array_equal(one.labels, two.labels)
            assert np.array_equal(pixels(a, split, k), pixels(b, split, k))


def test_images_differ_by_seed_split_and_number() -> None:
    dataset, other = synthetic.digits(4, 4), synthetic.digits(4, 4, seed=1)
    drawn = [pixels(d, s, k).tobytes() for d in (dataset, other) for s in ("train", "val") for k in range(4)]
    assert len(set(drawn)) == 16


def test_the_named_set_has_four_classes_and_boxes_in_the_image() -> None:
    dataset = load_dataset("synthetic:digits")
    assert dataset.classes == ("1", "2", "4", "7")
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {
        "train": 3000,
        "val": 500,
        "select": 500,
    }
    for samples in dataset.splits.values():
        labels = np.concatenate([sample.labels for sample in samples])
        share = np.bincount(labels, minlength=4) / len(labels)
        assert len(share) == 4
        assert (np.abs(share - 0.25) < 0.05).all()
        boxes = np.concatenate([sample.boxes for sample in samples])
        assert boxes.dtype == np.float32
        assert boxes.min() >= 0
        assert boxes.max() <= 128
        sides = boxes[:, 2:] - boxes[:, :2]
        assert sides.min() >= 6
        assert all(1 <= len(sample.boxes) <= 4 for sample in samples)
    for split, samples in usable(dataset, drop_bad=False).splits.items():
        for one, other in zip(samples, dataset.splits[split], strict=True):
            assert (one.image_id, one.image, one.size) == (other.image_id, other.image, other.size)
            assert np.array_equal(one.boxes, other.boxes)


def test_boxes_do_not_overlap() -> None:
    for sample in synthetic.digits(200, 0).splits["train"]:
        for i, a in enumerate(sample.boxes):
            for b in sample.boxes[:i]:
                assert min(a[2], b[2]) <= max(a[0], b[0]) or min(a[3], b[3]) <= max(a[1], b[1])


def test_boxes_are_tight_around_the_drawn_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    for clutter in ("STROKES", "LETTERS_DRAWN", "NOISE"):
        monkeypatch.setattr(synthetic, clutter, 0)
    dataset = synthetic.digits(30, 0)
    samples = dataset.splits["train"]
    shown = [np.asarray(dataset.load(sample), np.int16) for sample in samples]
    monkeypatch.setattr(synthetic, "_objects", lambda image_id, size: [])
    grounds = [np.asarray(dataset.load(sample), np.int16) for sample in samples]
    for sample, image, ground in zip(samples, shown, grounds, strict=True):
        changed = np.abs(image - ground).max(2) > 12
        outside = changed.copy()
        for x1, y1, x2, y2 in sample.boxes.astype(int).tolist():
            near = changed[max(0, y1 - 3) : y2 + 3, max(0, x1 - 3) : x2 + 3]
            rows, columns = np.flatnonzero(near.any(1)), np.flatnonzero(near.any(0))
            found = np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
            found += np.array([max(0, x1 - 3), max(0, y1 - 3)] * 2)
            assert np.abs(found - [x1, y1, x2, y2]).max() <= 3
            outside[max(0, y1 - 3) : y2 + 3, max(0, x1 - 3) : x2 + 3] = False
        assert not outside.any()


def test_another_size() -> None:
    dataset = synthetic.digits(5, 0, size=256)
    image = dataset.load(dataset.splits["train"][0])
    assert isinstance(image, Image.Image)
    assert (image.size, image.mode) == ((256, 256), "RGB")
    assert dataset.splits["train"][0].size == (256, 256)
