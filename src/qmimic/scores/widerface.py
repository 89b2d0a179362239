"""WIDER FACE's own protocol: average precision on its easy, medium and hard faces (Yang et al., CVPR 2016).

Scores are normalised over the whole split; a curve has 1,000 points, one for each score threshold; a detection is
matched to the face it overlaps most, with boxes of inclusive pixels; faces outside a level count neither for nor
against.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmimic.data.labels import read_text
from qmimic.data.widerface import mat_images
from qmimic.detections import Detections
from qmimic.errors import InputError
from qmimic.files import inside, write_text
from qmimic.scores.matches import PAIRS_AT_ONCE

LEVELS = ("easy", "medium", "hard")
THRESHOLDS = 1000
IOU = 0.5

Boxes = NDArray[np.float64]


@dataclass(frozen=True)
class TruthImage:
    """The faces of one image.

    Attributes:
        image_id: "event/name".
        boxes: float64 [M, 4], x, y, width, height.
        counted: for each of `LEVELS`, bool [M].
    """

    image_id: str
    boxes: Boxes
    counted: dict[str, NDArray[np.bool_]]


@dataclass(frozen=True)
class WiderScores:
    """Average precision by level, 0..1, and what the figures are based on.

    Attributes:
        easy, medium, hard: average precision.
        detections: how many were scored.
        lowest_score: of any detection: the threshold behind the figures, which quotations often leave out.
    """

    easy: float
    medium: float
    hard: float
    detections: int
    lowest_score: float


def read_truth(folder: Path) -> tuple[TruthImage, ...]:
    """Read the benchmark's ground truth: `wider_face_val.mat` and a file for each level.

    Raises:
        InputError: a file is missing, has another layout, or does not list the same images as the others.
    """
    whole = list(mat_images(folder / "wider_face_val.mat"))
    levels = {level: list(mat_images(folder / f"wider_{level}_val.mat")) for level in LEVELS}
    found = []
    for place, image in enumerate(whole):
        counted = {}
        for level, images in levels.items():
            own = images[place] if place < len(images) else None
            if own is None or (own.event, own.name) != (image.event, image.name) or own.counted is None:
                raise InputError(
                    f"{folder / f'wider_{level}_val.mat'} does not say which faces of {image.event}/{image.name} "
                    "count; take all four files from one release of the evaluation tools."
                )
            counted[level] = np.zeros(len(image.boxes), bool)
            counted[level][own.counted] = True
        found.append(TruthImage(f"{image.event}/{image.name}", image.boxes, counted))
    return tuple(found)


def read_detections(folder: Path, truth: Iterable[TruthImage]) -> tuple[dict[str, Boxes], tuple[str, ...]]:
    """Read detections in the benchmark's layout, `folder/event/name.txt`: name, number, then `x y width height score`.

    Args:
        folder: of the event folders.
        truth: the images; each needs a file, even one without detections.

    Returns:
        float64 [N, 5] by image id, in falling order of score; and remarks on the files for the user.

    Raises:
        InputError: a folder or file is missing, belongs to an unknown image, or has another layout.
    """
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}; name the folder that holds the event folders with detections.")
    known = {image.image_id for image in truth}
    events = {image_id.split("/")[0] for image_id in known}
    for event in sorted(events):
        if not (folder / event).is_dir():
            raise InputError(f"{folder} lacks the event folder {event}; write a file for every image of the split.")
    files = {f"{path.parent.name}/{path.stem}": path for path in sorted(folder.glob("*/*.txt"))}
    for image_id in sorted(set(files) - known):
        raise InputError(f"{files[image_id]} belongs to no image of the ground truth; score the split it belongs to.")
    missing = sorted(known - set(files))
    if missing:
        raise InputError(
            f"{folder} lacks {missing[0]}.txt (and {len(missing) - 1} more); an image without detections needs a file "
            "that says 0."
        )
    found = {image_id: _read_file(inside(folder, path)) for image_id, path in files.items()}
    said = []
    unsorted = sum(bool((np.diff(own[:, 4]) > 0).any()) for own in found.values())
    if unsorted:
        said.append(f"{unsorted} files were not in falling order of score, as the protocol requires; they were sorted.")
    repeated = sum(len(own) - len(set(map(tuple, own.tolist()))) for own in found.values())
    if repeated:
        said.append(f"{repeated} lines repeat others; the protocol counts them as false detections.")
    return {image_id: own[np.argsort(-own[:, 4], kind="stable")] for image_id, own in found.items()}, tuple(said)


def _read_file(path: Path) -> Boxes:
    lines = [line for line in read_text(path).splitlines() if line.strip()]
    if len(lines) < 2 or not lines[1].strip().isdecimal() or int(lines[1]) != len(lines) - 2:
        raise InputError(
            f"{path} needs the image's name, the number of detections, and that many lines; write it again."
        )
    if len(lines) == 2:
        return np.zeros((0, 5))
    try:
        rows = np.loadtxt(lines[2:], np.float64, comments=None, ndmin=2)
    except ValueError as error:
        raise InputError(f"{path} needs lines of five numbers, x y width height score; write it again.") from error
    if rows.shape[1] != 5 or not np.isfinite(rows).all():
        raise InputError(f"{path} needs lines of five numbers, none of them NaN or infinite; write it again.")
    return rows


def write_detections(folder: Path, found: Mapping[str, Detections]) -> None:
    """Write detections (xyxy, by image id "event/name") in the benchmark's layout.

    Raises:
        InputError: an image has no event, or the folder cannot be written.
    """
    for image_id, own in found.items():
        event, slash, name = image_id.partition("/")
        if not slash:
            raise InputError(f"{image_id} has no event; only detections on a WIDER FACE folder have this layout.")
        sides = np.concatenate([own.boxes[:, :2], own.boxes[:, 2:] - own.boxes[:, :2]], 1)
        rows = (f"{x:.2f} {y:.2f} {w:.2f} {h:.2f} {s:.6f}" for (x, y, w, h), s in zip(sides, own.scores, strict=True))
        write_text(folder / event / f"{name}.txt", "\n".join([image_id, str(len(sides)), *rows]) + "\n")


def widerface_ap(truth: Iterable[TruthImage], found: Mapping[str, Boxes]) -> WiderScores:
    """Average precision of each level.

    Args:
        truth: the images of the split.
        found: float64 [N, 5], x, y, width, height, score, in falling order of score, by image id.
    """
    truth = tuple(truth)
    scores = np.concatenate([np.zeros(0), *(own[:, 4] for own in found.values())])
    lowest, highest = float(scores.min(initial=1)), float(scores.max(initial=0))
    spread = (highest - lowest) or 1.0
    # A detection counts from the first threshold that its normalised score reaches.
    thresholds = 1 - np.arange(1, THRESHOLDS + 1) / THRESHOLDS
    proposals = {level: np.zeros(THRESHOLDS) for level in LEVELS}
    recalled = {level: np.zeros(THRESHOLDS) for level in LEVELS}
    for image in truth:
        own = found[image.image_id]
        if not len(own) or not len(image.boxes):
            continue  # the protocol ignores detections in images without faces
        taken, overlap = _best_faces(own[:, :4], image.boxes)
        step = np.searchsorted(-thresholds, -(own[:, 4] - lowest) / spread)
        hits = np.flatnonzero(overlap >= IOU)
        # Only a face's first detection recalls it; a second one is a false detection.
        firsts = hits[np.unique(taken[hits], return_index=True)[1]]
        for level in LEVELS:
            counted = image.counted[level]
            wasted = np.zeros(len(own), bool)
            wasted[hits] = ~counted[taken[hits]]
            proposals[level] += np.bincount(step[~wasted], minlength=THRESHOLDS)
            recalled[level] += np.bincount(step[firsts[counted[taken[firsts]]]], minlength=THRESHOLDS)
    faces = {level: sum(int(image.counted[level].sum()) for image in truth) for level in LEVELS}
    values = {level: _area(recalled[level].cumsum(), proposals[level].cumsum(), faces[level]) for level in LEVELS}
    return WiderScores(**values, detections=len(scores), lowest_score=float(scores.min(initial=np.inf)))


def _best_faces(boxes: Boxes, faces: Boxes) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The face that each of boxes [N, 4] overlaps most, int64 [N], and that IoU, float64 [N]; computed in pieces."""
    pieces = np.array_split(boxes, -(-len(boxes) * len(faces) // PAIRS_AT_ONCE))
    overlaps = ((own.argmax(1), own.max(1)) for own in (_iou(piece, faces) for piece in pieces))
    taken, overlap = zip(*overlaps, strict=True)
    return np.concatenate(taken), np.concatenate(overlap)


def _iou(a: Boxes, b: Boxes) -> Boxes:
    """IoU of boxes [N, 4] and [M, 4] (x, y, width, height) whose last pixel, x + width, is included: [N, M]."""
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, :2] + a[:, None, 2:], b[None, :, :2] + b[None, :, 2:])
    overlap = np.clip(high - low + 1, 0, None).prod(2)
    area_a, area_b = (a[:, 2:] + 1).prod(1), (b[:, 2:] + 1).prod(1)
    result: Boxes = overlap / (area_a[:, None] + area_b - overlap)
    return result


def _area(recalled: Boxes, proposals: Boxes, faces: int) -> float:
    """Area under the curve of the points with precision made falling, as in VOC's devkit from 2010 on."""
    recall = np.concatenate([[0.0], recalled / max(1, faces), [1.0]])
    precision = np.concatenate([[0.0], recalled / np.maximum(1, proposals), [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall) * precision[1:]).sum())
