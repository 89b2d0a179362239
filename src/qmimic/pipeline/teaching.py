"""The teacher of a student's stage: the frozen network, and its bank where one can serve."""

import numpy as np
import torch

from qmimic.config import fingerprint
from qmimic.data.augment import exact_views
from qmimic.mimic import sees_levels
from qmimic.models.two_stage import Detector
from qmimic.pipeline.prepare import Prepared
from qmimic.quantize import Quantizer
from qmimic.records import RecordFile
from qmimic.training.bank import Bank, Layout
from qmimic.training.loop import Watcher
from qmimic.training.teacher import Teacher

VERSION = 1  # raised when a bank's records change
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
    return Teacher(detector, bf16, _bank(prepared, detector, key, quantizer, watcher))


def _bank(prepared: Prepared, detector: Detector, key: str, quantizer: Quantizer, watcher: Watcher) -> Bank | None:
    recipe = prepared.recipe
    if not recipe.run.bank_mib:
        return None
    views = exact_views(recipe.augment)
    if views is None:
        watcher.say(
            "The teacher runs in every step: augment's scale, shift or colour make views that no bank can hold."
        )
        return None
    config, mimic = detector.spec, recipe.mimic
    height, width = (side // config.output_stride for side in config.size)
    levels = quantizer if sees_levels(mimic) else None
    layout = Layout(
        shape=(detector.backbone.channels, height, width),
        kind=_smallest(prepared, detector, levels) if levels else np.dtype(np.float32),
        proposals=config.post_nms if mimic.regions == "teacher" else 0,
    )
    records = views * len(prepared.train.samples)
    size = RecordFile.size(records, layout.bytes)
    if size > recipe.run.bank_mib << 20:
        watcher.say(
            f"The teacher runs in every step: its bank would take {size / 1e6:.0f} MB, above run.bank_mib="
            f"{recipe.run.bank_mib}."
        )
        return None
    # Convolutions may round otherwise for other batches, threads or versions.
    name = fingerprint(
        VERSION,
        key,
        prepared.key,
        quantizer.stride.tolist() if levels else None,
        [layout.shape, layout.kind.name, layout.proposals, views],
        [recipe.student.batch_size, prepared.accelerator.num_processes, torch.get_num_threads(), torch.__version__],
    )
    path = recipe.folder / "bank" / f"{name}.bin"
    watcher.say(
        f"The teacher bank: {size / 1e6:.1f} MB in {path}, {layout.bytes:,} bytes for each of {records:,} views, "
        "filled as they come up."
    )
    return Bank(path, records, layout, levels)


@torch.no_grad()
def _smallest(prepared: Prepared, detector: Detector, quantizer: Quantizer) -> np.dtype[np.uint8] | np.dtype[np.uint16]:
    """One byte where it holds every level of the first images; the few levels beyond it are computed each time."""
    highest = quantizer.config.upper or 0
    if not highest:
        for _, batch in zip(range(BATCHES_MEASURED), prepared.train.once(), strict=False):
            seen = detector.raw_features(batch.images.to(detector.anchors.device)).float()
            highest = max(highest, int(quantizer.levels(seen).max()))
    return np.dtype(np.uint8) if highest <= np.iinfo(np.uint8).max else np.dtype(np.uint16)
