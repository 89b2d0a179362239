"""From the outputs of a foreign detector to what they hold: boxes, scores, objectness and class numbers.

Nothing is guessed: which output is what and how it lies stands in the recipe's `teacher` (`TeacherFileConfig`), and
what contradicts the file is refused.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from qmimic.config import TeacherFileConfig
from qmimic.config.teacher_file import KINDS_OF_OUTPUTS, OF_CENTRES, Column, names_of
from qmimic.distill.file_grids import by_cells, grids_of
from qmimic.errors import InputError

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

    def of(self, counted: Tensor) -> "Found":
        """The same, boxes NaN where `counted`, bool [B, N], is not."""
        return replace(self, boxes=self.boxes.masked_fill(~counted[..., None], torch.nan))

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

    def first(self, count: int) -> "Found":
        """Of the first pictures."""
        return self._together([self], lambda own: own[0][:count])


@dataclass(frozen=True)
class Level:
    """The outputs of one level, or of all levels together.

    Attributes:
        config: which output is what.
        names: of the outputs, by what they hold.
        given: the outputs by name, as they came.
        laid: the same; those on grids, and those of which the file says that they are [B, C, N], as [B, N, C].
        batch: B, pictures.
    """

    config: TeacherFileConfig
    names: Mapping[str, str]
    given: Mapping[str, Tensor]
    laid: Mapping[str, Tensor]
    batch: int

    def of(self, kind: str) -> Tensor:
        """The output that holds something."""
        return self.laid[self.names[kind]]

    def misshapen(self, kind: str, wanted: str) -> InputError:
        """The error about an output of another shape than declared."""
        name = self.names[kind]
        return InputError(f"The teacher's output {name!r} has shape {list(self.given[name].shape)}; {wanted}.")

    def one_a_box(self, kind: str, said: str, count: int) -> Tensor | None:
        """An output [B, N] or [N] of one number for each of N boxes, as [B, N]; None where none is named."""
        if kind not in self.names:
            return None
        if self.of(kind).numel() != self.batch * count:
            raise self.misshapen(kind, f"{said} of {count} boxes are [B, N] or [N]")
        return self.of(kind).reshape(self.batch, count)

    def batched(self, kind: str, values: Tensor) -> Tensor:
        """Values [B, N, ..] that a file of one picture may give as [N, ..]."""
        values = values[None] if values.ndim == 2 else values
        if len(values) != self.batch:
            raise InputError(
                f"The teacher's output {self.names[kind]!r} is of {len(values)} pictures, not of {self.batch}; export "
                "it for one picture, or for any number."
            )
        return values


def found_in(
    config: TeacherFileConfig,
    outputs: Mapping[str, Tensor],
    batch: int,
    size: tuple[int, int],
    transposed: Collection[str] = (),
) -> Found:
    """The boxes of one call of the file.

    Args:
        config: which output is what.
        outputs: by name, as they came: [B, N, ...], or [N, ...] of one picture; boxes and scores apart also [B, 4, N]
            and [B, K, N]; on grids also maps.
        batch: B, pictures of this call.
        size: height and width of its input, pixels.
        transposed: outputs apart of which the file itself says that they are [B, K, N].

    Raises:
        InputError: an output has another shape than the recipe says, or no box is a number.
    """
    given = {name: outputs[name].float() for name in config.outputs}
    grids = grids_of(config, size)
    levels = []
    for place in range(config.level_count):
        named = {kind: names_of(getattr(config, kind))[place : place + 1] for kind in KINDS_OF_OUTPUTS}
        names = {kind: one[0] for kind, one in named.items() if one}
        laid: Mapping[str, Tensor] = {
            name: own.transpose(1, 2) if name in transposed and own.ndim == 3 else own for name, own in given.items()
        }
        if grids:
            own = grids[place : place + 1] if config.level_count > 1 else grids
            lies = config.transposed, batch, config.anchors_first
            laid = {name: by_cells(name, given[name], own, *lies) for name in names.values()}
        level = Level(config, names, given, laid, batch)
        levels.append(_of_rows(level) if config.rows else _of_boxes(level))
    found = Found.beside(levels)
    counted = torch.ones(found.boxes.shape[:2], dtype=torch.bool)
    if config.counts:
        counted = torch.arange(counted.shape[1]) < _counts(config.counts, given[config.counts], found)[:, None]
    known = found.boxes[counted]
    if known.numel() and known.isnan().all():
        raise InputError(
            "The teacher's boxes are all NaN (not a number); check teacher.mean and teacher.std, which its pixels go "
            "through, or export it in float32."
        )
    return found.of(counted)


def _counts(name: str, given: Tensor, found: Found) -> Tensor:
    """How many of its boxes each picture has, [B]."""
    batch, most = found.boxes.shape[:2]
    if given.numel() != batch:
        raise InputError(
            f"The teacher's output {name!r} has shape {list(given.shape)}; numbers of boxes are [B] or [B, 1]."
        )
    strange = (given != given.round()) | (given < 0) | (given > most)
    if strange.any():
        raise InputError(
            f"The teacher's output {name!r} says {float(given[strange][0]):g}, where a picture has 0 to {most} boxes; "
            "check teacher.counts."
        )
    return given.reshape(batch)


def _of_boxes(level: Level) -> Found:
    """Of one level whose boxes and scores are apart."""
    boxes, wide = _of_halves(level) if "sizes" in level.names else level.of("boxes"), 4 * level.config.bins
    boxes = boxes.squeeze(2) if boxes.ndim == 4 else boxes  # one box for all classes
    if not level.config.grid_strides and boxes.ndim == 3 and boxes.shape[1] == wide != boxes.shape[2]:
        boxes = boxes.transpose(1, 2)  # [B, 4, N]
    if boxes.ndim not in (2, 3) or boxes.shape[-1] != wide:
        raise level.misshapen("boxes", _width_of_boxes(level.config, boxes.shape[-1] if boxes.ndim else 0))
    boxes = level.batched("boxes", boxes)
    count = boxes.shape[1]
    scores = None
    if "scores" in level.names:
        own = level.of("scores")
        if own.ndim == 3 and own.shape[2] == count != own.shape[1]:
            own = own.transpose(1, 2)  # [B, K, N]
        columns = own.shape[-1] if own.ndim == 3 or (own.ndim == 2 and boxes.shape[:2] != own.shape) else 1
        if own.numel() != level.batch * count * columns:
            raise level.misshapen("scores", f"scores of {count} boxes are [B, N], [B, N, K], [B, K, N] or [N]")
        scores = own.reshape(level.batch, count, columns)

    labels = level.one_a_box("labels", "class numbers", count)
    if labels is not None and scores is not None and scores.shape[2] != 1:
        raise level.misshapen("scores", f"with class numbers, scores of {count} boxes are [B, N] or [N]")
    return Found(boxes, scores, level.one_a_box("objectness", "numbers of objectness", count), labels)


def _of_halves(level: Level) -> Tensor:
    """Boxes [B, N, 4] on grids whose centres and sizes are apart."""
    for kind, said in (("boxes", "centres"), ("sizes", "widths and heights")):
        if level.of(kind).shape[-1] != 2:
            raise level.misshapen(kind, f"{said} are two numbers for each cell, where teacher.sizes is named")
    return torch.cat([level.of("boxes"), level.of("sizes")], -1)


def _width_of_boxes(config: TeacherFileConfig, width: int) -> str:
    """What is said of an output of boxes with another number of columns."""
    wide = 4 * config.bins
    if not config.grid_strides:
        return (
            "boxes are [B, N, 4], [B, 4, N] or [N, 4]; name an output of boxes and scores in teacher.rows, or the "
            "grids of boxes that the file does not decode in teacher.grid_strides"
        )
    if config.box_format == "distances" and width and width % 4 == 0:
        return f"it has {width} numbers for each box: set teacher.bins={width // 4}"
    if config.box_format in OF_CENTRES and width == 2:
        return "it has the two numbers of a centre: name the output of widths and heights in teacher.sizes"
    return f"teacher.boxes has {wide} numbers for each cell, and this one {width}; name another output"


def _of_rows(level: Level) -> Found:
    """Of one level whose boxes and scores stand in one output."""
    config, rows = level.config, level.of("rows")
    if rows.ndim == 4 and rows.shape[1] == 1 and not config.grid_strides:
        rows = rows.squeeze(1)  # as Caffe's and OpenVINO's last layer for detectors has them
    transposed = config.transposed and not config.grid_strides  # those on grids are laid out already
    columns = rows.shape[-2 if transposed else -1] if rows.ndim in (2, 3) else 0
    layout = config.row_layout
    widths = {**WIDTHS, "box": 4 * config.bins}
    classes = columns - sum(widths[column] for column in layout)
    named = columns - classes + len(config.classes)
    if config.box_format == "distances" and (config.classes or "scores" not in layout):
        left = columns - named + widths["box"] if "scores" in layout else classes + widths["box"]
        if left != widths["box"] and left > 0 and left % 4 == 0:
            raise level.misshapen(
                "rows",
                f"after all else that teacher.row_layout and teacher.classes name, {left} columns are left for a box: "
                f"set teacher.bins={left // 4}, or correct these two",
            )
    if (classes < 1) if "scores" in layout else classes:
        wanted = f"{columns - classes} columns" + (" and one a class" if "scores" in layout else "")
        lying = "[B, columns, N]" if transposed else "[B, N, columns]"
        raise level.misshapen("rows", f"with teacher.row_layout=[{', '.join(layout)}] it is {lying} of {wanted}")
    if "scores" in layout and config.classes and rows.shape[-1 if transposed else -2] == named != columns:
        raise level.misshapen(
            "rows",
            f"{named} columns, as teacher.row_layout and teacher.classes say, lie on its other side: set "
            f"teacher.transposed={str(not transposed).lower()}",
        )
    rows = level.batched("rows", rows)
    rows = rows.transpose(1, 2) if transposed else rows
    parts = rows.split([classes if column == "scores" else widths[column] for column in layout], 2)
    own = dict(zip(layout, parts, strict=True))

    def one(column: Column) -> Tensor | None:
        return own[column][..., 0] if column in own else None

    labels = one("label") if "label" in own else level.one_a_box("labels", "class numbers", rows.shape[1])
    return Found(own["box"], own["scores"] if "scores" in own else own["score"], one("objectness"), labels)
