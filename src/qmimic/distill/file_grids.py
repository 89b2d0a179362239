"""Boxes that a foreign detector's file does not decode: what stands on the cells of its grids, level after level.

Anchor-free detectors alone: a box is measured from a point of its cell, in the recipe's terms (`TeacherFileConfig`).
Distances with bins are the distributions of Generalized Focal Loss (Li et al., NeurIPS 2020, section 3.2): a distance
is the mean of 0, 1, 2, .. weighted by a softmax.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qmimic.config import TeacherFileConfig
from qmimic.errors import InputError
from qmimic.runtime.places import place_grid


@dataclass(frozen=True)
class Grid:
    """The cells of one level.

    Attributes:
        size: height and width of the file's input, pixels.
        stride: side of a cell, pixels.
    """

    size: tuple[int, int]
    stride: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; a cell that the border cuts counts as one."""
        return -(-self.size[0] // self.stride), -(-self.size[1] // self.stride)

    @property
    def whole(self) -> tuple[int, int]:
        """Rows and columns without cells that the border cuts."""
        return self.size[0] // self.stride, self.size[1] // self.stride

    @property
    def cells(self) -> int:
        """How many there are."""
        return math.prod(self.shape)


def grids_of(config: TeacherFileConfig, size: tuple[int, int]) -> tuple[Grid, ...]:
    """The grids in the file's order, none where it decodes its boxes.

    Args:
        config: `grid_strides`.
        size: height and width of the file's input, pixels.
    """
    return tuple(Grid(size, stride) for stride in config.grid_strides)


def by_cells(name: str, values: Tensor, grids: Sequence[Grid], transposed: bool, batch: int) -> Tensor:
    """An output as float32 [B, N, C], N the cells of all its grids, each row by row.

    Args:
        name: of the output, for messages.
        values: a list [B, N, C] or [B, N], of one picture also [N, C] or [N], or of one grid a map [B, h, w, C] or
            [B, h, w].
        grids: that it holds, one after another.
        transposed: a list is [B, C, N] and a map [B, C, h, w].
        batch: B.

    Raises:
        InputError: it has another shape.
    """
    cells = sum(grid.cells for grid in grids)
    places = ((cells,), *(grid.shape for grid in grids if len(grids) == 1))
    if batch == 1 and tuple(values.shape[:1]) == (cells,) and values.ndim < 3:
        values = values[None]
    if values.ndim > 1 and values.shape[0] == batch:
        if tuple(values.shape[1:]) in places:
            return values.reshape(batch, cells, 1)
        if tuple(values.shape[2:] if transposed else values.shape[1:-1]) in places:
            return values.flatten(2).transpose(1, 2) if transposed else values.flatten(1, -2)
    raise InputError(
        f"The teacher's output {name!r} has shape {list(values.shape)}; {_wanted(grids, transposed)}; "
        f"{_advice(values, grids, transposed, batch)}."
    )


def _wanted(grids: Sequence[Grid], transposed: bool) -> str:
    """The shape of an output of some grids, in words."""
    cells, strides = sum(grid.cells for grid in grids), ", ".join(str(grid.stride) for grid in grids)
    lists, maps = ("[B, C, N]", "[B, C, h, w]") if transposed else ("[B, N, C]", "[B, h, w, C]")
    if len(grids) > 1:
        return f"on the grids of strides {strides} it is {lists} with N = {cells:,}"
    height, width = grids[0].shape
    return f"on the grid of stride {strides} it is {lists} with N = {cells:,}, or {maps} with h, w = {height}, {width}"


def _advice(values: Tensor, grids: Sequence[Grid], transposed: bool, batch: int) -> str:
    """What may be wrong with an output of another shape, as advice."""
    if values.ndim > 4:
        return f"it has {values.ndim} dimensions, so export it with the classes and boxes of a cell in one of them"
    if values.ndim > 1 and values.shape[0] != batch:
        return f"it is of {values.shape[0]} pictures, not of {batch}: export it for one picture, or for any number"
    sides = set(values.shape[1:])
    others = tuple(values.shape[1:-1] if transposed else values.shape[2:])
    if others in ((sum(grid.cells for grid in grids),), *(grid.shape for grid in grids)):
        return f"set teacher.transposed={str(not transposed).lower()}"
    if len(grids) > 1 and any({grid.cells} & sides or set(grid.shape) <= sides for grid in grids):
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
        raw: float32 [..., N, 4 * bins], N the cells of all grids.
        config: `box_format`, `box_unit`, `bins` and the grids.
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
    centres, halves = points + raw[..., :2] * unit, raw[..., 2:].exp() * unit / 2
    return torch.cat([centres - halves, centres + halves], -1)


def _points(config: TeacherFileConfig, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Points x, y [N, 2] and strides [N, 1] of all cells, in pixels."""
    assert config.grid_point is not None, "the recipe says where a cell's point lies"
    found = []
    for grid in grids_of(config, size):
        height, width = grid.shape
        found.append(place_grid((height * grid.stride, width * grid.stride), (grid.stride,)))
    middles, strides = torch.from_numpy(np.concatenate(found)).split((2, 1), -1)
    return middles + (config.grid_point - 0.5) * strides, strides
