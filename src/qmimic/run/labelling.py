"""A teacher labels pictures that nobody has labelled, and a student learns from them beside the labelled ones.

A box counts as an object if its score reaches a threshold. The threshold is chosen on val for each class: the one with
the best F1 among those at which at least half of the boxes are right. A box that reaches only a share of the threshold
(`data.unlabelled_doubt`) is in doubt, and counts neither as an object nor as background. Pictures without any object
are left out, because the teacher may have missed something there. The student learns from the labels as they were
written to disk, so that a resumed run sees the same ones.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from qmimic import processes
from qmimic.boxes import suppress_by_label
from qmimic.config import Recipe
from qmimic.data.chosen import dataset_fingerprint
from qmimic.data.loader import Loader
from qmimic.data.records import RecordFile
from qmimic.data.sample import has_area
from qmimic.data.splits import UNLABELLED, VAL
from qmimic.data.unlabelled import Unlabelled
from qmimic.detections import Detections
from qmimic.distill.file_boxes import MOST_BOXES, suspicion
from qmimic.distill.teacher import Labeller, Teacher
from qmimic.draw import contact_sheet, draw
from qmimic.errors import InputError
from qmimic.files import replacing, write_text
from qmimic.run.folder import BANK, LABELS, LABELS_PICTURE
from qmimic.run.keys import found_key, labels_key
from qmimic.run.prepare import EVALUATION_BATCH, Prepared, pixel_cache
from qmimic.run.teacher_labels import FACTS, FILE, Facts, Labelled, TeacherLabels, as_coco, checksum, read_labels
from qmimic.scores.matches import match
from qmimic.scores.thresholds import thresholds
from qmimic.training.loop import Watcher

ROW = 6  # numbers of a detection that is kept: box, score, label
DRAWN = 12  # pictures
SAME_OBJECT = 0.5  # IoU from which two boxes show the same object, whatever their classes

Find = Callable[[Tensor], list[Detections]]


def label(prepared: Prepared, teacher: Teacher, key: str, watcher: Watcher) -> TeacherLabels:
    """Let a teacher label the run's unlabelled pictures, or find that it did before.

    Args:
        prepared: the run.
        teacher: that labels.
        key: of the teacher.
        watcher: told of progress.

    Raises:
        InputError: this teacher cannot label, finds nothing on val, or nothing in the pictures.
    """
    pictures = prepared.unlabelled
    assert pictures is not None, "the recipe names pictures"
    if not isinstance(teacher, Labeller):
        raise InputError(
            f"teacher.kind={prepared.recipe.teacher.kind} gives no boxes with classes, so it labels nothing; leave out "
            "data.unlabelled, or set teacher.kind to detector or onnx."
        )
    find = teacher.labeller(prepared.dataset.classes)
    own = labels_key(prepared.recipe, prepared.key, key, dataset_fingerprint(pictures.dataset))
    folder = prepared.recipe.folder / LABELS / own
    done = read_labels(own, folder, pictures)
    prepared.accelerator.wait_for_everyone()  # all have looked before one writes: they must take the same way
    if done is None:
        if prepared.accelerator.is_main_process:
            with processes.apart():
                _make(prepared, folder, pictures, own, find, teacher.size, watcher)
        prepared.accelerator.wait_for_everyone()
        done = read_labels(own, folder, pictures)
    if done is None:
        raise InputError(f"{folder} lacks what the main process wrote; put run.dir on a disk that all processes share.")
    for sentence in (done.facts.said(), _confused(prepared, done), _unknown(prepared)):
        if sentence:
            watcher.say(sentence)
    return done


def _confused(prepared: Prepared, labels: TeacherLabels) -> str:
    """Which classes a teacher's file names and yet finds wrongly, a sentence; empty if there are none."""
    recipe = prepared.recipe
    wrong = [
        own.name
        for own in labels.facts.classes
        if own.threshold.score is None and own.threshold.boxes and own.name in recipe.teacher.classes
    ]
    if recipe.trains_teacher or not wrong:
        return ""
    return (
        f"If this teacher knows {', '.join(wrong)} well, check the order of teacher.classes, and what its pixels are "
        "made into (teacher.mean, std, bgr)."
    )


def _unknown(prepared: Prepared) -> str:
    """Which classes of the data a teacher's file does not know, a sentence; empty if it knows all."""
    known, classes = prepared.recipe.teacher.classes, prepared.dataset.classes
    strange = [name for name in classes if known and name not in known]
    if not strange:
        return ""
    return (
        f"The teacher does not know {', '.join(strange)}: objects of this kind in data.unlabelled are taught as "
        "background; take pictures without them, or lower data.unlabelled_share."
    )


def _make(
    prepared: Prepared,
    folder: Path,
    pictures: Unlabelled,
    key: str,
    find: Find,
    size: tuple[int, int],
    watcher: Watcher,
) -> None:
    """Label and write. The facts are written last, so where they exist, everything does."""
    data, classes = prepared.recipe.data, prepared.dataset.classes
    known = prepared.val if size == data.size else Loader(prepared.dataset, VAL, size, EVALUATION_BATCH)
    seen = {sample.image_id: one for sample, one in zip(known.samples, _found(known, find, None, watcher), strict=True)}
    own = thresholds(match(known.samples, seen, len(classes)), data.unlabelled_doubt)
    if all(one.score is None for one in own):
        why = _advice(prepared.recipe, seen.values()) or " Train it for longer (teacher.steps)."
        raise InputError(
            f"The teacher finds nothing on {data.scored} that is right more often than not, so it cannot label "
            f"pictures.{why}"
        )
    cache = pixel_cache(pictures.dataset, UNLABELLED, prepared.recipe) if size == data.size else None
    loader = Loader(pictures.dataset, UNLABELLED, size, EVALUATION_BATCH, cache)
    lowest = np.array([np.inf if one.score is None else one.score for one in own], np.float32)
    doubted = np.array([one.doubt for one in own], np.float32)
    found = [
        one.keep(has_area(one.boxes) & (one.scores >= doubted[one.labels]))
        for one in _found(loader, find, _kept(prepared, key, len(loader.samples), watcher), watcher)
    ]
    taken = [_one_an_object(one, one.scores >= lowest[one.labels]) for one in found]
    if not any(keep.any() for keep in taken):
        levels = [f"{name} {one.score:.2f}" for name, one in zip(classes, own, strict=True) if one.score is not None]
        raise InputError(
            f"In none of the {len(found):,} pictures of data.unlabelled does the teacher find an object, from the "
            f"scores {', '.join(levels)} on; name pictures of the same kind as those with labels, or leave it out."
            + _advice(prepared.recipe, seen.values())
        )
    text = json.dumps(as_coco(pictures.samples, found, taken, classes))
    write_text(folder / FILE, text)
    with replacing(folder / LABELS_PICTURE) as temporary:
        _drawn(pictures, found, taken, classes).save(temporary, format="PNG")
    kinds, sure = np.concatenate([one.labels for one in found]), np.concatenate(taken)
    most = prepared.recipe.detector.max_detections if prepared.recipe.trains_teacher else MOST_BOXES
    counts = [np.bincount(kinds[which], minlength=len(classes)).tolist() for which in (sure, ~sure)]
    facts = Facts(
        pictures=len(found),
        used=sum(bool(keep.any()) for keep in taken),
        chosen_on=data.scored,
        classes=tuple(Labelled(*one) for one in zip(classes, own, *counts, strict=True)),
        sum=checksum(text.encode()),
        most=most,
        full=sum(len(one.scores) >= most for one in found),
    )
    write_text(folder / FACTS, json.dumps(asdict(facts), indent=1))


def _one_an_object(found: Detections, taken: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """What is taken, bool [D]: of boxes of several classes on one object, only the one with the best score."""
    places = np.flatnonzero(taken)
    boxes, scores = (torch.from_numpy(values[places]) for values in (found.boxes, found.scores))
    kept = np.zeros(len(taken), np.bool_)
    same = torch.zeros(len(places), dtype=torch.int64)
    kept[places[suppress_by_label(boxes, scores, same, SAME_OBJECT).numpy()]] = True
    return kept


def _kept(prepared: Prepared, key: str, pictures: int, watcher: Watcher) -> RecordFile | None:
    """Where the detections in each picture are kept until all are labelled: a killed run goes on from there."""
    recipe = prepared.recipe
    length = 4 * (1 + ROW * max(MOST_BOXES, recipe.detector.max_detections))
    size, limit = RecordFile.size(pictures, length), recipe.run.bank_mib << 20
    if not limit:
        return None
    if size > limit:
        watcher.say(
            f"What the teacher finds is not kept while it labels: it would take {size / 1e6:.0f} MB, above "
            f"run.bank_mib={recipe.run.bank_mib}. If the run is killed before it is done, it labels all pictures again."
        )
        return None
    path = recipe.folder / BANK / f"{found_key(key, prepared.device)}.bin"
    return RecordFile(path, pictures, length, "file of what the teacher finds", "run.bank_mib")


def _found(loader: Loader, find: Find, kept: RecordFile | None, watcher: Watcher) -> Iterator[Detections]:
    """Detections in each image of a loader, boxes in pixels of the images as they are.

    Args:
        loader: of images of the size that `find` takes.
        find: see `Labeller`.
        kept: where they are kept, a record an image; None: nowhere.
        watcher: told of progress.
    """
    parts = list(loader.parts())
    # A batch is looked at as a whole or not at all: convolutions may round otherwise for others.
    before = [_records(kept, part) for part in parts]
    batches = loader.batches([part for part, own in zip(parts, before, strict=True) if own is None])
    watcher.start("labels", len(loader.samples), 0)
    for part, own in zip(parts, before, strict=True):
        if own is not None:
            yield from map(_of_record, own)
            continue
        batch = next(batches)
        for place, one, placed in zip(part, find(batch.images), batch.placed, strict=True):
            found = placed.restored(one)
            if kept:
                record = _as_record(found, kept.length)
                kept.write(place, record)
                found = _of_record(record)
            yield found
        watcher.step(part[-1] + 1, len(part), 0.0)


def _records(kept: RecordFile | None, part: range) -> list[NDArray[np.uint8]] | None:
    """What is kept of the images of a batch; None if one of them is missing."""
    found = [record for place in part if kept and (record := kept.read(place)) is not None]
    return found if len(found) == len(part) else None


def _as_record(found: Detections, length: int) -> NDArray[np.uint8]:
    """Detections as bytes; there is room for all that a teacher gives."""
    values = np.zeros(length // 4, np.float32)
    rows = np.column_stack([found.boxes, found.scores, found.labels]).astype(np.float32)
    values[0], values[1 : 1 + rows.size] = len(rows), rows.reshape(-1)
    return values.view(np.uint8)


def _of_record(record: NDArray[np.uint8]) -> Detections:
    values = record.copy().view(np.float32)
    rows = values[1 : 1 + ROW * int(values[0])].reshape(-1, ROW)
    return Detections(rows[:, :4].copy(), rows[:, 4].copy(), rows[:, 5].astype(np.int64))


def _advice(recipe: Recipe, found: Iterable[Detections]) -> str:
    """What may be wrong with a teacher's file, a sentence with a space before it; empty where the run trains it."""
    return "" if recipe.trains_teacher else f" {suspicion(list(found), recipe.teacher)}"


def _drawn(
    pictures: Unlabelled, found: Sequence[Detections], taken: Sequence[NDArray[np.bool_]], classes: Sequence[str]
) -> Image.Image:
    """Some of the pictures that got a label, with what was taken and, with a `?`, what is in doubt."""
    used = [place for place, keep in enumerate(taken) if keep.any()]
    cells = []
    for place in (used[round(one)] for one in np.linspace(0, len(used) - 1, min(DRAWN, len(used)))):
        one, sure = found[place], taken[place]
        shown = replace(one, labels=one.labels + len(classes) * ~sure)
        picture = pictures.dataset.load(pictures.samples[place])
        cells.append(draw(picture, shown, (*classes, *(f"{name}?" for name in classes)), 0))
    return contact_sheet(cells, columns=4)
