"""A teacher that is a file: opened, and what a user should know of its maps and regions before a student is trained."""

from dataclasses import dataclass

import torch

from qmimic.boxes import iou
from qmimic.detectors.quantize import Quantizer, absolute_stride
from qmimic.detectors.rpn import first
from qmimic.distill.regions import POSITIVE_IOU
from qmimic.distill.scales import of_scale
from qmimic.distill.teacher import Teacher
from qmimic.errors import InputError
from qmimic.run.keys import opened_key
from qmimic.run.prepare import Prepared
from qmimic.run.teaching import Lesson, channel_rms
from qmimic.tables import DISTILLERS, TEACHERS

NOTABLE = 0.01  # share of a map's squares
OBJECTS_MEASURED, FEW_OBJECTS = 200, 20  # of val, on which a file's regions are measured, and below which none tells


@dataclass(frozen=True)
class OpenedTeacher:
    """A teacher that the run did not train.

    Attributes:
        teacher: looks at pictures.
        key: of all that decides what it sees and how that is quantized.
        quantizer: Q, with the stride s of its maps.
    """

    teacher: Teacher
    key: str
    quantizer: Quantizer

    def lesson(self, prepared: Prepared) -> Lesson:
        """The same for every student."""
        teacher = of_scale(self.teacher, prepared.recipe.teacher.scale)
        return Lesson(self.key, self.key, lambda: teacher, lambda: self.quantizer)


def open_teacher(prepared: Prepared) -> OpenedTeacher:
    """The recipe's teacher, where it is a file.

    Raises:
        InputError: it cannot be opened, or does not fit the recipe.
    """
    recipe = prepared.recipe
    kind = recipe.teacher.kind
    if recipe.quantizer.per_channel:
        raise InputError(f"quantizer.per_channel=true needs teacher.kind=detector; it is {kind}.")
    teacher: Teacher = TEACHERS[kind](recipe.teacher, recipe.data.size)
    if not teacher.channels and (recipe.student.quantize_map or "quantized" in recipe.baselines):
        raise InputError(
            "student.quantize_map takes its grid from the teacher's map: name the output with it in teacher.maps, or "
            "set student.quantize_map=false and leave quantized out of baselines."
        )
    levels = channel_rms(prepared, teacher) if teacher.channels else (torch.ones(1),)
    for name, level in zip(recipe.teacher.maps, levels, strict=False):
        if not level.isfinite().all():
            raise InputError(f"The map {name!r} has NaN or infinite values on training pictures; name another map.")
        if not level.any():
            raise InputError(f"The map {name!r} is 0 everywhere on training pictures; name another map.")
    quantizer = Quantizer(recipe.quantizer, absolute_stride(recipe.quantizer, torch.cat(levels)))
    return OpenedTeacher(teacher, opened_key(recipe, prepared.key), quantizer)


@torch.no_grad()
def remarks_on_maps(prepared: Prepared, opened: OpenedTeacher) -> list[str]:
    """Sentences on maps of a file with much below 0, which neither a quantized map nor an adaptor with a ReLU has.

    Raises:
        InputError: a map has nothing above 0, so that nothing would be left of it.
    """
    found: list[str] = []
    names, mimic = prepared.recipe.teacher.maps, prepared.recipe.mimic
    if not names or mimic.mode == "none" or (mimic.mode == "mimic" and not mimic.adaptor_relu):
        return found
    images = next(iter(prepared.train.once())).images
    for name, map_ in zip(names, opened.teacher.look(images, False).features.maps, strict=True):
        values = map_.double()
        lost = float(values.clamp(max=0).square().sum() / values.square().sum())
        if lost == 1:
            raise InputError(f"The map {name!r} has nothing above 0, as Q and the adaptor need it; name another map.")
        if lost > NOTABLE:
            share = float((values < 0).double().mean())
            found.append(
                f"{100 * share:.0f} % of the entries of {name} are below 0 ({100 * lost:.0f} % of its squares), which "
                "Q and the adaptor's ReLU make 0: name a map behind a ReLU, or compare it as it is by "
                "mimic.mode=mimic mimic.adaptor_relu=false."
            )
    return found


@torch.no_grad()
def remarks_on_regions(prepared: Prepared, opened: OpenedTeacher) -> list[str]:
    """A sentence on how many of val's objects lie in the regions of a file, where a student imitates it on these.

    Raises:
        InputError: none does, though there are enough to tell, and no labelled box is added to them.
    """
    recipe = prepared.recipe
    on_regions = [
        own.mimic
        for own in recipe.students.values()
        if own.mimic.mode != "none"
        and own.mimic.regions == "teacher"
        and "regions" in DISTILLERS[own.mimic.distiller].reads
    ]
    names = recipe.teacher.classes
    known = [place for place, name in enumerate(prepared.dataset.classes) if not names or name in names]
    if not (recipe.teacher.maps and opened.teacher.has_regions and on_regions and known):
        return []
    most = max(own.region_count for own in on_regions)
    objects = held = 0
    for batch in prepared.val.once():
        truth = batch.targets
        own = torch.isin(truth.labels, torch.tensor(known))
        seen = opened.teacher.look(batch.images, True).regions
        assert seen is not None, "its boxes are named"
        regions = first(seen.boxes, seen.valid, most)
        overlap = iou(truth.boxes, regions.boxes) * regions.valid[:, None]
        objects += int(own.sum())
        held += int((own & (overlap.amax(2) >= POSITIVE_IOU)).sum())
        if objects >= OBJECTS_MEASURED:
            break
    said = (
        f"The teacher's regions, the first {most} of each picture, hold {held} of {objects} objects of val (IoU "
        f"{POSITIVE_IOU:g})"
    )
    if held or objects < FEW_OBJECTS:
        return [f"{said}."]
    said += (
        ": check teacher.box_format, box_unit, mean, std and bgr and the names of its outputs, or set "
        "mimic.regions=ground_truth."
    )
    if all(own.with_truth for own in on_regions):
        return [said]
    raise InputError(said)
