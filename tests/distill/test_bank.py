"""The teacher bank gives back what a distiller computed, to the last bit, or nothing."""

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
from qmimic.distill.bank import Bank, Entry, channels_last, layout_of, record_bytes
from qmimic.distill.distiller import Sides, Target
from qmimic.distill.mimic import Mimic, sees_levels
from qmimic.errors import InputError

ROWS = np.array([4, 0, 2])
CPU = torch.device("cpu")


def a_target(quantizer: Quantizer | None, scale: float = 3.0) -> Target:
    """A map, pooled regions, boxes and what is valid, as distillers keep them."""
    generator = torch.Generator().manual_seed(0)
    maps = {
        "map": torch.relu(torch.randn(3, 5, 3, 4, generator=generator)) * scale,
        "regions": torch.relu(torch.randn(3, 6, 5, 2, 2, generator=generator)) * scale,
    }
    if quantizer is not None:
        maps = {name: quantizer(one.movedim(-3, 1)).movedim(1, -3) for name, one in maps.items()}
    boxes = torch.rand(3, 6, 4, generator=generator) * 50
    valid = torch.rand(3, 6, generator=generator) > 0.3
    return channels_last({**maps, "boxes": boxes, "valid": valid})


@pytest.mark.parametrize("kind", ["uniform", "power_of_two"])
@pytest.mark.parametrize("stored", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_what_is_written_is_read_to_the_last_bit(tmp_path: Path, kind: str, stored: str, per_channel: bool) -> None:
    fine = 1.0 if stored == "uint8" or kind == "power_of_two" else 0.001
    stride = torch.linspace(0.3, 0.9, 5) * fine if per_channel else torch.tensor([0.37 * fine])
    quantizer = None if stored == "float32" else Quantizer(QuantizerConfig(kind=kind, per_channel=per_channel), stride)
    target = a_target(quantizer)
    grids = {} if quantizer is None else {"map": quantizer, "regions": quantizer}
    layout = layout_of([target], grids)
    kinds = {name: entry.kind for name, entry in layout.items()}
    levels = "uint8" if stored == "uint16" and kind == "power_of_two" else stored
    assert kinds == {"map": levels, "regions": levels, "boxes": "float32", "valid": "bool"}
    bank = Bank(tmp_path / "bank.bin", 6, layout)
    assert bank.read(ROWS, CPU) is None
    bank.write(ROWS, target)
    for own in (bank, Bank(tmp_path / "bank.bin", 6, layout)):  # as it is, and opened again
        found = own.read(ROWS, CPU)
        assert found is not None
        assert list(found) == list(layout)
        for name, one in target.items():
            assert torch.equal(found[name], one)
            assert found[name].dtype == one.dtype
            assert found[name].stride() == one.stride()
    assert (tmp_path / "bank.bin").stat().st_size == RecordFile.size(6, record_bytes(layout))
    assert bank.read(np.array([4, 1]), CPU) is None


def test_get_computes_once_and_reads_from_then_on(tmp_path: Path) -> None:
    target, calls = a_target(None), []

    def compute() -> Target:
        calls.append(1)
        return target

    bank = Bank(tmp_path / "bank.bin", 6, layout_of([target], {}))
    for _ in range(3):
        found = bank.get(torch.from_numpy(ROWS), compute)
        assert all(torch.equal(found[name], one) for name, one in target.items())
    assert len(calls) == 1


def test_every_damaged_byte_is_noticed(tmp_path: Path) -> None:
    path, target = tmp_path / "bank.bin", a_target(None)
    layout = layout_of([target], {})
    Bank(path, 6, layout).write(ROWS, target)
    whole = path.read_bytes()
    record = RecordFile.size(1, record_bytes(layout))
    for place in (0, record - 1, 2 * record + 77, 3 * record - 2):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])
        bank = Bank(path, 6, layout)
        assert bank.read(ROWS, CPU) is None
        bank.write(ROWS, target)
        assert bank.read(ROWS, CPU) is not None
    path.write_bytes(whole[: len(whole) // 2])  # cut short: what is left is used
    assert Bank(path, 6, layout).read(ROWS, CPU) is None
    assert Bank(path, 6, layout).read(ROWS[1:], CPU) is not None


def test_levels_that_a_byte_cannot_hold_are_not_kept(tmp_path: Path) -> None:
    quantizer = Quantizer(QuantizerConfig(), torch.tensor([0.01]))
    map_ = a_target(quantizer)["map"]
    bank = Bank(tmp_path / "bank.bin", 6, {"map": Entry((5, 3, 4), "uint8", quantizer)})
    bank.write(ROWS, {"map": map_})
    assert bank.read(ROWS, CPU) is None
    few = torch.cat([quantizer(map_[:1] * 0.1), map_[1:]])
    bank.write(ROWS, {"map": few})
    found = bank.read(ROWS[:1], CPU)
    assert found is not None
    assert torch.equal(found["map"], few[:1])


def test_a_full_disk_is_told_before_anything_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int, start: int, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match=r"of 0 MB cannot be made \(No space left.*run\.bank_mib=0") as caught:
        Bank(tmp_path / "bank.bin", 6, {"map": Entry((5, 3, 4), "float32")})
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", ["mimic", "quantization", "teacher_only", "student_only"])
@pytest.mark.parametrize("order", ["pool_quantize", "quantize_pool"])
@pytest.mark.parametrize("pooling", ["align", "pool", "crop"])
@pytest.mark.parametrize("regions", ["teacher", "map"])
def test_the_loss_of_a_quantized_map_is_that_of_the_map_where_it_is_said_to_be(
    mode: str, order: str, pooling: str, regions: str
) -> None:
    config = MimicConfig(mode=mode, order=order, pooling=pooling, regions=regions)
    quantizer = Quantizer(QuantizerConfig(), torch.tensor([0.7]))
    mimic = Mimic(config, Sides((2,), (5,), (16,), (16,), (torch.tensor(1.3),), quantizer, (96, 96), seed=0))
    generator = torch.Generator().manual_seed(1)
    student = torch.relu(torch.randn(2, 2, 6, 6, generator=generator))
    teacher = torch.relu(torch.randn(2, 5, 6, 6, generator=generator)) * 3
    corner = torch.rand(2, 4, 2, generator=generator) * 40
    boxes = torch.cat([corner, corner + 20 + 30 * torch.rand(2, 4, 2, generator=generator)], -1)
    rois = None if regions == "map" else Proposals(boxes, torch.ones(2, 4, dtype=torch.bool))
    losses = [mimic.loss_to(student, mimic.teacher_side(one, rois), rois) for one in (teacher, quantizer(teacher))]
    assert torch.equal(*losses) == sees_levels(config)
