"""The parity gate: a deployed file against the trained model on real pictures. Without parity there is no file."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from qmimic.boxes import iou
from qmimic.data.letterbox import letterbox
from qmimic.data.sample import Dataset
from qmimic.detections import Detections
from qmimic.detectors.detector import Detector
from qmimic.detectors.evaluation import unpad
from qmimic.errors import InputError
from qmimic.runtime.detector import Detector as ShippedDetector

PICTURES = 32
MAX_SCORE_DIFFERENCE = 1e-4
MAX_BOX_DIFFERENCE = 0.02  # pixels of the input
BATCH = 8


@dataclass(frozen=True)
class Parity:
    """How far a deployed file is from the trained model.

    Attributes:
        pictures: compared.
        detections: of the trained model on them.
        score_difference: largest, of detections of the same object.
        box_difference: largest, pixels of the network's input.
        unmatched: detections of one that the other lacks without a reason. The last of a full list, one at the
            threshold, and one of two that overlap at equal scores may be in one list and not in the other.
    """

    pictures: int
    detections: int
    score_difference: float
    box_difference: float
    unmatched: int

    @property
    def holds(self) -> bool:
        """Whether the file may ship."""
        near = self.score_difference <= MAX_SCORE_DIFFERENCE and self.box_difference <= MAX_BOX_DIFFERENCE
        return near and not self.unmatched and self.detections > 0


def pictures(dataset: Dataset, size: tuple[int, int], count: int = PICTURES) -> NDArray[np.uint8]:
    """Inputs uint8 [count, H, W, 3] from a dataset's images: whole, their left halves and their upper halves in turn.

    So there are several aspect ratios even where all images have one.

    Args:
        dataset: of any number of images, at least one.
        size: height and width of the network's input, pixels.
        count: how many; a small dataset's images come again with other crops.
    """
    samples = [sample for split in reversed(list(dataset.splits)) for sample in dataset.splits[split]]
    found = []
    for number in range(count):
        image = None
        while image is None:
            if not samples:
                raise InputError(f"{dataset.name} has no readable image to compare on; name other --data.")
            try:
                image = dataset.load(samples[number % len(samples)])
            except InputError:  # training may have gone without it as well
                del samples[number % len(samples)]
        turn = (number + number // len(samples)) % 3
        right = max(1, image.width // 2) if turn == 1 else image.width
        lower = max(1, image.height // 2) if turn == 2 else image.height
        found.append(letterbox(image.crop((0, 0, right, lower)), size)[0])
    return np.stack(found)


def compare(trained: Detector, shipped: ShippedDetector, images: NDArray[np.uint8]) -> Parity:
    """Compare detections on inputs uint8 [N, H, W, 3]."""
    spec = trained.spec
    detections, unmatched, scores, boxes = 0, 0, 0.0, 0.0
    for ours, theirs in _both(trained, shipped, images):
        detections += len(ours.scores)
        pairs = list(_pairs(ours, theirs))
        for k, j in pairs:
            scores = max(scores, abs(float(ours.scores[k] - theirs.scores[j])))
            boxes = max(boxes, float(np.abs(ours.boxes[k] - theirs.boxes[j]).max()))
        full = len(ours.scores) == spec.max_detections
        edge = max(spec.score_threshold, float(ours.scores[-1]) if full else 0.0) + MAX_SCORE_DIFFERENCE
        lists = (ours, theirs, [k for k, _ in pairs]), (theirs, ours, [j for _, j in pairs])
        for one, other, matched in lists:
            left = [k for k in range(len(one.scores)) if k not in matched and one.scores[k] > edge]
            unmatched += sum(not _beaten(one, k, other, spec.nms_threshold) for k in left)
    return Parity(len(images), detections, scores, boxes, unmatched)


def require(trained: Detector, shipped: ShippedDetector, images: NDArray[np.uint8], name: str) -> Parity:
    """Compare as `compare` does; `name` is how an error calls the file.

    Raises:
        InputError: the file may not ship, or nothing can be said.
    """
    parity = compare(trained, shipped, images)
    if not parity.detections:
        raise InputError(
            f"The detector finds nothing in {parity.pictures} pictures, so {name} cannot be proved; train it."
        )
    if not parity.holds:
        raise InputError(
            f"{name} would not detect as the trained model does: scores differ by {parity.score_difference:.2g} "
            f"(allowed: {MAX_SCORE_DIFFERENCE:g}), boxes by {parity.box_difference:.2g} pixels "
            f"({MAX_BOX_DIFFERENCE:g}), and {parity.unmatched} of {parity.detections} detections have no "
            "counterpart; nothing was written; please report this detector."
        )
    return parity


def _both(
    trained: Detector, shipped: ShippedDetector, images: NDArray[np.uint8]
) -> Iterator[tuple[Detections, Detections]]:
    step = shipped.batch or BATCH
    for first in range(0, len(images), step):
        part = images[first : first + step]
        output = trained.detect(torch.from_numpy(part).permute(0, 3, 1, 2))
        found = shipped.raw(part)
        for row in range(len(part)):
            one = Detections(*(values[row] for values in found))
            yield unpad(output, row), one.keep(one.scores >= 0)


def _beaten(one: Detections, k: int, other: Detections, threshold: float) -> bool:
    """Whether the k-th of one list would be suppressed in the other by a detection that scores no less."""
    rivals = (other.labels == one.labels[k]) & (other.scores >= one.scores[k] - MAX_SCORE_DIFFERENCE)
    overlap = iou(torch.from_numpy(one.boxes[k : k + 1]), torch.from_numpy(other.boxes[rivals]))
    return bool((overlap > threshold).any())


def _pairs(ours: Detections, theirs: Detections) -> Iterator[tuple[int, int]]:
    """The same objects in two lists: of the same class, each the nearest box left, within a pixel."""
    free = np.ones(len(theirs.scores), np.bool_)
    for k in range(len(ours.scores)):
        distance = np.abs(theirs.boxes - ours.boxes[k]).max(1, initial=0)
        distance[~free | (theirs.labels != ours.labels[k])] = np.inf
        if len(distance) and distance.min() < 1:
            nearest = int(distance.argmin())
            free[nearest] = False
            yield k, nearest
