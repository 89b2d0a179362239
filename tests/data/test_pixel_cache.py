"""Kept images are the decoded ones, up to the limit."""

from pathlib import Path

import numpy as np

from qmimic.data.letterbox import Letterbox
from qmimic.data.pixel_cache import PixelCache
from qmimic.data.records import RecordFile

SIZE = (32, 48)
PLACED = Letterbox(90_000, 3, (48, 1))


def test_images_within_the_limit_are_kept(tmp_path: Path) -> None:
    limit = RecordFile.size(2, 3 * 32 * 48 + 16) + 5
    cache = PixelCache(tmp_path / "pixels.bin", 4, SIZE, limit)
    images = np.random.default_rng(0).integers(0, 256, (4, *SIZE, 3), dtype=np.uint8)
    for index, image in enumerate(images):
        assert cache.read(index) is None
        cache.write(index, image, PLACED)
    assert (tmp_path / "pixels.bin").stat().st_size <= limit
    for own in (cache, PixelCache(tmp_path / "pixels.bin", 4, SIZE, limit)):
        assert own.read(2) is None
        for index in (0, 1):
            kept = own.read(index)
            assert kept is not None
            assert np.array_equal(kept[0], images[index])
            assert kept[1] == PLACED


def test_without_room_for_one_image_there_is_no_file(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path / "pixels.bin", 4, SIZE, 4000)
    cache.write(0, np.zeros((*SIZE, 3), np.uint8), PLACED)
    assert cache.read(0) is None
    assert list(tmp_path.iterdir()) == []
