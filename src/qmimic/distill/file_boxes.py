"""From the outputs of a foreign detector, as a recipe declares them, to boxes, scores and classes of ours.

Nothing is guessed: layout, format and unit of boxes, what makes scores of its numbers and whose scores they are stand
in the recipe's `teacher` (`TeacherFileConfig`), and what contradicts the file is refused.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from qmimic.config import TeacherFileConfig
from qmimic.config.teacher_file import Column, names_of
from qmimic.detections import Detections
from qmimic.distill.file_grids import by_cells, decoded, grids_of
from qmimic.errors import InputError
from qmimic.tables import near

MOST_LOGIT, MOST_SHARE = 60.0, 4.0  # of numbers that can be what the recipe says
SEVERAL = 16  # scores, which are not between 0 and 1 by chance
KINDS_OF_OUTPUTS = ("rows", "boxes", "scores", "objectness", "labels")
LEAST_SCORE, MOST_BOXES = 0.01, 300  # of a picture's detections
WIDTHS: Mapping[Column, int] = {"box": 4, "scores": 0, "score": 1, "label": 1, "objectness": 1, "skip": 1}  # columns


@dataclass(frozen=True)
class Found:
    """What a file says of some pictures, before anything is made of it.

    Attributes:
        boxes: float32 [B, N, 4], as they stand in the file, [B, N, 4 * bins] of distributions; NaN where a picture has
            fewer than others.
        scores: float32 [B, N, K], one for each class, or one for all (K = 1); None of a file without scores.
        objectness: float32 [B, N], by which they are multiplied; None of a file without.
        labels: float32 [B, N], class numbers; None where scores are by class.
    """

    boxes: Tensor
    scores: Tensor | None = None
    objectness: Tensor | None = None
    labels: Tensor | None = None

    @property
    def columns(self) -> int | None:
        """For how many classes there are scores; None where boxes have numbers of classes, or no scores."""
        return None if self.scores is None or self.labels is not None else self.scores.shape[2]

    @classmethod
    def joined(cls, parts: Sequence["Found"]) -> "Found":
        """Of several batches, padded to the most boxes of one."""
        most = max(part.boxes.shape[1] for part in parts)

        def padded(values: Tensor) -> Tensor:
            filler = values.new_full((len(values), most - values.shape[1], *values.shape[2:]), torch.nan)
            return torch.cat([values, filler], 1)

        return cls._together(parts, lambda own: torch.cat([padded(one) for one in own]))

    @classmethod
    def beside(cls, levels: Sequence["Found"]) -> "Found":
        """Of several levels of the same pictures, one after another.

        Raises:
            InputError: they have scores of different classes.
        """
        if len({level.columns for level in levels}) > 1:
            counts = ", ".join(str(level.columns) for level in levels)
            raise InputError(
                f"The teacher's levels have scores of {counts} classes; name outputs of one kind in teacher.scores."
            )
        return cls._together(levels, lambda own: torch.cat(list(own), 1))

    @classmethod
    def _together(cls, parts: Sequence["Found"], join: Callable[[Sequence[Tensor]], Tensor]) -> "Found":
        def of(name: str) -> Tensor | None:
            own = [getattr(part, name) for part in parts]
            return None if own[0] is None else join(own)

        boxes = of("boxes")
        assert boxes is not None, "every file has boxes"
        return cls(boxes, of("scores"), of("objectness"), of("labels"))


def found_in(config: TeacherFileConfig, outputs: Mapping[str, Tensor], batch: int, size: tuple[int, int]) -> Found:
    """The boxes of one call of the file.

    Args:
        config: which output is what.
        outputs: by name, as they came: [B, N, ...], or [N, ...] of one picture; on grids also maps.
        batch: B, pictures of this call.
        size: height and width of its input, pixels.

    Raises:
        InputError: an output has another shape than the recipe says.
    """
    own = {name: outputs[name].float() for name in config.outputs}
    grids = grids_of(config, size)
    levels = []
    for place in range(config.level_count):
        named = {kind: names_of(getattr(config, kind))[place : place + 1] for kind in KINDS_OF_OUTPUTS}
        names = {kind: one[0] for kind, one in named.items() if one}
        if grids:
            level = grids[place : place + 1] if config.level_count > 1 else grids
            laid = {name: by_cells(name, own[name], level, config.transposed, batch) for name in names.values()}
            own = {**own, **laid}
        levels.append((_of_rows if config.rows else _of_boxes)(config, names, own, batch))
    return Found.beside(levels)


def _of_boxes(config: TeacherFileConfig, names: Mapping[str, str], outputs: Mapping[str, Tensor], batch: int) -> Found:
    """Of one level whose boxes and scores are apart."""
    boxes = outputs[names["boxes"]]
    boxes = boxes.squeeze(2) if boxes.ndim == 4 else boxes  # one box for all classes
    wide = 4 * config.bins
    if boxes.ndim not in (2, 3) or boxes.shape[-1] != wide:
        bins = "" if wide == 4 else f", of {config.bins} bins a side"
        raise _misshapen(
            names["boxes"],
            boxes,
            f"boxes are [B, N, {wide}] or [N, {wide}]{bins}; name an output of boxes and scores in teacher.rows",
        )
    boxes = _of_batch(names["boxes"], boxes, batch)
    count = boxes.shape[1]
    scores = labels = None
    if "scores" in names:
        own = outputs[names["scores"]]
        columns = own.shape[-1] if own.ndim == 3 or (own.ndim == 2 and boxes.shape[:2] != own.shape) else 1
        if own.numel() != batch * count * columns:
            raise _misshapen(names["scores"], own, f"scores of {count} boxes are [B, N], [B, N, K] or [N]")
        scores = own.reshape(batch, count, columns)

    def one_a_box(kind: str, said: str) -> Tensor | None:
        if kind not in names:
            return None
        numbers = outputs[names[kind]]
        if numbers.numel() != batch * count:
            raise _misshapen(names[kind], numbers, f"{said} of {count} boxes are [B, N] or [N]")
        return numbers.reshape(batch, count)

    labels = one_a_box("labels", "class numbers")
    if labels is not None and scores is not None and scores.shape[2] != 1:
        raise _misshapen(names["scores"], scores, f"with class numbers, scores of {count} boxes are [B, N] or [N]")
    return Found(boxes, scores, one_a_box("objectness", "numbers of objectness"), labels)


def _of_rows(config: TeacherFileConfig, names: Mapping[str, str], outputs: Mapping[str, Tensor], batch: int) -> Found:
    """Of one level whose boxes and scores stand in one output."""
    name, rows = names["rows"], outputs[names["rows"]]
    transposed = config.transposed and not config.grid_strides  # those on grids are laid out already
    columns = rows.shape[-2 if transposed else -1] if rows.ndim in (2, 3) else 0
    layout = config.row_layout
    widths = {**WIDTHS, "box": 4 * config.bins}
    classes = columns - sum(widths[column] for column in layout)
    if (classes < 1) if "scores" in layout else classes:
        wanted = f"{columns - classes} columns" + (" and one a class" if "scores" in layout else "")
        lying = "[B, columns, N]" if transposed else "[B, N, columns]"
        raise _misshapen(name, rows, f"with teacher.row_layout=[{', '.join(layout)}] it is {lying} of {wanted}")
    named = columns - classes + len(config.classes)
    if "scores" in layout and config.classes and rows.shape[-1 if transposed else -2] == named != columns:
        raise _misshapen(
            name,
            rows,
            f"{named} columns, as teacher.row_layout and teacher.classes say, lie on its other side: set "
            f"teacher.transposed={str(not transposed).lower()}",
        )
    rows = _of_batch(name, rows, batch)
    rows = rows.transpose(1, 2) if transposed else rows
    parts = rows.split([classes if column == "scores" else widths[column] for column in layout], 2)
    own = dict(zip(layout, parts, strict=True))

    def one(column: Column) -> Tensor | None:
        return own[column][..., 0] if column in own else None

    return Found(own["box"], own["scores"] if "scores" in own else own["score"], one("objectness"), one("label"))


def _of_batch(name: str, values: Tensor, batch: int) -> Tensor:
    """Values [B, N, ..] that a file of one picture may give as [N, ..]."""
    values = values[None] if values.ndim == 2 else values
    if len(values) != batch:
        raise InputError(f"The teacher's output {name!r} is of {len(values)} pictures, not of {batch}.")
    return values


def _misshapen(name: str, values: Tensor, wanted: str) -> InputError:
    return InputError(f"The teacher's output {name!r} has shape {list(values.shape)}; {wanted}.")


def corners(boxes: Tensor, config: TeacherFileConfig, size: tuple[int, int]) -> Tensor:
    """Boxes as the file has them, as xyxy in pixels of its input, float32 [..., 4]; not clipped.

    Args:
        boxes: of the file, [..., 4]; on grids [..., N, 4 * bins] with all their cells.
        config: `box_format` and `box_unit`, and the grids.
        size: height and width of its input, pixels.
    """
    if config.grid_strides:
        return decoded(boxes, config, size)
    first, second = boxes[..., :2], boxes[..., 2:]
    if config.box_format == "cxcywh":
        first, second = first - second / 2, first + second / 2
    elif config.box_format == "xywh":
        second = first + second
    elif config.box_format == "yxyx":
        first, second = first.flip(-1), second.flip(-1)
    found = torch.cat([first, second], -1)
    return found * found.new_tensor([size[1], size[0]] * 2) if config.box_unit == "shares" else found


def clipped(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes [..., 4] cut at the picture, and which of them are boxes then, bool [...]."""
    inside = boxes.clamp(min=0).minimum(boxes.new_tensor([size[1], size[0]] * 2))
    return inside, inside.isfinite().all(-1) & (inside[..., 2:] > inside[..., :2]).all(-1)


def scores_of(found: Found, config: TeacherFileConfig, valid: Tensor) -> Tensor:
    """Scores of classes, float32 [B, N, K], 0..1, and down to -1 where a file marks what it suppressed.

    Args:
        found: with scores.
        config: what makes them.
        valid: bool [B, N]; what only fills up a list may have any score.

    Raises:
        InputError: those of the others are not from 0 to 1, or were so before they were made scores of.
    """
    assert found.scores is not None, "the file has scores"

    def activated(values: Tensor) -> Tensor:
        if config.activation == "softmax":
            return values.softmax(-1)
        return values.sigmoid() if config.activation == "sigmoid" else values

    raw = found.scores[valid]
    if config.activation != "none" and raw.numel() >= SEVERAL and float(raw.min()) >= 0 and float(raw.max()) <= 1:
        raise InputError(
            f"The teacher's scores go from {float(raw.min()):.3g} to {float(raw.max()):.3g} as they stand in the file; "
            f"set teacher.activation=none instead of {config.activation}."
        )
    scores = activated(found.scores)
    if found.objectness is not None:
        own = found.objectness.sigmoid() if config.activation != "none" else found.objectness
        scores = scores * own[..., None]
    known = scores[valid]
    if len(known) and not (float(known.min()) >= -1.0001 and float(known.max()) <= 1.0001):
        mended = "set teacher.activation to sigmoid or softmax"
        if max(-float(known.min()), float(known.max())) > MOST_LOGIT:
            mended = f"these are not scores; check {'teacher.row_layout' if config.rows else 'teacher.scores'}"
        raise InputError(
            f"The teacher's scores go from {float(known.min()):.3g} to {float(known.max()):.3g}, not from 0 to 1; "
            f"{mended}."
        )
    return scores


def class_places(config: TeacherFileConfig, columns: int | None, classes: Sequence[str]) -> tuple[int, ...]:
    """The data's label for each of the file's classes, -1 for those that are left out.

    Args:
        config: `classes` and `drop_other_classes`.
        columns: for how many classes the file has scores; None where it gives numbers of classes.
        classes: the data's.

    Raises:
        InputError: the file has more or fewer classes than are named, or one that the data lack.
    """
    if not config.classes or (columns is not None and columns != len(config.classes)):
        has = "numbers of classes" if columns is None else f"{columns} scores of classes"
        named = f"names {len(config.classes)}" if config.classes else "names none"
        raise InputError(
            f"The teacher's boxes have {has} and teacher.classes {named}; write there the data's name of each in the "
            f"file's order, or null for what is none of theirs ({', '.join(classes)})"
            f"{', or change teacher.row_layout' if config.rows else ''}."
        )
    strange = [name for name in config.classes if name is not None and name not in classes]
    if strange and not config.drop_other_classes:
        meant = near(strange[0], classes)
        hint = f" (did you mean {meant} by {strange[0]}?)" if meant else ""
        raise InputError(
            f"The teacher has classes that the data lack: {', '.join(strange)}{hint}; the data have "
            f"{', '.join(classes)}. Write null in their places of teacher.classes, or set "
            "teacher.drop_other_classes=true to leave out such boxes."
        )
    places = tuple(classes.index(name) if name in classes else -1 for name in config.classes)
    if max(places) < 0:
        raise InputError(
            f"None of teacher.classes is one of the data's ({', '.join(classes)}): nothing would be labelled."
        )
    return places


def detections(
    found: Found, config: TeacherFileConfig, places: Sequence[int], size: tuple[int, int]
) -> list[Detections]:
    """Detections in each picture, boxes in pixels of the file's input; one class a box, that of the highest score.

    Args:
        found: of B pictures, with scores.
        config: what stands in the file.
        places: from `class_places`.
        size: height and width of its input, pixels.

    Raises:
        InputError: scores are not from 0 to 1, shares are pixels, or a class has a number that is not named.
    """
    known_ones = found.boxes[found.boxes.isfinite().all(-1)]
    if config.box_unit == "shares" and len(known_ones) and float(known_ones.amax(-1).median()) > MOST_SHARE:
        raise InputError(
            f"Most of the teacher's boxes have a number above {MOST_SHARE:g}, so they are in pixels; set "
            "teacher.box_unit=pixels."
        )
    boxes, valid = clipped(corners(found.boxes, config, size), size)
    scores, known = scores_of(found, config, valid), torch.tensor(places)
    if found.labels is None:
        best, columns = scores.masked_fill(known < 0, -1).max(2)
    else:
        best, numbers = scores[..., 0], found.labels.nan_to_num(0)
        strange = (numbers < 0) | (numbers >= len(places)) | (numbers != numbers.round())
        wrong = numbers[valid & (best >= LEAST_SCORE) & strange]  # what only fills up a list may have any number
        if len(wrong):
            raise InputError(
                f"A box of the teacher has the class number {float(wrong[0]):g}, and teacher.classes names those from "
                f"0 to {len(places) - 1}; name all of them there, null for what is no class of the data."
            )
        columns = numbers.clamp(0, len(places) - 1).long()
    labels = known[columns]
    valid &= (labels >= 0) & (best >= LEAST_SCORE)
    found_ones = []
    for own, mine, kinds, keep in zip(boxes, best, labels, valid, strict=True):
        own, mine, kinds = own[keep], mine[keep], kinds[keep]
        order = mine.argsort(descending=True, stable=True)
        if config.suppress < 1:
            order = batched_nms(own, mine, kinds, config.suppress)
        order = order[:MOST_BOXES]
        found_ones.append(Detections(own[order].numpy(), mine[order].numpy(), kinds[order].numpy()))
    return found_ones
