"""Boxes that a foreign detector's file does not decode: what stands on the cells of its grids, level after level.

A box is measured from a point of its cell, or from one of the anchors there, in the recipe's terms
(`TeacherFileConfig`). Distances with bins are the distributions of Generalized Focal Loss (Li et al., NeurIPS 2020,
section 3.2): a distance is the mean of 0, 1, 2, .. weighted by a softmax. Deltas are those of Faster R-CNN (Ren et al.,
2015, eq. 2), with the variances of SSD (Liu et al., 2016). Centres with their sizes, and scores that count at peaks
alone, are CenterNet's (Zhou et al., "Objects as Points", 2019, section 4). The other two are YOLOv3's (Redmon and
Farhadi, 2018, section 2.1), whose centres YOLOv4 stretches (`scale_x_y` of its repository), and that of the
repositories of YOLOv5 and v7.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qmimic.config import TeacherFileConfig
from qmimic.config.teacher_file import FROM_CORNERS, OF_ANCHORS, OF_DELTAS
from qmimic.errors import InputError
from qmimic.runtime.places import cells


@dataclass(frozen=True)
class Grid:
    """The cells of one level.

    Attributes:
        size: height and width of the file's input, pixels.
        stride: side of a cell, pixels.
        anchors: widths and heights of those on each cell, pixels; none where boxes are measured from points.
        centre_scale: by which the shift of a centre in its cell is stretched.
        cell_boxes: boxes on each cell, where they are measured from points.
    """

    size: tuple[int, int]
    stride: float
    anchors: tuple[tuple[float, float], ...] = ()
    centre_scale: float = 1.0
    cell_boxes: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; a cell that the border cuts counts as one."""
        return self._counted(math.ceil)

    @property
    def whole(self) -> tuple[int, int]:
        """Rows and columns without cells that the border cuts."""
        return self._counted(math.floor)

    def _counted(self, towards: Callable[[float], int]) -> tuple[int, int]:
        """Rows and columns. A stride that is a fraction was rounded, and cuts no cell: 15.789 is 300 pixels in 19."""
        towards = towards if self.stride == int(self.stride) else round
        return towards(self.size[0] / self.stride), towards(self.size[1] / self.stride)

    @property
    def to_a_cell(self) -> int:
        """Boxes that are measured from a cell: some from its point, or one from each anchor."""
        return len(self.anchors) or self.cell_boxes

    @property
    def boxes(self) -> int:
        """How many boxes there are."""
        return math.prod(self.shape) * self.to_a_cell


def grids_of(config: TeacherFileConfig, size: tuple[int, int]) -> tuple[Grid, ...]:
    """The grids in the file's order, none where it decodes its boxes.

    Args:
        config: `grid_strides`, `anchors`, `centre_scales` and `cell_boxes`.
        size: height and width of the file's input, pixels.
    """
    count = len(config.grid_strides)
    anchors, scales = config.anchors or ((),) * count, config.centre_scales or (1.0,) * count
    each = zip(config.grid_strides, anchors, scales, strict=True)
    return tuple(Grid(size, *own, cell_boxes=config.cell_boxes) for own in each)


def by_cells(
    name: str, values: Tensor, grids: Sequence[Grid], transposed: bool, batch: int, anchors_first: bool = False
) -> Tensor:
    """An output as float32 [B, N, C], N the boxes of all its grids: cells row by row, on each cell its boxes.

    Args:
        name: of the output, for messages.
        values: a list [B, N, C] or [B, N], of one picture also [N, C] or [N], or of one grid a map [B, h, w, C] or
            [B, h, w]; with A boxes a cell [B, h, w, A C], [B, h, w, A, C] or [B, A, h, w, C].
        grids: that it holds, one after another.
        transposed: a list is [B, C, N], and a map [B, C, h, w], [B, A C, h, w] or [B, A, C, h, w].
        batch: B.
        anchors_first: in a list, the first box of all cells of a grid comes first, and not all boxes of the first cell.

    Raises:
        InputError: it has another shape.
    """
    count = sum(grid.boxes for grid in grids)
    if batch == 1 and tuple(values.shape[:1]) == (count,) and values.ndim < 3:
        values = values[None]
    if values.ndim > 1 and values.shape[0] == batch:
        if tuple(values.shape[1:]) == (count,):
            return _cells_first(values.reshape(batch, count, 1), grids, anchors_first)
        if values.ndim == 3 and values.shape[2 if transposed else 1] == count:
            return _cells_first(values.transpose(1, 2) if transposed else values, grids, anchors_first)
        laid = _of_map(values, grids[0], transposed) if len(grids) == 1 else None
        if laid is not None:
            return laid
    raise InputError(
        f"The teacher's output {name!r} has shape {list(values.shape)}; {_wanted(grids, transposed)}; "
        f"{_advice(values, grids, transposed, batch)}."
    )


def _cells_first(values: Tensor, grids: Sequence[Grid], anchors_first: bool) -> Tensor:
    """A list [B, N, C] with the boxes of a cell beside each other."""
    if not anchors_first:
        return values
    each = zip(values.split([grid.boxes for grid in grids], 1), grids, strict=True)
    return torch.cat([own.unflatten(1, (grid.to_a_cell, -1)).transpose(1, 2).flatten(1, 2) for own, grid in each], 1)


def _of_map(values: Tensor, grid: Grid, transposed: bool) -> Tensor | None:
    """A map of one grid as [B, N, C]; None if its shape is no such map's."""
    sides, anchors = tuple(values.shape[1:]), grid.to_a_cell
    channels = sides[:-2] if transposed else sides[2:]
    divides = len(channels) < 3 and math.prod(channels) % anchors == 0
    whole = divides and (len(channels) < 2 or channels[0] == anchors)  # all anchors of a cell in one place
    if transposed:
        if not whole or sides[-2:] != grid.shape:
            return None
        return values.reshape(len(values), anchors, -1, *grid.shape).permute(0, 3, 4, 1, 2).flatten(1, 3)
    by_anchor = len(sides) in (3, 4) and sides[:3] == (anchors, *grid.shape)  # a map of each
    by_cell = whole and sides[:2] == grid.shape
    if by_anchor == by_cell and anchors > 1:  # neither, or it may be either
        return None
    if by_cell:
        return values.reshape(len(values), grid.boxes, -1)
    return values.reshape(*values.shape[:4], -1).permute(0, 2, 3, 1, 4).flatten(1, 3) if by_anchor else None


def _wanted(grids: Sequence[Grid], transposed: bool) -> str:
    """The shape of an output of some grids, in words."""
    count, strides = sum(grid.boxes for grid in grids), ", ".join(str(grid.stride) for grid in grids)
    lists, maps = ("[B, C, N]", "[B, C, h, w]") if transposed else ("[B, N, C]", "[B, h, w, C]")
    if len(grids) > 1:
        return f"on the grids of strides {strides} it is {lists} with N = {count:,}"
    (height, width), anchors = grids[0].shape, grids[0].to_a_cell
    where, sides = f"on the grid of stride {strides}", f"h, w = {height}, {width}"
    if anchors == 1:
        return f"{where} it is {lists} with N = {count:,}, or {maps} with {sides}"
    maps = "[B, A C, h, w] or [B, A, C, h, w]" if transposed else "[B, h, w, A C], [B, h, w, A, C] or [B, A, h, w, C]"
    return f"{where} it is {lists} with N = {count:,}, {maps} with {sides} and A = {anchors}"


def _advice(values: Tensor, grids: Sequence[Grid], transposed: bool, batch: int) -> str:
    """What may be wrong with an output of another shape, as advice."""
    count = sum(grid.boxes for grid in grids)
    length = values.shape[2 if transposed else 1] if values.ndim == 3 else values.shape[0] if values.ndim == 2 else 0
    if grids[0].to_a_cell == 1 and length > count and length % count == 0:
        several = length // count
        own = "" if grids[0].anchors else f"set teacher.cell_boxes={several}, or "
        return f"it has {several} boxes for each cell: {own}name {several} anchors for each (teacher.anchors)"
    if len(grids) == 1 and grids[0].shape == (grids[0].to_a_cell,) * 2:
        return "with as many rows and columns as anchors it may lie in two ways: take larger pictures (teacher.size)"
    if values.ndim > 4 and not grids[0].anchors:
        return (
            f"it has {values.ndim} dimensions, so its boxes may be measured from anchors (teacher.anchors); if they "
            "are not, export it with the classes and boxes of a cell in one of them"
        )
    if values.ndim > 1 and values.shape[0] != batch:
        return f"it is of {values.shape[0]} pictures, not of {batch}: export it for one picture, or for any number"
    sides = set(values.shape[1:])
    others = tuple(values.shape[1:-1] if transposed else values.shape[2:])
    turned = values.ndim > 1 and len(grids) == 1 and _of_map(values, grids[0], not transposed) is not None
    if turned or others in ((sum(grid.boxes for grid in grids),), *(grid.shape for grid in grids)):
        return f"set teacher.transposed={str(not transposed).lower()}"
    if len(grids) > 1 and any({grid.boxes} & sides or set(grid.shape) <= sides for grid in grids):
        return "it holds one grid alone, so name a list of outputs, one for each grid"
    cut = [grid for grid in grids if grid.whole != grid.shape]
    if any({math.prod(grid.whole)} & sides or set(grid.whole) <= sides for grid in cut):
        return (
            "it has no cells where the picture's border cuts them, so take pictures whose sides are multiples of "
            f"{max(grid.stride for grid in cut)} (teacher.size, or data.size)"
        )
    return "check teacher.grid_strides" + (", and that they stand in the outputs' order" if values.ndim > 2 else "")


def decoded(raw: Tensor, config: TeacherFileConfig, size: tuple[int, int]) -> Tensor:
    """Boxes [..., N, 4] as xyxy in pixels of the file's input; not clipped.

    Args:
        raw: float32 [..., N, 4 * bins], N the boxes of all grids.
        config: `box_format`, `box_unit`, `bins`, `anchors`, `centre_scales`, `variances` and the grids.
        size: height and width of the file's input, pixels.
    """
    points, strides = _points(config, size)
    if config.bins > 1:
        shares = raw.unflatten(-1, (4, config.bins)).softmax(-1)
        raw = shares @ torch.arange(config.bins, dtype=raw.dtype)
    unit = strides if config.box_unit == "strides" else torch.ones_like(strides)
    if config.box_format == "distances":
        sides = raw * unit
        return torch.cat([points - sides[..., :2], points + sides[..., 2:]], -1)
    if config.box_format in OF_ANCHORS:
        centres, sides = _from_anchors(raw, config, size, points, strides)
    else:
        sizes = raw[..., 2:].exp() if config.box_format == "offsets" else raw[..., 2:]
        centres, sides = points + raw[..., :2] * unit, sizes * unit
    return torch.cat([centres - sides / 2, centres + sides / 2], -1)


def _from_anchors(
    raw: Tensor, config: TeacherFileConfig, size: tuple[int, int], points: Tensor, strides: Tensor
) -> tuple[Tensor, Tensor]:
    """Centres, and widths and heights, [..., N, 2] each, of boxes that are measured from anchors."""
    grids = grids_of(config, size)
    anchors = torch.cat([torch.tensor(grid.anchors).repeat(math.prod(grid.shape), 1) for grid in grids])
    if config.box_format in OF_DELTAS:
        raw = raw * torch.tensor(config.variances)
        raw = raw[..., [1, 0, 3, 2]] if config.box_format == "yx_deltas" else raw
        return points + raw[..., :2] * anchors, raw[..., 2:].exp() * anchors
    shares = raw.sigmoid()
    if config.box_format == "yolov3":
        scales = torch.cat([torch.full((grid.boxes, 1), grid.centre_scale) for grid in grids])
        shifts = 0.5 + scales * (shares[..., :2] - 0.5)
        return points + shifts * strides, raw[..., 2:].exp() * anchors
    return points + (2 * shares[..., :2] - 0.5) * strides, (2 * shares[..., 2:]).square() * anchors


def _points(config: TeacherFileConfig, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Points x, y [N, 2] from which boxes are measured, and strides [N, 1], in pixels."""
    found = [np.repeat(cells(grid.shape, grid.stride), grid.to_a_cell, 0) for grid in grids_of(config, size)]
    middles, strides = torch.from_numpy(np.concatenate(found)).split((2, 1), -1)
    point = 0 if config.box_format in FROM_CORNERS else config.grid_point
    assert point is not None, "the recipe says where a cell's point lies"
    return middles + (point - 0.5) * strides, strides


def peaks(heights: Tensor, grids: Sequence[Grid]) -> Tensor:
    """Where no cell of the 8 around is higher in the same class, bool [B, N, K]; grids have one box a cell."""
    found = []
    for own, grid in zip(heights.split([grid.boxes for grid in grids], 1), grids, strict=True):
        maps = own.nan_to_num(-torch.inf).transpose(1, 2).unflatten(2, grid.shape)
        found.append((maps == F.max_pool2d(maps, 3, stride=1, padding=1)).flatten(2).transpose(1, 2))
    return torch.cat(found, 1)
