"""What a student's stage needs to be taught: teacher, distiller, and a bank where one can serve."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qmimic.config import Recipe
from qmimic.data.augment import exact_views, ways_to_flip
from qmimic.data.records import RecordFile
from qmimic.detectors.build import build
from qmimic.detectors.detector import Detector
from qmimic.detectors.evaluation import level_rms
from qmimic.detectors.quantize import Quantizer
from qmimic.distill.bank import Bank, Layout, channels_last, layout_of, record_bytes
from qmimic.distill.distiller import Distiller, Sides, Target
from qmimic.distill.scales import Enlarger, of_scale
from qmimic.distill.teacher import DetectorTeacher, Teacher
from qmimic.errors import InputError
from qmimic.run.folder import BANK
from qmimic.run.keys import bank_key
from qmimic.run.prepare import Prepared
from qmimic.tables import DISTILLERS
from qmimic.training.loop import Watcher
from qmimic.training.step import DistillationObjective

BATCHES_MEASURED = 4


@dataclass(frozen=True)
class Lesson:
    """What a student is taught by. Networks are opened where they are needed: a finished student needs none.

    Attributes:
        key: of all that decides what the teacher sees.
        grid_key: of all that decides the quantizer.
        teacher: opens the teacher.
        quantizer: opens Q, with the stride s of the teacher's map.
    """

    key: str
    grid_key: str
    teacher: Callable[[], Teacher]
    quantizer: Callable[[], Quantizer]


def require_teachable(prepared: Prepared, teacher: Teacher | None = None) -> None:
    """Check that the recipe's distiller takes the run's two networks, before either is trained.

    Args:
        prepared: the run, with the arm's recipe.
        teacher: where it is opened and not trained.

    Raises:
        InputError: they have no level in common, are of kinds that it cannot compare, or lack what it needs.
    """
    recipe = prepared.recipe
    pruned = recipe.pruning.method != "none"  # then it is of the teacher's kind
    student = build(prepared.for_teacher().teacher_spec if pruned else prepared.spec(recipe.student.backbone))
    teacher = teacher or DetectorTeacher(build(prepared.for_teacher().teacher_spec), bf16=False)
    teacher = of_scale(teacher, recipe.teacher.scale)
    ones = tuple(torch.ones(()) for _ in teacher.strides)
    _distiller(
        recipe, student, _enlarger(recipe, student, teacher), teacher, ones, Quantizer(recipe.quantizer, torch.ones(1))
    )


def require_map(teacher: Teacher) -> None:
    """Check that there is something to imitate. Raises: InputError: the teacher shows no map."""
    if not teacher.strides:
        raise InputError(
            "A student imitates a map: name the output with the teacher's in teacher.maps, or set mimic.mode=none to "
            "learn from its labels alone (data.unlabelled)."
        )


def _enlarger(recipe: Recipe, student: Detector, teacher: Teacher) -> Enlarger | None:
    """What brings the student's map up to a teacher's that sees larger pictures; None where it sees the same ones."""
    if recipe.teacher.scale == 1:
        return None
    return Enlarger(student.channels, student.strides, teacher.strides)


def _distiller(
    recipe: Recipe,
    student: Detector,
    enlarger: Enlarger | None,
    teacher: Teacher,
    rms: tuple[Tensor, ...],
    quantizer: Quantizer,
) -> Distiller:
    """The recipe's distiller between two networks; errors as `require_teachable`."""
    kind = recipe.mimic.distiller
    require_map(teacher)
    sides = Sides.between(student, teacher, rms, quantizer, recipe.seed)
    if enlarger:
        sides = replace(sides, student_strides=enlarger.strides, enlarged=enlarger.level is not None)
    distiller: Distiller = DISTILLERS[kind](recipe.mimic, sides)
    if distiller.teacher_regions and not teacher.has_regions:
        raise InputError(
            f"mimic.distiller={kind} needs to know where the teacher sees objects, and teacher.kind="
            f"{recipe.teacher.kind} shows no regions: set mimic.regions=ground_truth or student, or name the output "
            "with its boxes (teacher.boxes, or teacher.rows)."
        )
    return distiller


def taught(prepared: Prepared, student: Detector, lesson: Lesson, watcher: Watcher) -> DistillationObjective:
    """A student's objective with a teacher.

    Args:
        prepared: the run, with the arm's recipe.
        student: before its first step.
        lesson: who teaches.
        watcher: told of the bank, or why there is none.

    Raises:
        InputError: the two networks do not go together, or the disk has no room for the bank.
    """
    recipe = prepared.recipe
    teacher = lesson.teacher()
    rms = tuple(one.square().mean().sqrt() for one in channel_rms(prepared, teacher))
    enlarger = _enlarger(recipe, student, teacher)
    distiller = _distiller(recipe, student, enlarger, teacher, rms, lesson.quantizer())
    bank = _bank(prepared, teacher, distiller, lesson.key, watcher)
    closing_from = recipe.student.closing_from
    return DistillationObjective(
        student,
        distiller,
        teacher,
        bank,
        recipe.mimic,
        recipe.augment,
        closing_from,
        scale=recipe.teacher.scale,
        enlarger=enlarger,
    )


def channel_rms(prepared: Prepared, teacher: Teacher) -> tuple[Tensor, ...]:
    """Root mean squares of every channel of a teacher's levels, float32 [C] each, over training pictures.

    They are measured in float32, however the teacher is computed in training.
    """
    exact = teacher.exact()
    loader = prepared.train.with_batch_size(prepared.recipe.student.batch_size)
    device = prepared.device
    return level_rms(lambda images: exact.look(images.to(device), False).features, loader)


def _bank(prepared: Prepared, teacher: Teacher, distiller: Distiller, key: str, watcher: Watcher) -> Bank | None:
    recipe = prepared.recipe
    views = exact_views(recipe.augment)
    limit = recipe.run.bank_mib << 20
    if not limit:
        return None
    if views is None:
        watcher.say(
            "The teacher runs in every step: with augment's scale, shift, colour or mosaic every view is a new one."
        )
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
    path = recipe.folder / BANK / f"{_name(prepared, distiller, layout, key)}.bin"
    watcher.say(
        f"The teacher bank: {size / 1e6:.1f} MB in {path}, {record_bytes(layout):,} bytes for each of "
        f"{records:,} views, filled as they come up."
    )
    return Bank(path, records, layout)


@torch.no_grad()
def _first_targets(prepared: Prepared, teacher: Teacher, distiller: Distiller) -> list[Target]:
    """Of the first images as they are, to learn how targets are stored."""
    device = prepared.device
    distiller = distiller.to(device)
    found = []
    for _, batch in zip(range(BATCHES_MEASURED), prepared.train.once(), strict=False):
        seen = teacher.look(batch.images.to(device), distiller.teacher_regions)
        found.append(channels_last(distiller.target(seen, batch.targets.to(device))))
    return found


def _name(prepared: Prepared, distiller: Distiller, layout: Layout, key: str) -> str:
    """A fingerprint of all that decides what is in a bank."""
    recipe = prepared.recipe
    content = [
        recipe.mimic.distiller,
        distiller.target_settings(),
        [[name, entry.shape, entry.kind, entry.levels is not None] for name, entry in layout.items()],
        {name: quantizer.stride.tolist() for name, quantizer in distiller.grids().items()},
        ways_to_flip(recipe.augment),  # which views there are, not only how many: they are numbered by these
    ]
    return bank_key(recipe, prepared.key, key, content, prepared.accelerator.num_processes, prepared.device)
