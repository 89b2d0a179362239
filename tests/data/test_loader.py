"""Batches: a function of seed and step alone, every image once an epoch, labels on their pixels."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from folders import picture, sample_of
from qmimic.data.letterbox import letterbox
from qmimic.data.loader import Batch, Loader
from qmimic.data.pixel_cache import PixelCache
from qmimic.data.records import RecordFile
from qmimic.data.sample import Dataset
from qmimic.data.targets import IGNORED, PADDING
from qmimic.errors import InputError

COUNT = 7


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Seven images of several sizes; image k has k % 4 boxes."""
    samples = []
    for k in range(COUNT):
        image = picture(tmp_path / f"{k}.png", (40 + 13 * k, 60 - 5 * k), k)
        samples.append(sample_of(image, [(j, j, j + 20, j + 10) for j in range(k % 4)], [j % 2 for j in range(k % 4)]))
    return Dataset("seven", tmp_path, ("cat", "dog"), {"train": tuple(samples)})


def names(batch: Batch) -> list[str]:
    return [sample.image_id for sample in batch.samples]


def same(a: Batch, b: Batch) -> bool:
    pairs = ((a.images, b.images), (a.targets.boxes, b.targets.boxes), (a.targets.labels, b.targets.labels))
    return names(a) == names(b) and a.placed == b.placed and all(torch.equal(x, y) for x, y in pairs)


def test_a_batch_depends_on_seed_and_step_alone(dataset: Dataset, tmp_path: Path) -> None:
    whole = list(Loader(dataset, "train", (32, 48), 3).steps(seed=5, first=0, last=9))
    for first, last, kept in ((0, 9, COUNT), (4, 7, 0), (8, 9, 2)):
        limit = kept * RecordFile.size(1, 3 * 32 * 48 + 16)
        cache = PixelCache(tmp_path / f"{kept}.bin", COUNT, (32, 48), limit)
        part = list(Loader(dataset, "train", (32, 48), 3, cache).steps(seed=5, first=first, last=last))
        assert len(part) == last - first
        assert all(same(a, b) for a, b in zip(part, whole[first:last], strict=True))
    other = Loader(dataset, "train", (32, 48), 3).steps(seed=6, first=0, last=9)
    assert [names(batch) for batch in other] != [names(batch) for batch in whole]


def test_processes_share_a_batch(dataset: Dataset) -> None:
    loader = Loader(dataset, "train", (32, 32), 5)
    whole = list(loader.steps(seed=2, first=1, last=4))
    parts = [list(loader.steps(seed=2, first=1, last=4, rows=slice(rank, None, 2))) for rank in range(2)]
    for step, batch in enumerate(whole):
        for rank in range(2):
            assert names(parts[rank][step]) == names(batch)[rank::2]
            assert torch.equal(parts[rank][step].targets.boxes, batch.targets.boxes[rank::2])


@pytest.mark.parametrize("batch_size", [1, 3, 7, 10])
def test_every_image_comes_once_an_epoch(dataset: Dataset, batch_size: int) -> None:
    batches = list(Loader(dataset, "train", (32, 32), batch_size).steps(seed=1, first=0, last=COUNT))
    assert all(len(batch.images) == batch_size for batch in batches)
    order = [name for batch in batches for name in names(batch)]
    epochs = [order[at : at + COUNT] for at in range(0, len(order), COUNT)]
    everything = Counter(map(str, range(COUNT)))
    assert all(Counter(epoch) == everything for epoch in epochs)
    if len(epochs) > 1:
        assert epochs[0] != epochs[1]


def test_once_gives_every_image_in_order(dataset: Dataset, tmp_path: Path) -> None:
    batches = list(Loader(dataset, "train", (32, 32), 3).once())
    assert [names(batch) for batch in batches] == [["0", "1", "2"], ["3", "4", "5"], ["6"]]
    cache = PixelCache(tmp_path / "pixels.bin", COUNT, (32, 32), 1 << 20)
    one = list(Loader(dataset, "train", (32, 32), 3, cache).with_batch_size(1).once())
    assert [names(batch) for batch in one] == [[str(k)] for k in range(COUNT)]
    assert torch.equal(torch.cat([batch.images for batch in one]), torch.cat([batch.images for batch in batches]))


def test_images_and_boxes_are_letterboxed_alike(dataset: Dataset) -> None:
    (batch,) = Loader(dataset, "train", (32, 48), COUNT).once()
    assert batch.images.shape == (COUNT, 3, 32, 48)
    assert batch.images.dtype == torch.uint8
    assert batch.targets.boxes.shape == (COUNT, 4, 4)  # three boxes at most, so four places
    assert batch.targets.labels.dtype == torch.int64
    for row, sample in enumerate(batch.samples):
        assert sample.image is not None
        with Image.open(sample.image) as image:
            pixels, placed = letterbox(image.convert("RGB"), (32, 48))
        assert np.array_equal(batch.images[row].permute(1, 2, 0).numpy(), pixels)
        count = len(sample.boxes)
        assert np.allclose(batch.targets.boxes[row, :count].numpy(), sample.boxes * placed.scale)
        assert batch.targets.labels[row].tolist() == [*sample.labels.tolist(), *[PADDING] * (4 - count)]


def test_difficult_and_crowd_boxes_are_ignored(dataset: Dataset) -> None:
    sample = dataset.splits["train"][3]
    flagged = replace(sample, difficult=np.array([True, False, False]), crowd=np.array([False, False, True]))
    (batch,) = Loader(replace(dataset, splits={"train": (flagged,)}), "train", (32, 32), 1).once()
    assert batch.targets.labels.tolist() == [[IGNORED, 1, IGNORED, PADDING]]


def test_a_split_without_boxes_has_batches_of_one_shape(dataset: Dataset) -> None:
    empty = replace(dataset, splits={"train": dataset.splits["train"][:1]})
    (batch,) = Loader(empty, "train", (32, 32), 2).steps(seed=0, first=0, last=1)
    assert batch.targets.boxes.shape == (2, 1, 4)
    assert (batch.targets.labels == PADDING).all()


def test_a_broken_image_ends_in_its_sentence(dataset: Dataset) -> None:
    image = dataset.splits["train"][2].image
    assert image is not None
    image.write_bytes(b"")
    with pytest.raises(InputError, match=r"2\.png"):
        list(Loader(dataset, "train", (32, 32), 1).once())


def test_a_reader_may_stop_early(dataset: Dataset) -> None:
    batches = Loader(dataset, "train", (32, 32), 1).steps(seed=0, first=0, last=10**6)
    assert names(next(batches)) != []
    batches.close()
