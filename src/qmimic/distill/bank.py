"""The teacher bank: what the frozen teacher sees in every view of every training image, kept on disk.

A teacher never changes while its student learns, so its map and its proposals are computed once for each view, as the
views come up, and then read. What a record holds is what the teacher would compute, to the last bit: the map as float32
or, where the loss sees it quantized anyway, as the levels of its dictionary, one byte each (two if one does not hold
them).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qmimic.contracts import Proposals
from qmimic.data.records import RecordFile
from qmimic.detectors.quantize import Quantizer

Kind = np.dtype[np.uint8] | np.dtype[np.uint16] | np.dtype[np.float32]

BOX_BYTES = 17  # a proposal's four float32 and whether it counts


@dataclass(frozen=True)
class Layout:
    """What one record holds.

    Attributes:
        shape: channels, height and width of the map.
        kind: how an entry of the map is stored.
        proposals: regions, 0 if none are needed.
    """

    shape: tuple[int, int, int]
    kind: Kind
    proposals: int

    @property
    def bytes(self) -> int:
        """Of a record."""
        return int(np.prod(self.shape)) * self.kind.itemsize + self.proposals * BOX_BYTES


@dataclass(frozen=True)
class TeacherView:
    """What a teacher sees in a batch.

    Attributes:
        features: its map [B, C, H, W], in channels-last memory; out of a bank of levels it is quantized.
        proposals: its regions; None if nobody asked.
    """

    features: Tensor
    proposals: Proposals | None

    def to(self, device: torch.device) -> "TeacherView":
        """The same on another device."""
        proposals = self.proposals
        if proposals is not None:
            proposals = Proposals(proposals.boxes.to(device), proposals.valid.to(device))
        return TeacherView(self.features.to(device), proposals)


class Bank:
    """An open bank.

    Args:
        path: of its file; the name tells what is in it.
        records: images times views.
        layout: of a record.
        quantizer: whose levels are stored; None if the map is stored as float32.

    Raises:
        InputError: the file cannot be made, or the disk has no room for all of it.
    """

    def __init__(self, path: Path, records: int, layout: Layout, quantizer: Quantizer | None) -> None:
        self.layout, self.quantizer = layout, quantizer
        self._file = RecordFile(path, records, layout.bytes, "teacher bank", "run.bank_mib")

    def read(self, rows: NDArray[np.int64]) -> TeacherView | None:
        """The records of a batch; None if one of them is missing or damaged.

        Args:
            rows: int64 [B], which.
        """
        found = [self._file.read(int(row)) for row in rows]
        kept = [record for record in found if record is not None]
        if len(kept) < len(found):
            return None
        records = np.stack(kept)
        channels, height, width = self.layout.shape
        length = channels * height * width * self.layout.kind.itemsize
        stored = records[:, :length].copy().view(self.layout.kind).reshape(-1, height, width, channels)
        features = torch.from_numpy(stored.astype(np.float32, copy=False)).permute(0, 3, 1, 2)
        if self.quantizer is not None:
            features = self.quantizer.values(features)
        if not self.layout.proposals:
            return TeacherView(features, None)
        regions = records[:, length:].reshape(len(rows), self.layout.proposals, BOX_BYTES)
        boxes = torch.from_numpy(regions[..., :-1].copy().view(np.float32))
        return TeacherView(features, Proposals(boxes, torch.from_numpy(regions[..., -1] > 0)))

    def write(self, rows: NDArray[np.int64], seen: TeacherView) -> None:
        """Keep what the teacher saw. Levels that the layout cannot hold are not kept.

        Args:
            rows: int64 [B], which records.
            seen: the unquantized map, and proposals if the layout has them.
        """
        features = seen.features.detach().float().cpu()
        if self.quantizer is not None:
            features = self.quantizer.levels(features)
        stored = features.permute(0, 2, 3, 1).contiguous().numpy()
        with np.errstate(invalid="ignore"):
            packed = stored.astype(self.layout.kind)
        fits = (packed == stored).all((1, 2, 3))
        parts = [packed.reshape(len(rows), -1).view(np.uint8)]
        if self.layout.proposals:
            assert seen.proposals is not None
            boxes = seen.proposals.boxes.detach().float().cpu().contiguous().numpy().view(np.uint8)
            valid = seen.proposals.valid.cpu().numpy().astype(np.uint8)[..., None]
            parts.append(np.concatenate([boxes, valid], 2).reshape(len(rows), -1))
        content = np.concatenate(parts, 1)
        for row, record, fit in zip(rows, content, fits, strict=True):
            if fit:
                self._file.write(int(row), record)
