"""Random views: boxes move with their pixels."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from qmimic.config import AugmentConfig
from qmimic.data.augment import augment, exact_views, ways_to_flip
from qmimic.data.letterbox import FILL
from qmimic.data.targets import IGNORED, PADDING, Targets

HEIGHT, WIDTH = 96, 128
OFF = AugmentConfig(flip=0, flip_vertical=0, scale=(1, 1), shift=0, colour=0)
BOX = (40.0, 30.0, 80.0, 50.0)


def view(images: Tensor, targets: Targets, config: AugmentConfig, seed: int = 0) -> tuple[Tensor, Targets]:
    seen = augment(images, targets, config, torch.Generator().manual_seed(seed))
    return seen.images, seen.targets


def rectangles(boxes: list[tuple[float, ...]], label: int = 0) -> tuple[Tensor, Targets]:
    """Dark images with one white rectangle each, and their targets with a place of padding."""
    images = torch.full((len(boxes), 3, HEIGHT, WIDTH), 20, dtype=torch.uint8)
    targets = Targets(torch.zeros(len(boxes), 2, 4), torch.full((len(boxes), 2), PADDING))
    for row, (x1, y1, x2, y2) in enumerate(boxes):
        images[row, :, int(y1) : int(y2), int(x1) : int(x2)] = 255
        targets.boxes[row, 0] = torch.tensor([x1, y1, x2, y2])
        targets.labels[row, 0] = label
    return images, targets


def bright(image: Tensor) -> list[float] | None:
    """The box around what is nearer to white than to the ground; None if nothing is."""
    seen = image.float().mean(0).numpy() > 190
    if not seen.any():
        return None
    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


@pytest.mark.parametrize(
    "changes",
    [
        {"flip": 1},
        {"flip_vertical": 1},
        {"flip": 0.5, "flip_vertical": 0.5},
        {"scale": (0.5, 0.5)},
        {"scale": (2, 2)},
        {"shift": 0.5},
        {"flip": 0.5, "flip_vertical": 0.5, "scale": (0.5, 2), "shift": 0.3},
    ],
    ids=str,
)
def test_boxes_move_with_their_pixels(changes: dict[str, object]) -> None:
    images, targets = rectangles([BOX] * 48)
    pixels, moved = view(images, targets, OFF.model_copy(update=changes))
    assert pixels.shape == images.shape
    visible = 0
    for row in range(len(images)):
        found = bright(pixels[row])
        box, label = moved.boxes[row, 0], int(moved.labels[row, 0])
        if label == IGNORED:
            continue
        visible += 1
        assert found is not None
        assert np.abs(np.array(found) - box.numpy()).max() <= 1.01
        assert label == 0
    assert visible > 10
    assert (moved.labels[:, 1] == PADDING).all()


@pytest.mark.parametrize(("flip", "expected"), [("flip", (48, 30, 88, 50)), ("flip_vertical", (40, 46, 80, 66))])
def test_flips_are_exact(flip: str, expected: tuple[float, ...]) -> None:
    images, targets = rectangles([BOX])
    pixels, moved = view(images, targets, OFF.model_copy(update={flip: 1.0}))
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, images.flip(3 if flip == "flip" else 2))
    assert moved.boxes[0, 0].tolist() == list(expected)


def test_flips_through_the_affine_map_are_the_same_flips() -> None:
    images = torch.randint(0, 256, (4, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    _, targets = rectangles([BOX] * 4)
    both = OFF.model_copy(update={"flip": 1.0, "flip_vertical": 1.0})
    pixels, moved = view(images, targets, both)
    # A shift too small to be seen leads through the other path.
    mapped, others = view(images, targets, both.model_copy(update={"shift": 1e-9}))
    assert torch.allclose(mapped, pixels.float(), atol=0.1)
    assert torch.allclose(others.boxes, moved.boxes, atol=1e-3)


def test_nothing_changes_when_all_is_switched_off() -> None:
    images = torch.randint(0, 256, (3, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    _, targets = rectangles([BOX] * 3)
    pixels, same = view(images, targets, OFF)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels, images)
    assert torch.equal(same.boxes, targets.boxes)
    assert torch.equal(same.labels, targets.labels)


def test_a_view_depends_on_the_generator_alone() -> None:
    images, targets = rectangles([BOX] * 4)
    before = images.clone()
    first, boxes = view(images, targets, AugmentConfig(), seed=1)
    again, same = view(images, targets, AugmentConfig(), seed=1)
    other, _ = view(images, targets, AugmentConfig(), seed=2)
    assert torch.equal(first, again)
    assert torch.equal(boxes.boxes, same.boxes)
    assert not torch.equal(first, other)
    assert torch.equal(images, before)  # cached images stay what they are
    assert targets.boxes[0, 0].tolist() == list(BOX)


def test_boxes_that_left_the_view_are_ignored_and_those_that_stay_are_not() -> None:
    # Zoomed twice about the centre, the middle half stays: x 32..96, y 24..72.
    stays, most, little, gone = (48, 36, 80, 60), (20, 30, 60, 60), (2, 30, 40, 60), (0, 0, 20, 20)
    images, targets = rectangles([stays, most, little, gone], label=1)
    _, moved = view(images, targets, OFF.model_copy(update={"scale": (2, 2)}))
    assert moved.labels[:, 0].tolist() == [1, 1, IGNORED, IGNORED]  # 100 %, 70 %, 21 % and nothing are left
    assert moved.boxes[0, 0].tolist() == [32, 24, 96, 72]
    assert moved.boxes[1, 0].tolist() == [0, 12, 56, 72]
    assert (moved.boxes >= 0).all()
    assert (moved.boxes <= torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])).all()


def test_ignored_boxes_move_along_and_stay_ignored() -> None:
    images, targets = rectangles([BOX], label=IGNORED)
    _, moved = view(images, targets, OFF.model_copy(update={"flip": 1.0}))
    assert moved.labels.tolist() == [[IGNORED, PADDING]]
    assert moved.boxes[0, 0].tolist() == [48, 30, 88, 50]


def test_what_a_view_shows_beyond_the_image_is_the_padding() -> None:
    images = torch.full((1, 3, HEIGHT, WIDTH), 255, dtype=torch.uint8)
    _, targets = rectangles([BOX])
    pixels, _ = view(images, targets, OFF.model_copy(update={"scale": (0.5, 0.5)}))
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor(FILL, dtype=torch.float32))
    assert torch.allclose(pixels[0, :, HEIGHT // 2, WIDTH // 2], torch.tensor(255.0))


def test_colours_change_within_bounds_and_boxes_do_not() -> None:
    images = torch.randint(0, 256, (16, 3, HEIGHT, WIDTH), dtype=torch.uint8)
    _, targets = rectangles([BOX] * 16)
    pixels, same = view(images, targets, OFF.model_copy(update={"colour": 0.3}))
    assert pixels.min() >= 0
    assert pixels.max() <= 255
    assert torch.equal(same.boxes, targets.boxes)
    means = pixels.mean((1, 2, 3)) / images.float().mean((1, 2, 3))
    assert means.min() < 0.9
    assert means.max() > 1.1
    assert ((means > 0.65) & (means < 1.35)).all()


def test_grey_stays_grey_when_only_colours_change() -> None:
    images = torch.randint(0, 256, (4, 1, HEIGHT, WIDTH), dtype=torch.uint8).expand(4, 3, HEIGHT, WIDTH)
    _, targets = rectangles([BOX] * 4)
    pixels, _ = view(images, targets, OFF.model_copy(update={"colour": 1.0}))
    assert torch.allclose(pixels[:, 0], pixels[:, 1], atol=1e-2)
    assert torch.allclose(pixels[:, 0], pixels[:, 2], atol=1e-2)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"flip": 0.5},
        {"flip_vertical": 0.5},
        {"flip": 0.5, "flip_vertical": 0.5},
        {"flip": 1.0},
        {"transpose": 0.5},
        {"flip": 0.5, "flip_vertical": 0.5, "transpose": 0.5},
    ],
)
def test_flips_make_few_views_and_each_says_which_it_is(changes: dict[str, float]) -> None:
    config = OFF.model_copy(update=changes)
    images = torch.randint(0, 256, (1, 3, 12, 12), dtype=torch.uint8).expand(64, -1, -1, -1)
    targets = Targets(torch.zeros(64, 1, 4), torch.full((64, 1), PADDING))
    seen = augment(images, targets, config, torch.Generator().manual_seed(0))
    assert seen.kinds is not None
    count = exact_views(config)
    assert count is not None
    assert int(seen.kinds.max()) < count
    by_kind = {kind: {image.numpy().tobytes() for image in seen.images[seen.kinds == kind]} for kind in range(count)}
    assert all(len(pictures) <= 1 for pictures in by_kind.values())  # one kind is one picture
    drawn = [picture for pictures in by_kind.values() for picture in pictures]
    assert len(set(drawn)) == len(drawn)
    for more in ({"scale": (0.9, 1.1)}, {"mosaic": 0.5}, {"shift": 0.1}, {"colour": 0.1}):
        other = config.model_copy(update=more)
        assert exact_views(other) is None
        assert augment(images, targets, other, torch.Generator().manual_seed(0)).kinds is None


@pytest.mark.parametrize(
    "changes",
    [
        {"transpose": 1},
        {"transpose": 0.5, "flip": 0.5, "flip_vertical": 0.5},
        {"mosaic": 1},
        {"mosaic": 0.5, "transpose": 0.5, "flip": 0.5, "scale": (0.8, 2.0), "shift": 0.2},
    ],
    ids=str,
)
def test_boxes_of_square_pictures_move_with_their_pixels(changes: dict[str, object]) -> None:
    """Every box that counts lies on a rectangle of its own grey, and what is not in a box is ground."""
    side, count = 128, 16
    images = torch.full((count, 3, side, side), 20, dtype=torch.uint8)
    targets = Targets(torch.zeros(count, 2, 4), torch.full((count, 2), PADDING))
    for row in range(count):
        x, y = 20 + 4 * (row % 5), 30 + 2 * row
        images[row, :, y : y + 24, x : x + 48] = 140 + 7 * row
        targets.boxes[row, 0], targets.labels[row, 0] = torch.tensor([x, y, x + 48, y + 24]), row
    pixels, moved = view(images, targets, OFF.model_copy(update=changes))
    seen = 0
    for image, boxes, labels in zip(pixels.float().mean(1), moved.boxes, moved.labels, strict=True):
        for box, label in zip(boxes.tolist(), labels.tolist(), strict=True):
            if label < 0:
                continue
            found = (image - (140 + 7 * label)).abs() < 3
            x1, y1, x2, y2 = (round(value) for value in box)
            assert found[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2].all()
            if "scale" not in changes:  # else edges are blurred, and their greys are other rectangles'
                rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
                near = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                assert np.abs(np.array(near) - box).max() <= 1
            seen += 1
    assert seen >= count


def test_a_mosaic_shows_a_picture_with_the_three_that_follow() -> None:
    images = torch.arange(1, 6, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 64, 64).contiguous()
    targets = Targets(torch.tensor([0.0, 0, 64, 64]).repeat(5, 1, 1), torch.arange(5)[:, None])
    pixels, moved = view(images, targets, OFF.model_copy(update={"mosaic": 1.0}))
    assert pixels.dtype == torch.uint8
    assert pixels[3, 0, ::32, ::32].tolist() == [[4, 5], [1, 2]]
    assert moved.labels[3].tolist() == [3, 4, 0, 1]
    assert moved.boxes[3].tolist() == [[0, 0, 32, 32], [32, 0, 64, 32], [0, 32, 32, 64], [32, 32, 64, 64]]


def test_the_ways_to_flip_tell_views_apart_that_are_as_many() -> None:
    """A bank numbers views by these: as many others must not be taken for them."""
    ways = [
        OFF.model_copy(update={"flip": flip, "flip_vertical": down, "transpose": across})
        for flip, down, across in itertools.product((0, 0.5), repeat=3)
    ]
    assert len({ways_to_flip(one) for one in ways}) == len(ways)
    for one in ways:
        assert exact_views(one) == 2 ** sum(ways_to_flip(one))


def test_a_network_computed_in_bf16_sees_the_same_views() -> None:
    config = AugmentConfig(flip=0.5, scale=(0.5, 2.0), shift=0.2, colour=0.4, mosaic=0.5)
    images = torch.randint(0, 256, (4, 3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    targets = Targets(torch.rand(4, 2, 4), torch.zeros(4, 2, dtype=torch.long))
    views = []
    for bf16 in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            views.append(augment(images, targets, config, torch.Generator().manual_seed(1)))
    assert views[1].images.dtype == torch.float32
    assert torch.equal(views[0].images, views[1].images)
    assert torch.equal(views[0].targets.boxes, views[1].targets.boxes)
