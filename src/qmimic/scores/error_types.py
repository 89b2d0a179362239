"""Why a detector misses mAP: six kinds of errors, and what each costs (TIDE: Bolya et al., ECCV 2020).

A false detection is, in this order,

    localisation     on a box of its class, but loosely: 0.1 <= IoU < 0.5
    classification   tightly on a box of another class: IoU >= 0.5
    duplicate        tightly on a box of its class that a detection of higher score has taken
    background       on nothing: IoU < 0.1 with every box
    both             loosely on a box of another class

and a labelled box that is not found is `missed` unless a localisation or a classification error points at it. The cost
of a kind is the mAP gained by correcting that kind alone: classes and boxes are corrected (of several detections of one
box the best stays), what is a duplicate, on the background or wrong in both is removed, and missed boxes are not asked
for. Differences to the paper: detections are matched as VOC does, and difficult or crowd boxes explain nothing.
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
        kind: int8 [D], place in `FALSE_KINDS`; TRUE of hits, IGNORED of what counts for nothing.
        blamed: int64 [D], row of the truth that a localisation or classification error or a duplicate points at; -1
            where there is none.
        found: bool [G], labelled boxes that a hit found.
        missed: bool [G], those that are asked for, not found, and that no error points at.
    """

    matches: Matches
    kind: NDArray[np.int8]
    blamed: NDArray[np.int64]
    found: NDArray[np.bool_]
    missed: NDArray[np.bool_]

    @property
    def wanted(self) -> NDArray[np.bool_]:
        """Labelled boxes that are asked for, bool [G]."""
        return ~self.matches.truth.ignored

    @property
    def counts(self) -> dict[str, int]:
        """How many errors of each kind; with the hits, the false ones are all detections that count."""
        false = {name: int((self.kind == place).sum()) for place, name in enumerate(FALSE_KINDS)}
        return {**false, "missed": int(self.missed.sum())}


def find_errors(matches: Matches) -> Errors:
    """The kind of every error of a split."""
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
    """VOC mAP (area), 0..1, if the errors of these kinds were not there; of no kinds: the mAP as it is.

    The mean is over the classes that have something to be found; 1 if nothing is left to be found.
    """
    matches, truth = errors.matches, errors.matches.truth
    corrected = _is(errors.kind, *(name for name in ("localisation", "classification") if name in kinds))
    # The best of the corrected detections of a box that no hit has found stays, as a hit.
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
    """The mAP, 0..1, that each kind costs by itself; 0 everywhere if nothing was to be found."""
    if not errors.wanted.any():
        return dict.fromkeys(KINDS, 0.0)
    before = corrected_map(errors, ())
    return {name: corrected_map(errors, (name,)) - before for name in KINDS}


def confusion(errors: Errors) -> NDArray[np.int64]:
    """How often an object of a class was found as one of another, [labelled, found]; hits are the diagonal."""
    truth, matches = errors.matches.truth, errors.matches
    table = np.zeros((matches.classes, matches.classes), np.int64)
    wrong = _is(errors.kind, "classification")
    np.add.at(table, (truth.label[errors.blamed[wrong]], matches.label[wrong]), 1)
    np.add.at(table, (matches.label[matches.hit], matches.label[matches.hit]), 1)
    return table


def _explain(
    matches: Matches, rows: NDArray[np.int64], own: NDArray[np.int64]
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Kinds of false detections `rows` of one image, and the boxes they point at; `own`: its boxes that count."""
    names = {name: place for place, name in enumerate(FALSE_KINDS)}
    if not len(own):
        return np.full(len(rows), names["background"], np.int8), np.full(len(rows), -1, np.int64)
    if len(rows) > 1 and len(rows) * len(own) > PAIRS_AT_ONCE:  # of a crowd or of noise; memory is bounded
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
