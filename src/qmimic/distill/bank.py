"""The teacher bank: what a distiller keeps of its frozen teacher, for every view of every training image, on disk.

A teacher never changes while its student learns, so a distiller's target is computed once for each view, as the views
come up, and then read. What a record gives back is what was computed, to the last bit: float32 as it is, and values on
a quantizer's dictionary as the levels that they are, one byte each (two if one does not hold them).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmimic.data.records import RecordFile
from qmimic.detectors.quantize import Quantizer
from qmimic.distill.distiller import Target


@dataclass(frozen=True)
class Entry:
    """One tensor of a target, as a record holds it.

    Attributes:
        shape: of one image's, without the batch.
        kind: numpy's name of what is stored: float32, uint8, uint16 (levels), bool, int64.
        levels: whose levels are stored in the values' place; None if the values are.
    """

    shape: tuple[int, ...]
    kind: str
    levels: Quantizer | None = None

    @property
    def bytes(self) -> int:
        """Of a record."""
        return int(np.prod(self.shape)) * np.dtype(self.kind).itemsize


Layout = Mapping[str, Entry]


def layout_of(targets: list[Target], grids: Mapping[str, Quantizer]) -> dict[str, Entry]:
    """How targets like these are stored; the few levels beyond what a byte holds here are computed each time.

    Args:
        targets: some, of one shape but for the batch.
        grids: see `Distiller.grids`.
    """
    layout = {}
    for name, first in targets[0].items():
        kind = str(first.dtype).removeprefix("torch.")
        quantizer = grids.get(name)
        if quantizer is not None:
            highest = quantizer.config.upper or max(int(quantizer.levels_inside(one[name]).max()) for one in targets)
            kind = "uint8" if highest <= np.iinfo(np.uint8).max else "uint16"
        layout[name] = Entry(tuple(first.shape[1:]), kind, quantizer)
    return layout


def record_bytes(layout: Layout) -> int:
    """Of one view."""
    return sum(entry.bytes for entry in layout.values())


class Bank:
    """An open bank.

    Args:
        path: of its file; the name tells what is in it.
        records: images times views.
        layout: of a record.

    Raises:
        InputError: the file cannot be made, or the disk has no room for all of it.
    """

    def __init__(self, path: Path, records: int, layout: Layout) -> None:
        self.layout = layout
        self._file = RecordFile(path, records, record_bytes(layout), "teacher bank", "run.bank_mib")

    def get(self, views: Tensor, compute: Callable[[], Target]) -> Target:
        """The targets of a batch, read or else computed and kept.

        Args:
            views: int64 [B], which records, on the device of the targets.
            compute: the targets of all of them.
        """
        rows = views.cpu().numpy().astype(np.int64)
        found = self.read(rows, views.device)
        if found is None:
            found = compute()
            self.write(rows, found)
        return found

    def read(self, rows: NDArray[np.int64], device: torch.device) -> Target | None:
        """The records of a batch, int64 [B], on a device; None if one of them is missing or damaged."""
        kept = [record for row in rows if (record := self._file.read(int(row))) is not None]
        if len(kept) < len(rows):
            return None
        records, target, start = np.stack(kept), {}, 0
        for name, entry in self.layout.items():
            stored = records[:, start : start + entry.bytes].copy().view(entry.kind)
            start += entry.bytes
            shape = (len(rows), *_stored_shape(entry.shape))
            if entry.levels is None:
                target[name] = _channels_first(torch.from_numpy(stored.reshape(shape)).to(device))
            else:
                levels = torch.from_numpy(stored.astype(np.float32).reshape(shape)).to(device)
                target[name] = entry.levels.values_inside(_channels_first(levels))
        return target

    def write(self, rows: NDArray[np.int64], target: Target) -> None:
        """Keep the targets of a batch. Levels that the layout cannot hold are not kept. Args as `read`."""
        fits, parts = np.ones(len(rows), bool), []
        for name, entry in self.layout.items():
            values = target[name].detach()
            if entry.levels is not None:
                values = entry.levels.levels_inside(values)
            stored = _channels_last(values).cpu().numpy().reshape(len(rows), -1)
            with np.errstate(invalid="ignore"):
                packed = stored.astype(entry.kind)
            fits &= (packed == stored).all(1)
            parts.append(np.ascontiguousarray(packed).view(np.uint8))
        content = np.concatenate(parts, 1)
        for row, record, fit in zip(rows, content, fits, strict=True):
            if fit:
                self._file.write(int(row), record)


def channels_last(target: Target) -> Target:
    """The same with maps [..., C, H, W] in the memory layout that a bank gives them, so that sums round alike."""
    return {name: _channels_first(_channels_last(one).contiguous()) for name, one in target.items()}


def _channels_last(one: Tensor) -> Tensor:
    """[B, ..., C, H, W] as [B, ..., H, W, C]; others stay."""
    return one.movedim(-3, -1) if one.dim() >= 4 else one


def _channels_first(one: Tensor) -> Tensor:
    return one.movedim(-1, -3) if one.dim() >= 4 else one


def _stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-3], shape[-2], shape[-1], shape[-3]) if len(shape) >= 3 else shape
