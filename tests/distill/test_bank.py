"""The teacher bank gives back what the teacher saw, to the last bit, or nothing."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from qmimic.config import MimicConfig, QuantizerConfig
from qmimic.contracts import Proposals
from qmimic.data.records import RecordFile
from qmimic.detectors.quantize import Quantizer
from qmimic.distill.bank import Bank, Layout, TeacherView
from qmimic.distill.mimic import Mimic, sees_levels
from qmimic.errors import InputError

SHAPE = (5, 3, 4)
ROWS = np.array([4, 0, 2])


def a_view(scale: float = 3.0, seed: int = 0) -> TeacherView:
    generator = torch.Generator().manual_seed(seed)
    features = torch.relu(torch.randn(3, *SHAPE, generator=generator)) * scale
    boxes = torch.rand(3, 6, 4, generator=generator) * 50
    valid = torch.rand(3, 6, generator=generator) > 0.3
    return TeacherView(features.contiguous(memory_format=torch.channels_last), Proposals(boxes, valid))


@pytest.mark.parametrize("kind", ["uniform", "power_of_two"])
@pytest.mark.parametrize("stored", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("per_channel", [False, True])
def test_what_is_written_is_read_to_the_last_bit(
    tmp_path: Path, kind: str, stored: type[np.generic], per_channel: bool
) -> None:
    stride = torch.linspace(0.3, 0.9, 5) if per_channel else torch.tensor([0.37])
    quantizer = Quantizer(QuantizerConfig(kind=kind, per_channel=per_channel), stride)
    levels = None if stored is np.float32 else quantizer
    layout = Layout(SHAPE, np.dtype(stored), 6)
    seen = a_view()
    bank = Bank(tmp_path / "bank.bin", 6, layout, levels)
    assert bank.read(ROWS) is None
    bank.write(ROWS, seen)
    for own in (bank, Bank(tmp_path / "bank.bin", 6, layout, levels)):  # as it is, and opened again
        found = own.read(ROWS)
        assert found is not None
        wanted = seen.features if levels is None else quantizer(seen.features)
        assert torch.equal(found.features, wanted)
        assert found.features.is_contiguous(memory_format=torch.channels_last)
        assert found.proposals is not None
        assert seen.proposals is not None
        assert torch.equal(found.proposals.boxes, seen.proposals.boxes)
        assert torch.equal(found.proposals.valid, seen.proposals.valid)
    assert (tmp_path / "bank.bin").stat().st_size == RecordFile.size(6, layout.bytes)
    assert bank.read(np.array([4, 1])) is None


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path, layout = tmp_path / "bank.bin", Layout(SHAPE, np.dtype(np.float32), 6)
    Bank(path, 6, layout, None).write(ROWS, a_view())
    whole = path.read_bytes()
    record = RecordFile.size(1, layout.bytes)
    for place in (0, record - 1, 2 * record + 77, 3 * record - 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        bank = Bank(path, 6, layout, None)
        assert bank.read(ROWS) is None
        bank.write(ROWS, a_view())
        assert bank.read(ROWS) is not None
    path.write_bytes(whole[: len(whole) // 2])  # cut short: what is left is used
    assert Bank(path, 6, layout, None).read(ROWS) is None
    assert Bank(path, 6, layout, None).read(ROWS[1:]) is not None


def test_levels_that_a_byte_cannot_hold_are_not_kept(tmp_path: Path) -> None:
    quantizer = Quantizer(QuantizerConfig(), torch.tensor([0.01]))
    seen = a_view()
    bank = Bank(tmp_path / "bank.bin", 6, Layout(SHAPE, np.dtype(np.uint8), 0), quantizer)
    bank.write(ROWS, TeacherView(seen.features, None))
    assert bank.read(ROWS) is None
    seen.features[0] *= 0.1
    bank.write(ROWS, TeacherView(seen.features, None))
    found = bank.read(ROWS[:1])
    assert found is not None
    assert torch.equal(found.features, quantizer(seen.features[:1]))
    assert found.proposals is None


def test_a_full_disk_is_told_before_anything_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"of 0 MB cannot be made \(No space left.*run\.bank_mib=0") as caught:
        Bank(tmp_path / "bank.bin", 6, Layout(SHAPE, np.dtype(np.uint8), 6), None)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["mimic", "quantization", "teacher_only", "student_only"])
@pytest.mark.parametrize("order", ["pool_quantize", "quantize_pool"])
@pytest.mark.parametrize("pooling", ["align", "pool"])
@pytest.mark.parametrize("regions", ["teacher", "map"])
def test_the_loss_of_a_quantized_map_is_that_of_the_map_where_it_is_said_to_be(
    mode: str, order: str, pooling: str, regions: str
) -> None:
    config = MimicConfig(mode=mode, order=order, pooling=pooling, regions=regions)
    quantizer = Quantizer(QuantizerConfig(), torch.tensor([0.7]))
    mimic = Mimic(config, 2, 5, quantizer, torch.tensor(1.3), 16, seed=0)
    generator = torch.Generator().manual_seed(1)
    student = torch.relu(torch.randn(2, 2, 6, 6, generator=generator))
    teacher = torch.relu(torch.randn(2, 5, 6, 6, generator=generator)) * 3
    corner = torch.rand(2, 4, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 20 + 30 * torch.rand(2, 4, 2, generator=generator)], -1)
    rois = None if regions == "map" else Proposals(boxes, torch.ones(2, 4, dtype=torch.bool))
    same = torch.equal(mimic.loss(student, teacher, rois), mimic.loss(student, quantizer(teacher), rois))
    assert same == sees_levels(config)
