"""Cases for the scorers: images with labels and detections, by hand, by Hypothesis and by jittering real labels."""

from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from qmimic.data.sample import Sample
from qmimic.detections import Detections

CLASSES = ("cat", "dog", "eel")
Case = tuple[list[Sample], dict[str, Detections]]


def sample(
    name: str,
    boxes: Sequence[Sequence[float]],
    labels: Sequence[int],
    difficult: Sequence[bool] = (),
    crowd: Sequence[bool] = (),
) -> Sample:
    """A labelled image without pixels; boxes xyxy, 0-based."""
    none = [False] * len(boxes)
    return Sample(
        name,
        None,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.array(difficult or none, np.bool_),
        np.array(crowd or none, np.bool_),
    )


def detections(rows: Sequence[tuple[Sequence[float], float, int]]) -> Detections:
    """Detections from (box, score, label), sorted by falling score as the type demands."""
    rows = sorted(rows, key=lambda row: -row[1])
    return Detections(
        np.array([row[0] for row in rows], np.float32).reshape(-1, 4),
        np.array([row[1] for row in rows], np.float32),
        np.array([row[2] for row in rows], np.int64),
    )


def _boxes(least: int) -> st.SearchStrategy[list[float]]:
    # Quarters of pixels are exact in binary and few, so that overlaps, ties and an IoU of just 0.5 come up often.
    start, side = st.integers(0, 40).map(lambda v: v / 4), st.integers(least, 24).map(lambda v: v / 4)
    return st.tuples(start, start, side, side).map(lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]])


@st.composite
def cases(draw: st.DrawFn, crowd: bool = True) -> Case:
    """Some images with labels and detections; either may be missing. Scores are few, so there are many ties."""
    labels = st.integers(0, len(CLASSES) - 1)
    flags = st.sampled_from([False, False, True])
    samples, found = [], {}
    for number in range(draw(st.integers(0, 4))):
        # Sides from 0 on: some labels have no area.
        truth = draw(st.lists(st.tuples(_boxes(0), labels, flags, flags if crowd else st.just(False)), max_size=6))
        name = f"image{number}"
        samples.append(
            sample(name, [t[0] for t in truth], [t[1] for t in truth], [t[2] for t in truth], [t[3] for t in truth])
        )
        # Detections are free, or labels moved a little, so that there are hits.
        scores = st.integers(0, 4).map(lambda v: v / 4)
        rows = draw(st.lists(st.tuples(_boxes(1), scores, labels), max_size=6))
        for box, label, _, _ in truth:
            for _ in range(draw(st.integers(0, 2))):
                moved = [box[0] + draw(st.integers(-4, 4)) / 4, *box[1:3], box[3] + draw(st.integers(0, 4)) / 4]
                if moved[0] <= moved[2]:
                    rows.append((moved, draw(scores), label))
        if rows or draw(st.booleans()):
            found[name] = detections(rows)
    return samples, found


def jittered(samples: Sequence[Sample], classes: int, seed: int) -> dict[str, Detections]:
    """What a fair detector would say of real images: most boxes, moved; some twice; some of a wrong class or place."""
    random = np.random.default_rng(seed)
    found = {}
    for one in samples:
        rows: list[tuple[list[float], float, int]] = []
        for box, label in zip(one.boxes.astype(np.float64), one.labels.tolist(), strict=True):
            side = np.array([box[2] - box[0], box[3] - box[1]] * 2)
            for _ in range(int(random.choice([0, 1, 1, 1, 2]))):
                moved = box + random.normal(0, 0.12, 4) * side
                moved[2:] = np.maximum(moved[2:], moved[:2] + 1)
                wrong = random.random() < 0.1
                kind = int(random.integers(classes)) if wrong else label
                rows.append((moved.tolist(), round(float(random.random()), 2), kind))
        for _ in range(int(random.integers(0, 4))):
            x, y, width, height = random.uniform(0, 400), random.uniform(0, 400), *random.uniform(20, 120, 2)
            rows.append(
                ([x, y, x + width, y + height], round(float(random.random()), 2), int(random.integers(classes)))
            )
        if random.random() > 0.05:
            found[one.image_id] = detections(rows)
    return found
