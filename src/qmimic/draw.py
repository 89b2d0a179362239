"""Detections drawn into pictures."""

import importlib.util
import unicodedata
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, features

from qmimic.detections import Detections
from qmimic.errors import Notice

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
CELL = 320
SMALLEST = 8  # height of letters, pixels
NO_LETTER = "\uffff"  # no font has it
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw(image: Image.Image, found: Detections, classes: Sequence[str], min_score: float) -> Image.Image:
    """A copy of an RGB picture with the detections of at least `min_score`, the best on top.

    The frame lies inside the box: its outermost pixels are the first and the last that the box covers. Labels stay
    inside the picture. If no available font can show a class's name, its number is drawn and a `Notice` says so.
    """
    drawn = image.copy()
    canvas = ImageDraw.Draw(drawn)
    unit = max(1, round(max(image.size) / 320))
    for box, score, label in sorted(zip(found.boxes, found.scores, found.labels, strict=True), key=lambda d: d[1]):
        if score < min_score:
            continue
        colour = COLOURS[int(label) % len(COLOURS)]
        x1, y1, x2, y2 = (float(side) for side in box)
        # Pillow paints the far corner too, but our boxes end before it.
        canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=unit)
        _label(
            canvas, image.size, (x1, y1), (classes[int(label)], int(label)), f"{score:.2f}", max(9, 9 * unit), colour
        )
    return drawn


def _label(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[float, float],
    named: tuple[str, int],
    score: str,
    height: int,
    colour: str,
) -> None:
    """Write a class and a score above a corner, moved and shrunk to fit the picture; nothing if it does not fit."""
    name, number = named
    shown = name if _font_of(name, height) else _as_number(name, number)
    for text, tall in (
        *((f"{shown} {score}", tall) for tall in range(height, SMALLEST - 1, -1)),
        (f"#{number}", SMALLEST),
    ):
        font = _font_of(text, tall)
        assert font is not None, "digits are in every font"
        left, _, right, bottom = canvas.textbbox((0, 0), text, font=font)
        wide, high = right - left + 4, bottom + 2
        if wide <= size[0] and high <= size[1]:
            x = min(max(0.0, corner[0]), size[0] - wide)
            y = min(max(0.0, corner[1] - high), size[1] - high)
            canvas.rectangle((x, y, x + wide - 1, y + high - 1), fill=colour)
            canvas.text((x + 2 - left, y), text, fill="white", font=font)
            return


@cache
def _as_number(name: str, number: int) -> str:
    warnings.warn(
        f"No available font has the letters of the class {name}; it is drawn as #{number}.", Notice, stacklevel=2
    )
    return f"#{number}"


@cache
def _font_of(text: str, height: int) -> Font | None:
    """A font that has all letters of a text, or None. Pillow has one, and so has matplotlib, if it is installed."""
    right_to_left = any(unicodedata.bidirectional(letter) in ("R", "AL") for letter in text)
    if right_to_left and not features.check("raqm"):
        return None  # without it, letters are not joined and are in the wrong order
    for font in _fonts(height):
        missing = bytes(font.getmask(NO_LETTER))
        if all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in text):
            return font
    return None


@cache
def _fonts(height: int) -> tuple[Font, ...]:
    found: list[Font] = [ImageFont.load_default(height)]
    library = importlib.util.find_spec("matplotlib")  # found, not imported
    if library and library.origin:
        more = Path(library.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        if more.is_file():
            found.append(ImageFont.truetype(str(more), height))
    return tuple(found)


def captioned(image: Image.Image, text: str) -> Image.Image:
    """A copy of a picture, at the size of a contact sheet's cell, with a line of text above it."""
    scale = (CELL - 32) / max(image.size)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    cell = Image.new("RGB", (CELL, CELL), "white")
    cell.paste(small, ((CELL - small.width) // 2, 24))
    font = ImageFont.load_default(11)
    ImageDraw.Draw(cell).text((4, 4), text if len(text) <= 54 else f"...{text[-51:]}", fill="black", font=font)
    return cell


def contact_sheet(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Pictures side by side, each fitted into a square cell."""
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * CELL, rows * CELL), "white")
    for place, image in enumerate(images):
        scale = (CELL - 8) / max(image.size)
        small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
        x, y = place % columns * CELL, place // columns * CELL
        sheet.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))
    return sheet
