"""The rules of Pascal VOC's development kit (VOCevaldet.m, VOCap.m) in plain loops and VOC's own coordinates.

Boxes are [xmin, ymin, xmax, ymax], 1-based and inclusive: width = xmax - xmin + 1. Written from the rules, sharing
nothing with qmimic; the tests hold qmimic's scores against it.
"""

from dataclasses import dataclass, field


@dataclass
class Thing:
    """A labelled object."""

    box: list[float]
    difficult: bool
    found: bool = False


@dataclass
class Image:
    """One image: its objects by class, its detections in the order of the file as (class, score, box)."""

    things: dict[str, list[Thing]] = field(default_factory=dict)
    detections: list[tuple[str, float, list[float]]] = field(default_factory=list)


def evaluate(images: list[Image], name: str, least: float = 0.5) -> tuple[float, float, int]:
    """Average precision of a class by 11 points (VOC 2007) and by area (2010 on), and its number of positives."""
    positives = 0
    for image in images:
        for thing in image.things.get(name, []):
            thing.found = False
            positives += not thing.difficult
    rows = [(score, image, box) for image in images for kind, score, box in image.detections if kind == name]
    rows.sort(key=lambda row: -row[0])  # stable, as MATLAB's sort

    true, false = 0, 0
    recall, precision = [], []
    for _, image, box in rows:
        best, chosen = float("-inf"), None
        for thing in image.things.get(name, []):
            overlap = _overlap(box, thing.box)
            if overlap is not None and overlap > best:
                best, chosen = overlap, thing
        if best >= least:
            assert chosen is not None
            if not chosen.difficult:
                if not chosen.found:
                    true += 1
                    chosen.found = True
                else:
                    false += 1
        else:
            false += 1
        recall.append(true / positives if positives else float("nan"))
        # Nothing counted yet is 0/0 in MATLAB, a NaN that its max() passes over: the same as 0 here.
        precision.append(true / (true + false) if true + false else 0.0)
    if not positives:
        return float("nan"), float("nan"), 0
    return _eleven_points(recall, precision), _area(recall, precision), positives


def _overlap(one: list[float], other: list[float]) -> float | None:
    left, top = max(one[0], other[0]), max(one[1], other[1])
    right, bottom = min(one[2], other[2]), min(one[3], other[3])
    width, height = right - left + 1, bottom - top + 1
    if width <= 0 or height <= 0:
        return None
    union = (
        (one[2] - one[0] + 1) * (one[3] - one[1] + 1)
        + (other[2] - other[0] + 1) * (other[3] - other[1] + 1)
        - width * height
    )
    return width * height / union


def _eleven_points(recall: list[float], precision: list[float]) -> float:
    total = 0.0
    for step in range(11):
        reached = [p for r, p in zip(recall, precision, strict=True) if r >= step * 0.1]
        total += max(reached, default=0.0) / 11
    return total


def _area(recall: list[float], precision: list[float]) -> float:
    r, p = [0.0, *recall, 1.0], [0.0, *precision, 0.0]
    for index in range(len(p) - 2, -1, -1):
        p[index] = max(p[index], p[index + 1])
    return sum((r[index] - r[index - 1]) * p[index] for index in range(1, len(r)))
