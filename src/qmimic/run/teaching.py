"""The teacher of a student's stage: the frozen network, and its bank where one can serve."""

from dataclasses import dataclass

import numpy as np
import torch

from qmimic.data.augment import exact_views
from qmimic.data.records import RecordFile
from qmimic.detectors.detector import Detector
from qmimic.detectors.quantize import Quantizer
from qmimic.distill.bank import Bank, Layout
from qmimic.distill.mimic import REGION_SIZE, sees_levels, sees_region_levels
from qmimic.distill.teacher import Teacher
from qmimic.run.keys import bank_key
from qmimic.run.prepare import Prepared
from qmimic.training.loop import Watcher

BATCHES_MEASURED = 4


def teacher_of(prepared: Prepared, detector: Detector, key: str, quantizer: Quantizer, watcher: Watcher) -> Teacher:
    """The teacher that a student of this recipe learns from.

    Args:
        prepared: the run, with the arm's recipe.
        detector: the teacher, on the run's device.
        key: of its stage.
        quantizer: Q of the mimic loss.
        watcher: told of the bank, or why there is none.

    Raises:
        InputError: the disk has no room for the bank.
    """
    bf16 = prepared.bf16(prepared.recipe.teacher.backbone)
    views = exact_views(prepared.recipe.augment)
    limit = prepared.recipe.run.bank_mib << 20
    if not limit:
        return Teacher(detector, bf16)
    if views is None:
        watcher.say("The teacher runs in every step: with augment's scale, shift or colour every view is a new one.")
        return Teacher(detector, bf16)
    records = views * len(prepared.train.samples)
    contents = _contents(prepared, detector, quantizer)
    sizes = [RecordFile.size(records, content.layout.bytes) for content in contents]
    for content, size in zip(contents, sizes, strict=True):
        if size <= limit:
            path = prepared.recipe.folder / "bank" / f"{_name(prepared, content, views, key)}.bin"
            watcher.say(
                f"The teacher bank: {size / 1e6:.1f} MB in {path}, {content.layout.bytes:,} bytes for each of "
                f"{records:,} views, filled as they come up."
            )
            bank = Bank(path, records, content.layout, content.levels)
            return Teacher(detector, bf16, bank, content.regions)
    watcher.say(
        f"The teacher runs in every step: its bank would take {min(sizes) / 1e6:.0f} MB, above run.bank_mib="
        f"{prepared.recipe.run.bank_mib}."
    )
    return Teacher(detector, bf16)


@dataclass(frozen=True)
class _Content:
    """What a bank holds of a view: the teacher's pooled regions or its map, as levels of a quantizer or as they are."""

    regions: bool
    layout: Layout
    levels: Quantizer | None


def _contents(prepared: Prepared, detector: Detector, quantizer: Quantizer) -> list[_Content]:
    """What a bank could hold, the fastest to learn from first."""
    spec, mimic = detector.spec, prepared.recipe.mimic
    channels = detector.channels[0]
    of_regions, of_map = sees_region_levels(mimic), sees_levels(mimic)
    kind = _smallest(prepared, detector, quantizer) if of_regions or of_map else np.dtype(np.float32)
    found = []
    if of_regions:
        shape = (channels, mimic.region_count * REGION_SIZE, REGION_SIZE)
        found.append(_Content(True, Layout(shape, kind, mimic.region_count), quantizer))
    layout = Layout(
        shape=(channels, spec.size[0] // detector.strides[0], spec.size[1] // detector.strides[0]),
        kind=kind if of_map else np.dtype(np.float32),
        proposals=detector.region_count if mimic.regions == "teacher" else 0,
    )
    return [*found, _Content(False, layout, quantizer if of_map else None)]


def _name(prepared: Prepared, content: _Content, views: int, key: str) -> str:
    """A fingerprint of all that decides what is in a bank."""
    recipe, layout = prepared.recipe, content.layout
    record = [
        content.levels.stride.tolist() if content.levels else None,
        [layout.shape, layout.kind.name, layout.proposals, views],
        recipe.mimic.model_dump(include={"with_truth", "pooling"}) if content.regions else None,
    ]
    return bank_key(recipe, prepared.key, key, record, prepared.accelerator.num_processes)


@torch.no_grad()
def _smallest(prepared: Prepared, detector: Detector, quantizer: Quantizer) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    """One byte where it holds every level of the first images; the few levels beyond it are computed each time."""
    highest = quantizer.config.upper or 0
    if not highest:
        for _, batch in zip(range(BATCHES_MEASURED), prepared.train.once(), strict=False):
            seen = detector.raw_features(batch.images.to(detector.device)).map.float()
            highest = max(highest, int(quantizer.levels(seen).max()))
    return np.dtype(np.uint8) if highest <= np.iinfo(np.uint8).max else np.dtype(np.uint16)
