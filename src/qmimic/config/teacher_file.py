"""A teacher that is a file: which of its outputs is what, and what its numbers mean, as nothing in the file says."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from qmimic.config.base import Advanced, Section

Pixels = Annotated[int, Field(ge=16, le=4096)]
Column = Literal["box", "scores", "score", "label", "objectness", "skip"]


def _as_text(value: Any) -> Any:
    """A name that YAML reads as a number, as exporters number what they do not name."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _whole(value: float) -> float:
    """The same as an int where it is whole."""
    return int(value) if value == int(value) else value


Name = Annotated[str, BeforeValidator(_as_text)]
Outputs = Name | tuple[Name, ...]  # of an ONNX file: one for all boxes, or one for each level
KINDS_OF_OUTPUTS = ("rows", "boxes", "sizes", "scores", "objectness", "labels")
NAMED = (*KINDS_OF_OUTPUTS, "counts")  # of which each level has its own, and one of all
Anchor = tuple[Annotated[float, Field(gt=0, le=65536)], Annotated[float, Field(gt=0, le=65536)]]
Stride = Annotated[int | float, Field(ge=1, le=1024), AfterValidator(_whole)]
Variance = Annotated[float, Field(gt=0, le=100)]
MOST_GRIDS, MOST_ANCHORS = 16, 64
OF_DELTAS = ("deltas", "yx_deltas")
OF_ANCHORS = (*OF_DELTAS, "yolov3", "yolov5")  # formats of boxes that are measured from anchors
OF_CENTRES = ("offsets", "centres")
OF_POINTS = ("distances", *OF_CENTRES)
OF_GRIDS = (*OF_POINTS, *OF_ANCHORS)  # formats of boxes that are measured from the cell on which they lie
FROM_CORNERS = ("yolov3", "yolov5")  # of a cell, as the format has it


class TeacherFileConfig(Section):
    """A teacher that is a file: what its outputs are, which nothing in the file says."""

    file: Advanced[str | None] = Field(None, description="onnx: the teacher's file")
    size: Advanced[tuple[Pixels, Pixels] | None] = Field(
        None, description="onnx: height and width of the pictures that it labels, where it has no map; null: data.size"
    )
    inputs: Advanced[dict[str, Any]] = Field(
        {}, description="onnx: what it takes beside the picture, by name: numbers for each picture, or one everywhere"
    )
    maps: Advanced[tuple[Name, ...]] = Field(
        (), description="onnx: its maps, by growing stride: outputs, or what it computes on the way"
    )
    boxes: Advanced[Outputs | None] = Field(
        None, description="onnx: output of boxes, see box_format and box_unit; a list where each level has its own"
    )
    sizes: Advanced[Outputs | None] = Field(
        None, description="onnx: output of widths and heights, where teacher.boxes has centres alone, as CenterNet"
    )
    scores: Advanced[Outputs | None] = Field(
        None, description="onnx: output of their scores, one a box or one a class; boxes are ordered by the best"
    )
    objectness: Advanced[Outputs | None] = Field(
        None, description="onnx: output of numbers by which scores are multiplied, one a box"
    )
    labels: Advanced[Outputs | None] = Field(
        None,
        description="onnx: output of class numbers, where scores has one a box, or beside rows of a box and a score",
    )
    rows: Advanced[Outputs | None] = Field(None, description="onnx: one output of boxes and scores, in place of these")
    counts: Advanced[Name | None] = Field(
        None, description="onnx: output of how many boxes each picture has, where more than these stand in the file"
    )
    row_layout: Advanced[tuple[Column, ...]] = Field(
        (),
        description="onnx: what stands in each of teacher.rows, in order: box, then scores (one a class), or score and "
        "label; objectness, by which scores are multiplied; skip",
    )
    transposed: Advanced[bool] = Field(
        False,
        description="onnx: in teacher.rows, or on its grids, a box is a column, as in B x 84 x N, and not a row",
    )
    box_format: Advanced[
        Literal[
            "xyxy",
            "yxyx",
            "cxcywh",
            "xywh",
            "distances",
            "offsets",
            "centres",
            "deltas",
            "yx_deltas",
            "yolov3",
            "yolov5",
        ]
    ] = Field(
        "xyxy",
        description="onnx: the four numbers of a box: corners, or centre or corner with width and height; on its grids "
        "distances (left, top, right, bottom), offsets (centre, and logarithms of width and height) or centres "
        "(centre, width and height) from a point; from anchors deltas (as SSD, RetinaNet), yx_deltas (y and height "
        "first, as TensorFlow), or as YOLOv2 to v4 or YOLOv5 to v7 have them",
    )
    box_unit: Advanced[Literal["pixels", "shares", "strides"]] = Field(
        "pixels",
        description="onnx: pixels of its input, shares of its input's width and height, or strides of its grids",
    )
    grid_strides: Advanced[tuple[Stride, ...]] = Field(
        (),
        description="onnx: strides of the grids on whose cells its boxes lie, in their order, where the file does not "
        "decode them; 300 / 19 pixels are 15.789",
    )
    grid_point: Advanced[float | None] = Field(
        None, ge=0, le=1, description="onnx: where in a grid's cell its point lies; 0: corner, 0.5: centre"
    )
    cell_boxes: Advanced[int] = Field(
        1, ge=1, le=MOST_ANCHORS, description="onnx: boxes on each cell, where they are not measured from anchors"
    )
    anchors: Advanced[tuple[tuple[Anchor, ...], ...]] = Field(
        (),
        description="onnx: widths and heights of the anchors on a cell, pixels of its input, a list for each grid",
    )
    anchors_first: Advanced[bool] = Field(
        False,
        description="onnx: in a list, the first anchor on all cells of a grid comes first, and not all anchors on the "
        "first cell",
    )
    centre_scales: Advanced[tuple[Annotated[float, Field(ge=1, le=2)], ...]] = Field(
        (),
        description="onnx: for each grid, by which the shift of a centre in its cell is stretched, as YOLOv4 has it: "
        "1.2, 1.1, 1.05; none: 1",
    )
    variances: Advanced[tuple[Variance, Variance, Variance, Variance]] = Field(
        (1, 1, 1, 1), description="onnx: by which deltas are multiplied, in their order; SSD has 0.1, 0.1, 0.2, 0.2"
    )
    bins: Advanced[int] = Field(
        1, ge=1, le=64, description="onnx: numbers of a distance, whose softmax weights 0, 1, 2, ..; 1: the distance"
    )
    peaks: Advanced[bool] = Field(
        False,
        description="onnx: a score counts only where none of its class on the 8 cells around is higher, as CenterNet",
    )
    activation: Advanced[Literal["none", "sigmoid", "softmax"]] = Field(
        "none", description="onnx: what makes its scores ones from 0 to 1"
    )
    objectness_activation: Advanced[Literal["none", "sigmoid"] | None] = Field(
        None, description="onnx: the same of objectness; null: as activation has it, sigmoid beside softmax"
    )
    suppress: Advanced[float] = Field(
        0.5, gt=0, le=1, description="onnx: largest IoU of two of its boxes of a class; 1: all stay"
    )
    classes: Advanced[tuple[Name | None, ...]] = Field(
        (), description="onnx: class of each score or class number, by the data's names; null: left out, as background"
    )
    drop_other_classes: Advanced[bool] = Field(
        False, description="onnx: leave out its boxes of classes that the data lack, instead of refusing it"
    )
    mean: Advanced[tuple[float, float, float]] = Field((0, 0, 0), description="onnx: subtracted from pixels 0..255")
    std: Advanced[tuple[float, float, float]] = Field(
        (255, 255, 255), description="onnx: by which they are then divided"
    )
    bgr: Advanced[bool] = Field(False, description="onnx: whether it takes blue, green, red")
    layout: Advanced[Literal["nchw", "nhwc"] | None] = Field(
        None,
        description="onnx: whether its pictures have colours before rows and columns or after them; null: as the shape "
        "of its input says",
    )

    @property
    def outputs(self) -> tuple[str, ...]:
        """Every output that is named for boxes."""
        return tuple(name for kind in NAMED for name in names_of(getattr(self, kind)))

    @property
    def has_objectness(self) -> bool:
        """Whether it says how sure it is that there is an object at all."""
        return bool(self.objectness) or "objectness" in self.row_layout

    @property
    def objectness_needs_sigmoid(self) -> bool:
        """Whether the file gives logits of objectness."""
        return (self.objectness_activation or self.activation) != "none"

    @property
    def level_count(self) -> int:
        """In how many outputs the boxes lie: each level's own, or all of them in one."""
        return len(names_of(self.rows or self.boxes))


def names_of(outputs: Outputs | None) -> tuple[str, ...]:
    """The outputs of each level, in order, as a recipe names them; none where it names none."""
    return () if outputs is None else (outputs,) if isinstance(outputs, str) else outputs


def check_outputs(teacher: TeacherFileConfig) -> None:
    """Check that what is said of the outputs goes together.

    Raises:
        ValueError: it does not; a sentence without its stop.
    """
    empty = next((name for name in NAMED if getattr(teacher, name) in ((), "")), None)
    if empty:
        raise ValueError(f"teacher.{empty} names no output; name one, or leave it out")
    for check in (_check_rows, _check_boxes, _check_grids, _check_anchors, _check_levels, _check_counts):
        check(teacher)


def _check_rows(teacher: TeacherFileConfig) -> None:
    own = sorted(one for one in teacher.row_layout if one not in ("skip", "objectness"))
    beside = ("rows", "labels") if own == ["box", "score"] else ("rows",)
    if teacher.rows and any(getattr(teacher, name) for name in KINDS_OF_OUTPUTS if name not in beside):
        raise ValueError(
            "teacher.rows holds boxes and scores in one output: leave out boxes, sizes, scores, objectness and labels "
            "(labels may stand beside rows of [box, score])"
        )
    if bool(teacher.rows) != bool(teacher.row_layout):
        raise ValueError(
            "teacher.rows and row_layout go together: name the output, and what stands in its rows, such as "
            "[box, scores]"
        )
    complete = [["box", "scores"], ["box", "label", "score"]] + ([["box", "score"]] if teacher.labels else [])
    if teacher.rows and not (own in complete and teacher.row_layout.count("objectness") < 2):
        raise ValueError(
            "teacher.row_layout needs box and scores (of one class too), or box, score and label, each once (the label "
            "may be an output of its own, teacher.labels); objectness at most once"
        )
    if teacher.transposed and not (teacher.rows or teacher.grid_strides):
        raise ValueError(
            "teacher.transposed is how teacher.rows lie, or outputs on grids; boxes and scores of their own may lie "
            "either way: leave it out"
        )


def _check_boxes(teacher: TeacherFileConfig) -> None:
    if teacher.objectness_activation and not teacher.has_objectness:
        raise ValueError(
            "teacher.objectness_activation needs an objectness: name its output, or its column in teacher.row_layout"
        )
    if teacher.rows:
        return
    if (teacher.scores or teacher.labels or teacher.objectness) and not teacher.boxes:
        raise ValueError("teacher.scores, objectness and labels are those of teacher.boxes: name that output too")
    if teacher.sizes and not (teacher.boxes and teacher.box_format in OF_CENTRES):
        raise ValueError(
            "teacher.sizes are those of centres on grids: name the centres in teacher.boxes, and set "
            f"teacher.box_format to one of {', '.join(OF_CENTRES)}"
        )
    of_scores = "activation" if teacher.activation != "none" else "peaks" if teacher.peaks else None
    if of_scores and not (teacher.scores or teacher.rows):
        raise ValueError(f"teacher.{of_scores} is for scores: name their output in teacher.scores, or in teacher.rows")
    if (teacher.labels or teacher.objectness) and not teacher.scores:
        raise ValueError("teacher.labels and objectness need the boxes' scores: name their output in teacher.scores")


def _check_counts(teacher: TeacherFileConfig) -> None:
    if teacher.counts and (teacher.grid_strides or teacher.level_count != 1):
        raise ValueError(
            "teacher.counts says how many boxes of one list count: name that list in teacher.rows or boxes, without "
            "teacher.grid_strides, or leave it out"
        )


def _check_levels(teacher: TeacherFileConfig) -> None:
    """Outputs of levels are as many of each kind, one for each grid where there are grids."""
    named = {name: names_of(getattr(teacher, name)) for name in KINDS_OF_OUTPUTS}
    counts = {name: len(own) for name, own in named.items() if own}
    if len(set(counts.values())) > 1:
        said = " and ".join(f"{count} for {name}" for name, count in counts.items())
        raise ValueError(f"the numbers of teacher's outputs differ, {said}; name as many for each, in the same order")
    if (twice := _twice(teacher.outputs)) is not None:
        raise ValueError(f"teacher names the output {twice!r} twice; each holds one thing of one level")
    grids = len(teacher.grid_strides)
    if grids and counts and teacher.level_count not in (1, grids):
        raise ValueError(
            f"teacher.grid_strides has {grids} {'stride' if grids == 1 else 'strides'}, and {teacher.level_count} "
            "outputs are named; name one for each grid, or one for all"
        )


def _check_grids(teacher: TeacherFileConfig) -> None:
    raw = teacher.box_format in OF_GRIDS
    if teacher.cell_boxes > 1 and teacher.box_format not in OF_POINTS:
        raise ValueError(
            f"teacher.cell_boxes are those of {', '.join(OF_POINTS)} on grids: set teacher.box_format to one of these, "
            "or leave it out"
        )
    if teacher.peaks and (teacher.box_format not in OF_POINTS or teacher.cell_boxes > 1):
        raise ValueError(
            "teacher.peaks compares a score with those on the cells around, one box a cell: set teacher.box_format to "
            f"one of {', '.join(OF_POINTS)} without teacher.cell_boxes, or leave it out"
        )
    if teacher.anchors_first and not (teacher.anchors or teacher.cell_boxes > 1):
        raise ValueError(
            "teacher.anchors_first is the order of several boxes on a cell: set teacher.anchors or cell_boxes, or "
            "leave it out"
        )
    if teacher.bins > 1 and teacher.box_format != "distances":
        raise ValueError("teacher.bins are those of distances: set teacher.box_format=distances, or leave them out")
    if raw != bool(teacher.grid_strides):
        if raw:
            raise ValueError(
                f"teacher.box_format={teacher.box_format} measures boxes from the cells of grids: set "
                "teacher.grid_strides, such as [8, 16, 32]"
            )
        raise ValueError(
            "teacher.grid_strides are for boxes that the file does not decode: set teacher.box_format to one of "
            f"{', '.join(OF_GRIDS)}, or leave them out"
        )
    if len(teacher.grid_strides) > MOST_GRIDS:
        raise ValueError(f"teacher.grid_strides has {len(teacher.grid_strides)} strides; name {MOST_GRIDS} at most")
    if (twice := _twice(teacher.grid_strides)) is not None:
        raise ValueError(f"teacher.grid_strides has {twice} twice; each grid has its own stride")
    if raw and teacher.grid_point is None and teacher.box_format not in FROM_CORNERS:
        raise ValueError(
            "teacher.grid_point, the point of a cell from which its box is measured, is missing: set it to 0.5 for the "
            "centre, or to 0 for the corner"
        )
    units: tuple[str, ...] = ("pixels", "shares")
    what = f"teacher.box_format={teacher.box_format}"
    if teacher.box_format in OF_ANCHORS:
        units = ("pixels",)
    elif raw:
        units = ("strides", "pixels") if teacher.box_format == "distances" and teacher.bins == 1 else ("strides",)
        what += " with teacher.bins" if teacher.bins > 1 else ""
    if teacher.box_unit not in units:
        raise ValueError(f"{what} is in {' or '.join(units)}: set teacher.box_unit={units[0]}")
    if not raw and teacher.grid_point is not None:
        raise ValueError("teacher.grid_point is that of the cells of teacher.grid_strides: leave it out, or set these")


def _check_anchors(teacher: TeacherFileConfig) -> None:
    what, grids = f"teacher.box_format={teacher.box_format}", len(teacher.grid_strides)
    if teacher.variances != (1, 1, 1, 1) and teacher.box_format not in OF_DELTAS:
        raise ValueError("teacher.variances are those of deltas: set teacher.box_format=deltas, or leave them out")
    if teacher.centre_scales and teacher.box_format != "yolov3":
        raise ValueError(
            "teacher.centre_scales are those of YOLOv4's boxes: set teacher.box_format=yolov3, or leave them out"
        )
    if teacher.box_format not in OF_ANCHORS:
        if teacher.anchors:
            raise ValueError(
                f"{what} has no anchors: leave out teacher.anchors, or set teacher.box_format to one of "
                f"{', '.join(OF_ANCHORS)}"
            )
        return
    if len(teacher.anchors) != grids:
        raise ValueError(
            f"{what} is measured from anchors: name in teacher.anchors a list of [width, height] for each of the "
            f"{grids} {'grid' if grids == 1 else 'grids'} of teacher.grid_strides; it has {len(teacher.anchors)}"
        )
    if any(not 1 <= len(own) <= MOST_ANCHORS for own in teacher.anchors):
        raise ValueError(f"each list of teacher.anchors has 1 to {MOST_ANCHORS} anchors")
    if len(teacher.centre_scales) not in (0, grids):
        raise ValueError(
            f"teacher.centre_scales has {len(teacher.centre_scales)}, and teacher.grid_strides {grids}; name one for "
            "each grid"
        )
    if teacher.box_format in FROM_CORNERS and teacher.grid_point is not None:
        raise ValueError(f"{what} measures from the corner of a cell: leave out teacher.grid_point")


def _twice(values: Sequence[Any]) -> Any | None:
    """The first value that stands there a second time."""
    return next((value for place, value in enumerate(values) if value in values[:place]), None)
