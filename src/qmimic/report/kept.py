"""What a report computes once and keeps in RUN/report: detections of val, and small JSON values.

Everything here can be deleted; it is computed again. What is read is checked: a run folder may come from a stranger.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from qmimic.data.sample import Sample
from qmimic.detections import Detections
from qmimic.detectors.files import read_tensors, write_tensors
from qmimic.errors import InputError
from qmimic.files import read_json, write_text

FOLDER = "report"

T = TypeVar("T")


def kept_value(path: Path, key: str, kind: type[T], compute: Callable[[], T]) -> T:
    """A value kept under this key, or else computed and kept.

    Args:
        path: of the JSON file.
        key: fingerprint of everything that decides the value.
        kind: its type, a dataclass.
        compute: computes it.

    Raises:
        InputError: it cannot be computed or written.
    """
    adapter = TypeAdapter(kind)
    found = peek_value(path, kind, key)
    if found is None:
        found = compute()
        write_text(path, json.dumps({"key": key, "value": adapter.dump_python(found, mode="json")}, indent=1))
    return found


def peek_value(path: Path, kind: type[T], key: str | None = None) -> T | None:
    """A value kept under this key, or under any key if None is given; None if it is missing or damaged."""
    try:
        tree = read_json(path)
        if isinstance(tree, dict) and key in (None, tree.get("key")):
            return TypeAdapter(kind).validate_python(tree.get("value"))
    except (InputError, ValidationError):
        pass
    return None


def kept_detections(
    path: Path, samples: Sequence[Sample], classes: int, compute: Callable[[], Mapping[str, Detections]]
) -> Mapping[str, Detections]:
    """Detections by image id: those kept, or else computed and kept.

    Args:
        path: of the safetensors file; its name holds a fingerprint of what decides them.
        samples: of the split, in order.
        classes: number of classes.
        compute: computes them.

    Raises:
        InputError: they cannot be computed or written.
    """
    ids = [sample.image_id for sample in samples]
    found: Mapping[str, Detections] | None = _read(path, ids, classes)
    if found is None:
        found = compute()
        own = [found[name] for name in ids]
        tensors = {
            name: torch.from_numpy(np.concatenate([getattr(one, name) for one in own]))
            for name in ("boxes", "scores", "labels")
        }
        tensors["counts"] = torch.tensor([len(one.scores) for one in own])
        write_tensors(path, tensors, {})
    return found


def _read(path: Path, ids: Sequence[str], classes: int) -> dict[str, Detections] | None:
    try:
        tensors = read_tensors(path).tensors
        boxes, scores, labels, counts = (tensors[name].numpy() for name in ("boxes", "scores", "labels", "counts"))
    except (InputError, KeyError, TypeError):
        return None
    total = len(scores)
    whole = (
        [one.dtype for one in (boxes, scores, labels, counts)] == [np.float32, np.float32, np.int64, np.int64]
        and (boxes.shape, scores.shape, labels.shape, counts.shape) == ((total, 4), (total,), (total,), (len(ids),))
        and bool((counts >= 0).all())
        and int(counts.sum()) == total
        and bool(np.isfinite(boxes).all() and np.isfinite(scores).all())
        and bool(((labels >= 0) & (labels < classes)).all())
    )
    if not whole:
        return None
    ends = np.cumsum(counts)[:-1]
    parts = (np.split(values, ends) for values in (boxes, scores, labels))
    return {name: Detections(*own) for name, *own in zip(ids, *parts, strict=True)}
