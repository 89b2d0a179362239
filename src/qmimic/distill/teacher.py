"""The frozen teacher of a student, looked up in its bank where it has one."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from qmimic.detectors.detector import Detector
from qmimic.distill.bank import Bank, TeacherView


class Teacher:
    """A frozen detector that shows its map and its regions.

    Args:
        detector: any; it is put into evaluation mode for good.
        bf16: compute it in bf16.
        bank: where what it sees is kept; None to compute it every time.
        keeps_regions: the bank keeps pooled regions instead of maps.
    """

    def __init__(self, detector: Detector, bf16: bool, bank: Bank | None = None, keeps_regions: bool = False) -> None:
        self.detector = detector.eval().requires_grad_(False)
        self.bf16 = bf16
        self.bank = bank
        self.keeps_regions = keeps_regions

    @torch.no_grad()
    def look(
        self,
        images: Tensor,
        records: Tensor | None,
        propose: bool,
        pool: Callable[[TeacherView], TeacherView] | None = None,
    ) -> TeacherView:
        """What it sees.

        Args:
            images: views [B, 3, H, W], as `Detector.raw_features` takes them.
            records: int64 [B], where the bank keeps these views; None if they are in no bank.
            propose: whether its regions are wanted.
            pool: makes pooled regions of it, laid out as a map, where the bank keeps those.
        """
        bank = self.bank if records is not None else None
        rows = None if records is None else records.cpu().numpy().astype(np.int64)
        kept = bank.read(rows) if bank and rows is not None else None
        if kept is None:
            # What goes into the bank is whole, whatever this step needs of it.
            kept = self._compute(images, propose or (bank is not None and bank.layout.proposals > 0))
            kept = pool(kept) if pool else kept
            if bank and rows is not None:
                bank.write(rows, kept)
        return kept.to(images.device)

    def _compute(self, images: Tensor, propose: bool) -> TeacherView:
        detector = self.detector
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.bf16):
            features = detector.raw_features(images)
            if not propose:
                return TeacherView(features.map, None)
            return TeacherView(features.map, detector.propose(detector.quantize(features)))
