"""Detections drawn into pictures."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from qmimic.detections import Detections

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")
CELL = 320


def draw(image: Image.Image, found: Detections, classes: Sequence[str], min_score: float) -> Image.Image:
    """A copy of an RGB picture with the detections of at least `min_score`, best on top.

    The frame lies inside the box: its outermost pixels are the first and the last that the box covers.
    """
    drawn = image.copy()
    canvas = ImageDraw.Draw(drawn)
    unit = max(1, round(max(image.size) / 320))
    font = ImageFont.load_default(max(9, 9 * unit))
    for box, score, label in sorted(zip(found.boxes, found.scores, found.labels, strict=True), key=lambda d: d[1]):
        if score < min_score:
            continue
        colour = COLOURS[int(label) % len(COLOURS)]
        x1, y1, x2, y2 = (float(side) for side in box)
        # Pillow paints the far corner too, where our boxes end before it.
        canvas.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=unit)
        text = f"{classes[int(label)]} {score:.2f}"
        left, _, right, bottom = canvas.textbbox((0, 0), text, font=font)
        above = max(0.0, y1 - bottom - 2)
        canvas.rectangle((x1, above, x1 + right - left + 4, above + bottom + 2), fill=colour)
        canvas.text((x1 + 2 - left, above), text, fill="white", font=font)
    return drawn


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
