"""What a network misses and gets wrong at its best threshold: by size, by crowding, by class, and as drawings."""

import base64
import io
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from qmimic.data.labels import stated_size
from qmimic.data.sample import Dataset
from qmimic.errors import InputError
from qmimic.report.networks import Judged, Scored
from qmimic.scores.error_types import FALSE_KINDS, TRUE, Errors, confusion

SMALL, LARGE = 0.1, 0.3  # of the image's side: square roots of shares of its area
CROWDED = 0.2  # share of a box's area that another box covers
WORST, SIDE = 8, 480
DRAWN, NAMED = 12, 4  # false detections of an image, the highest scores first
QUALITY = 80  # of JPEG
HIT, MISSED, FALSE = "#56B4E9", "#D55E00", "#F0E442"
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Share:
    """Labelled boxes of one kind, and by network title how many of them were not found."""

    name: str
    boxes: int
    lost: Mapping[str, int]


@dataclass(frozen=True)
class WorstImage:
    """An image with many errors, drawn.

    Attributes:
        image_id: of the image.
        lost: labels not found.
        false: false detections as `class score (kind)`: the highest scores, and how many more.
        uri: the drawing as a data URI, a JPEG.
        size: width and height of the drawing, pixels.
    """

    image_id: str
    lost: tuple[str, ...]
    false: tuple[str, ...]
    uri: str
    size: tuple[int, int]


def lost_by_kind(scored: Scored) -> tuple[Share, ...]:
    """Boxes not found, by size relative to the image and by whether another box covers part of them."""
    any_network = next(iter(scored.networks.values()))
    truth = any_network.shown.matches.truth
    sizes = np.array([stated_size(sample) for sample in scored.samples], np.float64).reshape(-1, 2)
    width, height = (truth.boxes[:, 2:] - truth.boxes[:, :2]).T
    side = np.sqrt(width * height / sizes.prod(1)[truth.image])
    crowded = covered(truth.image, truth.boxes) > CROWDED
    groups = {
        f"small: side below {SMALL:g} of the image's": side < SMALL,
        f"medium: {SMALL:g} to {LARGE:g}": (side >= SMALL) & (side < LARGE),
        f"large: from {LARGE:g}": side >= LARGE,
        f"crowded: another box covers over {100 * CROWDED:g} %": crowded,
        "free of other boxes": ~crowded,
    }
    wanted = any_network.shown.wanted

    def lost(own: Judged, group: NDArray[np.bool_]) -> int:
        return int((group & wanted & ~own.shown.found).sum())

    return tuple(
        Share(name, int((group & wanted).sum()), {title: lost(own, group) for title, own in scored.networks.items()})
        for name, group in groups.items()
    )


def covered(image: NDArray[np.int64], boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest share of each box [G, 4] that one other box of the same image covers, 0..1, [G].

    Args:
        image: int64 [G], sorted.
        boxes: xyxy with area.
    """
    shares = np.zeros(len(boxes))
    for first, last in _runs(image):
        own = boxes[first:last]
        sides = np.minimum(own[:, None, 2:], own[None, :, 2:]) - np.maximum(own[:, None, :2], own[None, :, :2])
        shared = sides.clip(0).prod(2)
        np.fill_diagonal(shared, 0)
        shares[first:last] = shared.max(1) / (own[:, 2:] - own[:, :2]).prod(1)
    return shares


def _runs(sorted_values: NDArray[np.int64]) -> list[tuple[int, int]]:
    """First row of each value, and one past its last."""
    starts = np.flatnonzero(np.diff(sorted_values, prepend=-1)).tolist()
    return list(pairwise([*starts, len(sorted_values)]))


@dataclass(frozen=True)
class Confusion:
    """As what a network found the objects of each class.

    Attributes:
        classes: those shown, the ones with most boxes.
        rows: for each of these classes, how often found as each of `classes`, as any other class, and not found.
        pairs: labelled class, class found, and how often, the most frequent first.
        left_out: number of classes that are not shown.
    """

    classes: tuple[str, ...]
    rows: tuple[tuple[int, ...], ...]
    pairs: tuple[tuple[str, str, int], ...]
    left_out: int


def confused(errors: Errors, classes: Sequence[str], most: int = 10) -> Confusion:
    """Which classes are confused; the table has at most the `most` frequent classes."""
    table, truth = confusion(errors), errors.matches.truth
    boxes = np.bincount(truth.label[errors.wanted], minlength=len(classes))
    lost = np.bincount(truth.label[errors.wanted & ~errors.found], minlength=len(classes))
    shown = np.sort(np.argsort(-boxes, kind="stable")[:most])
    rows = []
    for label in shown.tolist():
        within = table[label, shown]
        rows.append((*within.tolist(), int(table[label].sum() - within.sum()), int(lost[label])))
    off = [(int(table[a, b]), a, b) for a, b in zip(*np.nonzero(table), strict=True) if a != b]
    pairs = tuple((classes[a], classes[b], count) for count, a, b in sorted(off, key=lambda one: -one[0])[:most])
    names = tuple(classes[label] for label in shown)
    return Confusion(names, tuple(rows), pairs, len(classes) - len(names))


def worst_images(scored: Scored, title: str, dataset: Dataset) -> tuple[WorstImage, ...]:
    """Drawings of the images with most of a network's errors; fewer if fewer have errors, or can be read."""
    errors = scored.networks[title].shown
    matches, truth = errors.matches, errors.matches.truth
    lost, false = errors.wanted & ~errors.found, errors.kind >= 0
    counts = np.bincount(truth.image[lost], minlength=truth.images)
    counts += np.bincount(matches.image[false], minlength=truth.images)
    drawn: list[WorstImage] = []
    for image in np.argsort(-counts, kind="stable"):
        if not counts[image] or len(drawn) == WORST:
            break
        sample = scored.samples[image]
        try:
            picture = dataset.load(sample)
        except InputError:
            continue
        wrong = np.flatnonzero((matches.image == image) & false)
        rows = np.append(np.flatnonzero((matches.image == image) & (errors.kind == TRUE)), wrong[:DRAWN])
        gone = np.flatnonzero((truth.image == image) & lost)
        names, said = scored.classes, []
        boxes: list[tuple[Box, str, str]] = []
        for row in rows.tolist():
            kind, name = int(errors.kind[row]), f"{names[matches.label[row]]} {matches.score[row]:.2f}"
            boxes.append((tuple(matches.box[row]), HIT if kind == TRUE else FALSE, "" if kind == TRUE else name))
            said += [] if kind == TRUE else [f"{name} ({FALSE_KINDS[kind]})"]
        for row in gone.tolist():
            boxes.append((tuple(truth.boxes[row]), MISSED, names[truth.label[row]]))
        if len(wrong) > NAMED:
            said = [*said[:NAMED], f"and {len(wrong) - NAMED} more"]
        uri, size = draw_errors(picture, boxes)
        missing = tuple(f"{name} x {n}" if n > 1 else name for name, n in _count(truth.label[gone], names).items())
        drawn.append(WorstImage(sample.image_id, missing, tuple(said), uri, size))
    return tuple(drawn)


def _count(labels: NDArray[np.int64], names: Sequence[str]) -> Counter[str]:
    return Counter(names[label] for label in labels.tolist())


def draw_errors(image: Image.Image, boxes: Sequence[tuple[Box, str, str]]) -> tuple[str, tuple[int, int]]:
    """A picture of `SIDE` pixels as a JPEG data URI, with boxes: hits thin, false ones bold, missed ones dashed."""
    scale = SIDE / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    drawn = image.resize(size, Image.Resampling.BICUBIC if scale > 1 else Image.Resampling.LANCZOS)
    canvas, font = ImageDraw.Draw(drawn), ImageFont.load_default(19)
    for box, colour, text in sorted(boxes, key=lambda one: (HIT, FALSE, MISSED).index(one[1])):
        x1, y1, x2, y2 = (side * scale for side in box)
        frame = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        width = 2 if colour == HIT else 3
        canvas.rectangle(_wider(frame), outline="#101010", width=width + 2)  # visible on any background
        if colour == MISSED:
            _dashed(canvas, frame, colour, width)
        else:
            canvas.rectangle(frame, outline=colour, width=width)
        if text:
            _, _, right, bottom = canvas.textbbox((0, 0), text, font=font)
            left = min(max(0.0, x1), max(0.0, size[0] - right - 8.0))
            # Missed boxes are labelled below: what was found instead is labelled above.
            above, below = y1 - bottom - 5, y2 + 1
            first, second = (below, above) if colour == MISSED else (above, below)
            top = first if 0 <= first <= size[1] - bottom - 5 else min(max(0.0, second), size[1] - bottom - 5.0)
            canvas.rectangle((left, top, left + right + 7, top + bottom + 4), fill=colour)
            canvas.text((left + 4, top + 1), text, fill="white" if colour == MISSED else "#101010", font=font)
    return data_uri(drawn, "JPEG"), size


def data_uri(image: Image.Image, kind: str) -> str:
    """A picture as a data URI."""
    raw = io.BytesIO()
    image.save(raw, kind, **({"quality": QUALITY, "optimize": True} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(raw.getvalue()).decode()}"


def _wider(frame: Box) -> Box:
    return frame[0] - 1, frame[1] - 1, frame[2] + 1, frame[3] + 1


def _dashed(canvas: ImageDraw.ImageDraw, frame: Box, colour: str, width: int, dash: int = 9, gap: int = 6) -> None:
    x1, y1, x2, y2 = frame
    for start in np.arange(x1, x2, dash + gap).tolist():
        for y in (y1, y2 - width + 1):
            canvas.rectangle((start, y, max(start, min(start + dash, x2)), max(y, y + width - 1)), fill=colour)
    for start in np.arange(y1, y2, dash + gap).tolist():
        for x in (x1, x2 - width + 1):
            canvas.rectangle((x, start, x + width - 1, max(start, min(start + dash, y2))), fill=colour)
