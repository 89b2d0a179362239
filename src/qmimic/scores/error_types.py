"""Why a detector loses mAP: six kinds of errors, and what each costs (TIDE: Bolya et al., ECCV 2020).

A false detection is the first of these that fits:

    localisation     overlaps a box of its class, but loosely: 0.1 <= IoU < 0.5
    classification   overlaps a box of another class tightly: IoU >= 0.5
    duplicate        overlaps a box of its class tightly, but a detection of higher score has that box
    background       overlaps nothing: IoU < 0.1 with every box
    both             overlaps a box of another class loosely

A labelled box that is not found is `missed`, unless a localisation or classification error points at it. The cost of a
kind is the mAP gained by correcting that kind alone: wrong classes and boxes are corrected (the best of several
detections of one box stays); duplicates, background detections and those wrong in both are removed; missed boxes are
taken out of the ground truth. Differences from the paper: detections are matched as in VOC, and difficult or crowd
boxes explain nothing.
"""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qmimic.scores.matches import IOU, PAIRS_AT_ONCE, Matches, pair_iou
from qmimic.scores.voc import average_precision

BACKGROUND_IOU = 0.1
FALSE_KINDS = ("localisation", "classification", "both", "duplicate", "background")
KINDS = (*FALSE_KINDS, "missed")
TRUE, IGNORED = -1, -2


@dataclass(frozen=True)
class Errors:
    """What became of every detection and of every labelled box.

    Attributes:
        matches: detections and truth.
        kind: int8 [D], index in `FALSE_KINDS`; TRUE for hits, IGNORED for detections that do not count.
        blamed: int64 [D], row of the truth that a localisation or classification error or a duplicate points at; -1
            where there is none.
        found: bool [G], labelled boxes that a hit found.
        missed: bool [G], those that should be found, were not, and that no error points at.
    """

    matches: Matches
    kind: NDArray[np.int8]
    blamed: NDArray[np.int64]
    found: NDArray[np.bool_]
    missed: NDArray[np.bool_]

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """Labelled boxes that should be found, bool [G]."""
        return ~self.matches.truth.ignored

    @property
    def counts(self) -> dict[str, int]:
        """How many errors of each kind; hits and false detections together are all detections that count."""
        false = {name: int((self.kind == place).sum()) for place, name in enumerate(FALSE_KINDS)}
        return {**false, "missed": int(self.missed.sum())}


def find_errors(matches: Matches) -> Errors:
    """Classify every error of a split."""
    truth = matches.truth
    kind = np.where(matches.hit, TRUE, IGNORED).astype(np.int8)
    blamed = np.full(len(kind), -1, np.int64)
    found = np.zeros(len(truth.label), np.bool_)
    found[matches.target[matches.hit]] = True
    false = np.flatnonzero(~matches.hit & ~matches.ignored)
    false = false[np.argsort(matches.image[false], kind="stable")]
    bounds = np.searchsorted(matches.image[false], np.arange(truth.images + 1))
    boxes = np.searchsorted(truth.image, np.arange(truth.images + 1))
    for image in np.flatnonzero(np.diff(bounds)):
        rows = false[bounds[image] : bounds[image + 1]]
        own = np.arange(boxes[image], boxes[image + 1])
        own = own[~truth.ignored[own]]
        kind[rows], blamed[rows] = _explain(matches, rows, own)
    pointed = np.zeros(len(found), np.bool_)
    pointed[blamed[_is(kind, "localisation", "classification")]] = True
    return Errors(matches, kind, blamed, found, ~truth.ignored & ~found & ~pointed)


def corrected_map(errors: Errors, kinds: Collection[str]) -> float:
    """VOC mAP (area), 0..1, with the errors of these kinds corrected; without kinds, the mAP as it is.

    The mean is over the classes with something to find; 1 if nothing is left to find.
    """
    matches, truth = errors.matches, errors.matches.truth
    corrected = _is(errors.kind, *(name for name in ("localisation", "classification") if name in kinds))
    # For a box without a hit, the best of its corrected detections stays, as a hit.
    pointing = np.flatnonzero(corrected)
    open_ones = pointing[~errors.found[errors.blamed[pointing]]]
    first = open_ones[np.unique(errors.blamed[open_ones], return_index=True)[1]]
    hit, label = matches.hit.copy(), matches.label.copy()
    hit[first], label[first] = True, truth.label[errors.blamed[first]]
    gone = _is(errors.kind, *(name for name in FALSE_KINDS if name in kinds)) | matches.ignored
    gone[first] = False
    wanted = errors.wanted & ~errors.missed if "missed" in kinds else errors.wanted
    values = []
    for own in range(matches.classes):
        positives = int((wanted & (truth.label == own)).sum())
        if positives:
            hits = hit[(label == own) & ~gone]
            true = np.cumsum(hits)
            values.append(average_precision(true / positives, true / np.arange(1, len(hits) + 1)))
    return float(np.mean(values)) if values else 1.0


def costs(errors: Errors) -> dict[str, float]:
    """The mAP, 0..1, that each kind costs by itself; all 0 if there was nothing to find."""
    if not errors.wanted.any():
        return dict.fromkeys(KINDS, 0.0)
    before = corrected_map(errors, ())
    return {name: corrected_map(errors, (name,)) - before for name in KINDS}


def confusion(errors: Errors) -> NDArray[np.int64]:
    """How often an object of one class was found as another, int64 [labelled, found]; hits are on the diagonal."""
    truth, matches = errors.matches.truth, errors.matches
    table = np.zeros((matches.classes, matches.classes), np.int64)
    wrong = _is(errors.kind, "classification")
    np.add.at(table, (truth.label[errors.blamed[wrong]], matches.label[wrong]), 1)
    np.add.at(table, (matches.label[matches.hit], matches.label[matches.hit]), 1)
    return table


def _explain(
    matches: Matches, rows: NDArray[np.int64], own: NDArray[np.int64]
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Kinds of one image's false detections `rows`, and the boxes they point at; `own`: its boxes that count."""
    names = {name: place for place, name in enumerate(FALSE_KINDS)}
    if not len(own):
        return np.full(len(rows), names["background"], np.int8), np.full(len(rows), -1, np.int64)
    if len(rows) > 1 and len(rows) * len(own) > PAIRS_AT_ONCE:  # a crowd or noise: in halves, to bound memory
        halves = [_explain(matches, half, own) for half in np.array_split(rows, 2)]
        return np.concatenate([half[0] for half in halves]), np.concatenate([half[1] for half in halves])
    truth = matches.truth
    pairs = pair_iou(np.repeat(matches.box[rows], len(own), 0), np.tile(truth.boxes[own], (len(rows), 1)))
    overlap = pairs.reshape(len(rows), len(own))
    same = matches.label[rows][:, None] == truth.label[own]
    of_class, of_others = np.where(same, overlap, -1.0), np.where(same, -1.0, overlap)
    best_own, best_other = of_class.argmax(1), of_others.argmax(1)
    tight, loose = of_class.max(1) >= IOU, of_class.max(1) >= BACKGROUND_IOU
    confused = of_others.max(1) >= IOU
    near = overlap.max(1) >= BACKGROUND_IOU
    conditions = [loose & ~tight, confused, tight, ~near]
    kinds = [names["localisation"], names["classification"], names["duplicate"], names["background"]]
    kind = np.select(conditions, kinds, names["both"]).astype(np.int8)
    place = np.select(conditions[:3], [best_own, best_other, best_own], -1)
    return kind, np.where(place >= 0, own[place], -1)


def _is(kind: NDArray[np.int8], *names: str) -> NDArray[np.bool_]:
    places = [FALSE_KINDS.index(name) for name in names]
    chosen: NDArray[np.bool_] = np.isin(kind, places)
    return chosen
