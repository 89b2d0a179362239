"""The embedded set: drawn digits on cluttered grounds, made on the fly from a seed; no files.

Hard enough that a very tiny student falls behind its teacher, easy enough that both learn in minutes.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from qmimic.data.sample import Dataset, Sample

NAME = "synthetic:digits"
DIGITS = "1247"
LETTERS = "AEFHKLMNPTVXYZ"  # distractors
SIDES = (24, 52)  # height of a glyph, pixels
TILT = 15.0  # largest rotation, degrees
CONTRAST = (70, 160)  # difference of a glyph to its ground, grey levels
STROKES, LETTERS_DRAWN, NOISE = 6, 1, 8.0


def digits(train: int = 3000, val: int = 500, select: int = 500, size: int = 128, seed: int = 0) -> Dataset:
    """The embedded set; image k of a split depends on seed, split and k alone.

    Args:
        train, val: numbers of images.
        select: number of images to choose settings on, so that `val` stays unseen by such choices.
        size: height and width, pixels.
        seed: of everything.
    """
    splits = {}
    for number, (split, count) in enumerate((("train", train), ("val", val), ("select", select))):
        splits[split] = tuple(_sample(f"{split}-{seed}-{number}-{k}", size) for k in range(count))
    return Dataset(NAME, None, tuple(DIGITS), splits, render=_render)


def _random(image_id: str, purpose: int) -> np.random.Generator:
    _, seed, split, k = image_id.split("-")
    return np.random.default_rng((int(seed), int(split), int(k), purpose))


def _objects(image_id: str, size: int) -> list[tuple[int, str, int, int, int, float]]:
    """Label, glyph, side, x, y and tilt of an image's digits; they do not overlap."""
    random = _random(image_id, 0)
    placed: list[tuple[int, str, int, int, int, float]] = []
    taken: list[tuple[int, int, int, int]] = []
    wanted = int(random.integers(1, 5))
    for _ in range(30):
        if len(placed) == wanted:
            break
        label = int(random.integers(len(DIGITS)))
        side, tilt = int(random.integers(*SIDES)), round(float(random.uniform(-TILT, TILT)))
        width, height = _glyph(DIGITS[label], side, tilt).size
        x, y = int(random.integers(0, size - width)), int(random.integers(0, size - height))
        if any(x < b[2] and b[0] < x + width and y < b[3] and b[1] < y + height for b in taken):
            continue
        taken.append((x, y, x + width, y + height))
        placed.append((label, DIGITS[label], side, x, y, tilt))
    return placed


@lru_cache(maxsize=8192)
def _glyph(text: str, side: int, tilt: float) -> Image.Image:
    """A glyph's mask, cut tightly: its size is its box."""
    font = ImageFont.load_default(side * 1.3)
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (int(right - left) + 4, int(bottom - top) + 4))
    ImageDraw.Draw(mask).text((2 - left, 2 - top), text, fill=255, font=font)
    mask = mask.rotate(tilt, Image.Resampling.BICUBIC, expand=True)
    return mask.crop(mask.point(lambda v: 255 * (v > 64)).getbbox())


def _sample(image_id: str, size: int) -> Sample:
    objects = _objects(image_id, size)
    boxes = []
    for _, text, side, x, y, tilt in objects:
        width, height = _glyph(text, side, tilt).size
        boxes.append((x, y, x + width, y + height))
    none = np.zeros(len(boxes), np.bool_)
    labels = np.array([thing[0] for thing in objects], np.int64)
    return Sample(image_id, None, np.array(boxes, np.float32).reshape(-1, 4), labels, none, none, (size, size))


def _render(sample: Sample) -> Image.Image:
    assert sample.size is not None
    size, random = sample.size[0], _random(sample.image_id, 1)
    coarse = random.integers(70, 186, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)
    canvas = ImageDraw.Draw(image)
    for _ in range(STROKES):
        ends = [(int(a), int(b)) for a, b in random.integers(0, size, (2, 2))]
        colour = tuple(int(c) for c in random.integers(30, 226, 3))
        canvas.line(ends, fill=colour, width=int(random.integers(1, 4)))
    for _ in range(LETTERS_DRAWN):
        letter = LETTERS[int(random.integers(len(LETTERS)))]
        mask = _glyph(letter, int(random.integers(*SIDES)), round(float(random.uniform(-TILT, TILT))))
        corner = (int(random.integers(0, size - mask.width // 2)), int(random.integers(0, size - mask.height // 2)))
        image.paste(_ink(image, corner, random), corner, mask)
    for _, text, side, x, y, tilt in _objects(sample.image_id, size):
        image.paste(_ink(image, (x, y), random), (x, y), _glyph(text, side, tilt))
    if random.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(float(random.uniform(0.3, 1.0))))
    pixels = np.asarray(image, np.float32) + random.normal(0, NOISE, (size, size, 3))
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))


def _ink(image: Image.Image, at: tuple[int, int], random: np.random.Generator) -> tuple[int, int, int]:
    """A colour that differs from the ground by the drawn contrast, one way for all three channels."""
    ground = np.asarray(image.getpixel(at), np.float32)
    step = random.uniform(*CONTRAST) * (1 if ground.mean() < 128 else -1)
    red, green, blue = np.clip(ground + step + random.uniform(-25, 25, 3), 0, 255).astype(int).tolist()
    return red, green, blue
