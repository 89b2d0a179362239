"""Boxes that a foreign detector's file does not decode: what stands on the cells of its grids, level after level.

Anchor-free detectors alone: a box is said from a point of its own cell, in the recipe's terms (`TeacherFileConfig`).
Distances with bins are the distributions of Generalized Focal Loss (Li et al., NeurIPS 2020, section 3.2): a distance
is the mean of 0, 1, 2, .. weighted by a softmax.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qmimic.config import TeacherFileConfig
from qmimic.errors import InputError


@dataclass(frozen=True)
class Grid:
    """The cells of one level.

    Attributes:
        height: cells from top to bottom.
        width: cells from left to right.
        stride: side of a cell, pixels of the file's input.
    """

    height: int
    width: int
    stride: int

    @property
    def cells(self) -> int:
        """How many there are."""
        return self.height * self.width


def grids_of(config: TeacherFileConfig, size: tuple[int, int]) -> tuple[Grid, ...]:
    """The grids in the file's order, none where it decodes its boxes.

    Args:
        config: `grid_strides`.
        size: height and width of the file's input, pixels; a cell that it cuts counts as one.
    """
    return tuple(Grid(-(-size[0] // stride), -(-size[1] // stride), stride) for stride in config.grid_strides)


def by_cells(name: str, values: Tensor, grids: Sequence[Grid], transposed: bool, batch: int) -> Tensor:
    """An output as float32 [B, N, C], N the cells of all its grids, each row by row.

    Args:
        name: of the output, for messages.
        values: a list [B, N, C] or [B, N], of one picture also [N, C], or of one grid a map [B, h, w, C].
        grids: that it holds, one after another.
        transposed: a list is [B, C, N] and a map [B, C, h, w].
        batch: B.

    Raises:
        InputError: it has another shape.
    """
    cells = sum(grid.cells for grid in grids)
    sides = (grids[0].height, grids[0].width) if len(grids) == 1 else None
    lists, maps = ("[B, C, N]", "[B, C, h, w]") if transposed else ("[B, N, C]", "[B, h, w, C]")
    wanted = f"{lists} with N = {cells:,}" + (f", or {maps} with h, w = {sides[0]}, {sides[1]}" if sides else "")

    def misshapen(advice: str) -> InputError:
        strides = ", ".join(str(grid.stride) for grid in grids)
        return InputError(
            f"The teacher's output {name!r} has shape {list(values.shape)}; on the grid of stride {strides} it is "
            f"{wanted}; {advice}."
        )

    if values.numel() == batch * cells:
        return values.reshape(batch, cells, 1)
    if values.ndim == 2 and batch == 1:
        return by_cells(name, values[None], grids, transposed, batch)
    if values.ndim not in (3, 4) or values.shape[0] != batch:
        raise misshapen("check teacher.grid_strides")
    flat = values.flatten(2).transpose(1, 2) if transposed else values.flatten(1, -2)
    places = values.shape[2:] if transposed else values.shape[1:-1]
    others = values.shape[1:-1] if transposed else values.shape[2:]
    fitting = ((cells,), sides)
    if tuple(places) in fitting:
        return flat
    if tuple(others) in fitting:
        raise misshapen(f"set teacher.transposed={str(not transposed).lower()}")
    raise misshapen("check teacher.grid_strides, and that they stand in the outputs' order")


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
    points, strides = [], []
    for grid in grids_of(config, size):
        rows, columns = torch.meshgrid(torch.arange(grid.height), torch.arange(grid.width), indexing="ij")
        own = torch.stack([columns, rows], -1).reshape(-1, 2)
        assert config.grid_point is not None, "the recipe says where a cell's point lies"
        points.append((own + config.grid_point) * grid.stride)
        strides.append(torch.full((grid.cells, 1), float(grid.stride)))
    return torch.cat(points), torch.cat(strides)
