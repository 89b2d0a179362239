"""What a student's stage needs to be taught: teacher, distiller, and a bank where one can serve."""

import torch

from qmimic.data.augment import exact_views
from qmimic.data.records import RecordFile
from qmimic.detectors.detector import Detector
from qmimic.detectors.evaluation import level_rms
from qmimic.detectors.quantize import Quantizer
from qmimic.distill.bank import Bank, Layout, channels_last, layout_of, record_bytes
from qmimic.distill.distiller import Distiller, Sides, Target
from qmimic.distill.teacher import DetectorTeacher, Teacher
from qmimic.run.keys import bank_key
from qmimic.run.prepare import Prepared
from qmimic.tables import DISTILLERS
from qmimic.training.loop import Watcher
from qmimic.training.step import DistillationObjective

BATCHES_MEASURED = 4


def taught(
    prepared: Prepared, student: Detector, master: Detector, key: str, quantizer: Quantizer, watcher: Watcher
) -> DistillationObjective:
    """A student's objective with a teacher.

    Args:
        prepared: the run, with the arm's recipe.
        student: before its first step.
        master: the teacher, on the run's device.
        key: of the teacher's stage.
        quantizer: Q of the loss, with the teacher's stride s.
        watcher: told of the bank, or why there is none.

    Raises:
        InputError: the two networks do not go together, or the disk has no room for the bank.
    """
    recipe = prepared.recipe
    teacher = DetectorTeacher(master, prepared.bf16(recipe.teacher.backbone))
    rms = level_rms(master, prepared.train.with_batch_size(recipe.student.batch_size))
    sides = Sides(
        student_channels=student.channels,
        teacher_channels=teacher.channels,
        student_strides=student.strides,
        teacher_strides=teacher.strides,
        rms=tuple(one.square().mean().sqrt() for one in rms),
        quantizer=quantizer,
        size=student.spec.size,
        seed=recipe.seed,
    )
    distiller = DISTILLERS[recipe.mimic.distiller](recipe.mimic, sides)
    bank = _bank(prepared, teacher, distiller, key, watcher)
    return DistillationObjective(student, distiller, teacher, bank, recipe.mimic, recipe.augment)


def _bank(prepared: Prepared, teacher: Teacher, distiller: Distiller, key: str, watcher: Watcher) -> Bank | None:
    recipe = prepared.recipe
    views = exact_views(recipe.augment)
    limit = recipe.run.bank_mib << 20
    if not limit:
        return None
    if views is None:
        watcher.say("The teacher runs in every step: with augment's scale, shift or colour every view is a new one.")
        return None
    records = views * len(prepared.train.samples)
    layout = layout_of(_first_targets(prepared, teacher, distiller), distiller.grids())
    size = RecordFile.size(records, record_bytes(layout))
    if size > limit:
        watcher.say(
            f"The teacher runs in every step: its bank would take {size / 1e6:.0f} MB, above run.bank_mib="
            f"{recipe.run.bank_mib}."
        )
        return None
    path = recipe.folder / "bank" / f"{_name(prepared, distiller, layout, views, key)}.bin"
    watcher.say(
        f"The teacher bank: {size / 1e6:.1f} MB in {path}, {record_bytes(layout):,} bytes for each of "
        f"{records:,} views, filled as they come up."
    )
    return Bank(path, records, layout)


@torch.no_grad()
def _first_targets(prepared: Prepared, teacher: Teacher, distiller: Distiller) -> list[Target]:
    """Of the first images as they are, to learn how targets are stored."""
    device = prepared.accelerator.device
    distiller = distiller.to(device)
    found = []
    for _, batch in zip(range(BATCHES_MEASURED), prepared.train.once(), strict=False):
        seen = teacher.look(batch.images.to(device), distiller.teacher_regions)
        found.append(channels_last(distiller.target(seen, batch.targets.to(device))))
    return found


def _name(prepared: Prepared, distiller: Distiller, layout: Layout, views: int, key: str) -> str:
    """A fingerprint of all that decides what is in a bank."""
    recipe = prepared.recipe
    content = [
        recipe.mimic.distiller,
        distiller.target_settings(),
        [[name, entry.shape, entry.kind, entry.levels is not None] for name, entry in layout.items()],
        {name: quantizer.stride.tolist() for name, quantizer in distiller.grids().items()},
        views,
    ]
    return bank_key(recipe, prepared.key, key, content, prepared.accelerator.num_processes)
