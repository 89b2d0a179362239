"""Checkpoints: training goes on as if it had never stopped, from the newest whole file of its own stage."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from qmimic.detectors.files import read_tensors, write_tensors
from qmimic.errors import InputError
from qmimic.training.state import load_checkpoint, save_checkpoint

pytestmark = pytest.mark.filterwarnings("error")  # only damage is worth a warning

KEY = "0123456789ab"
Optimizers = dict[str, Callable[[nn.Module], torch.optim.Optimizer]]
OPTIMIZERS: Optimizers = {
    "adamw": lambda module: torch.optim.AdamW(module.parameters(), lr=0.01, fused=True),
    "sgd": lambda module: torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9, fused=True),
    "plain": lambda module: torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.0, fused=True),
}


class Training:
    """A tiny network with a batch norm (whose buffers move too) and one weight that never gets a gradient."""

    def __init__(self, optimizer: str = "adamw", seed: int = 0, average: bool = True) -> None:
        torch.manual_seed(seed)
        self.module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        self.module.register_parameter("idle", nn.Parameter(torch.randn(2)))
        self.optimizer = OPTIMIZERS[optimizer](self.module)
        self.average = (
            AveragedModel(self.module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True) if average else None
        )
        self.done = 0

    def run(self, until: int) -> "Training":
        for step in range(self.done, until):
            x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
            self.optimizer.param_groups[0]["lr"] = 0.01 / (step + 1)
            self.optimizer.zero_grad()
            self.module(x).square().sum().backward()
            self.optimizer.step()
            if self.average is not None:
                self.average.update_parameters(self.module)
        self.done = until
        return self

    def save(self, folder: Path, key: str = KEY) -> None:
        save_checkpoint(folder, self.done, key, self.module, self.optimizer, self.average)

    def load(self, folder: Path, key: str = KEY) -> int:
        self.done = load_checkpoint(folder, key, self.module, self.optimizer, self.average)
        return self.done

    def tensors(self) -> dict[str, Tensor]:
        """Everything that decides the next step."""
        found = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        if self.average is not None:
            found |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{name}": value for name, value in state.items() if value is not None}
        return {name: value.clone() for name, value in found.items()}


def assert_same(one: Training, other: Training) -> None:
    first, second = one.tensors(), other.tensors()
    assert set(first) == set(second)
    for name, value in first.items():
        assert value.dtype == second[name].dtype, name
        assert torch.equal(value, second[name]), name


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    # Threads that wait for each other on a busy machine take longer than these networks do.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("optimizer", list(OPTIMIZERS))
def test_goes_on_bit_for_bit(tmp_path: Path, optimizer: str, average: bool) -> None:
    whole = Training(optimizer, average=average).run(9)
    Training(optimizer, average=average).run(4).save(tmp_path)
    resumed = Training(optimizer, seed=1, average=average)
    assert resumed.load(tmp_path) == 4
    assert_same(resumed, Training(optimizer, average=average).run(4))
    assert_same(resumed.run(9), whole)


def test_goes_on_bit_for_bit_with_channels_last(tmp_path: Path) -> None:
    # Where a weight's memory has another order than its indices, fused optimizers need their moments in that order.
    def convolution() -> Training:
        training = Training(average=False)
        training.module = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        training.optimizer = OPTIMIZERS["adamw"](training.module)
        return training

    def run(training: Training, start: int, stop: int) -> Training:
        for step in range(start, stop):
            images = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(step))
            training.optimizer.zero_grad()
            training.module(images.to(memory_format=torch.channels_last)).square().sum().backward()
            training.optimizer.step()
        training.done = stop
        return training

    whole = run(convolution(), 0, 6)
    run(convolution(), 0, 3).save(tmp_path)
    resumed = convolution()
    assert resumed.load(tmp_path) == 3
    assert_same(run(resumed, 3, 6), whole)


def test_saving_changes_nothing(tmp_path: Path) -> None:
    training = Training().run(3)
    training.save(tmp_path)
    assert_same(training.run(6), Training().run(6))


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    training = Training()
    for step in (1, 2, 5, 10):
        training.run(step).save(tmp_path)
    assert steps(tmp_path) == ["step-0000005.safetensors", "step-0000010.safetensors"]
    assert Training().load(tmp_path) == 10


def test_without_checkpoints_it_starts_at_zero(tmp_path: Path) -> None:
    training = Training()
    assert training.load(tmp_path) == 0
    assert training.load(tmp_path / "no folder") == 0
    assert_same(training, Training())


@pytest.mark.parametrize("size", [0, 5, 200, -1])
def test_a_file_that_was_cut_is_passed_over(tmp_path: Path, size: int) -> None:
    training = Training().run(2)
    training.save(tmp_path)
    training.run(4).save(tmp_path)
    newest = tmp_path / "step-0000004.safetensors"
    content = newest.read_bytes()
    newest.write_bytes(content[:size])
    resumed = Training(seed=1)
    with pytest.warns(UserWarning, match=r"step-0000004\.safetensors is damaged .*; continuing from the one before"):
        assert resumed.load(tmp_path) == 2
    assert_same(resumed.run(6), Training().run(6))


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("module.2.weight", "missing"),
        ("module.2.weight", "nan"),
        ("module.2.weight", "shape"),
        ("average.module.2.weight", "missing"),
        ("average.module.2.weight", "nan"),
        ("average.n_averaged", "missing"),
        ("optimizer.1.exp_avg", "nan"),
    ],
)
def test_a_damaged_tensor_spoils_nothing(tmp_path: Path, name: str, fault: str) -> None:
    training = Training().run(2)
    training.save(tmp_path)
    path = tmp_path / "step-0000002.safetensors"
    file = read_tensors(path)
    tensors = dict(file.tensors)
    if fault == "missing":
        del tensors[name]
    elif fault == "nan":
        tensors[name] = torch.full_like(tensors[name], torch.nan)
    else:
        tensors[name] = torch.ones(7)
    write_tensors(path, tensors, file.header)
    resumed = Training(seed=1)
    with pytest.warns(UserWarning, match="is damaged"):
        assert resumed.load(tmp_path) == 0
    # Nothing of the damaged file may stay behind in a run that starts anew.
    assert_same(resumed, Training(seed=1))
    assert_same(resumed.run(3), Training(seed=1).run(3))


@pytest.mark.parametrize("header", [{"key": KEY}, {"key": KEY, "step": None}, {"key": KEY, "step": "two"}])
def test_a_damaged_header_is_passed_over(tmp_path: Path, header: dict[str, object]) -> None:
    Training().run(2).save(tmp_path)
    path = tmp_path / "step-0000002.safetensors"
    write_tensors(path, dict(read_tensors(path).tensors), header)
    resumed = Training(seed=1)
    with pytest.warns(UserWarning, match="is damaged"):
        assert resumed.load(tmp_path) == 0
    assert_same(resumed, Training(seed=1))


def test_other_stages_are_passed_over_in_silence(tmp_path: Path) -> None:
    Training().run(2).save(tmp_path)
    Training().run(4).save(tmp_path, key="another stage")
    resumed = Training(seed=1)
    assert resumed.load(tmp_path) == 2
    assert_same(resumed, Training().run(2))
    assert resumed.load(tmp_path, key="a third") == 0


def test_new_checkpoints_outlive_later_ones_of_another_stage(tmp_path: Path) -> None:
    for step in (800, 900):
        training = Training()
        training.done = step
        training.save(tmp_path, key="another stage")
    training = Training()
    training.run(1).save(tmp_path)
    assert Training().load(tmp_path) == 1
    training.run(2).save(tmp_path)
    assert steps(tmp_path) == ["step-0000001.safetensors", "step-0000002.safetensors"]


def test_new_checkpoints_outlive_later_damaged_ones(tmp_path: Path) -> None:
    for step in (8, 9):
        (tmp_path / f"step-{step:07d}.safetensors").write_bytes(b"")
    training = Training()
    with pytest.warns(UserWarning, match="is damaged"):
        assert training.load(tmp_path) == 0
    training.run(1).save(tmp_path)
    assert Training().load(tmp_path) == 1


def test_a_full_disk_leaves_the_older_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training().run(1)
    training.save(tmp_path)
    training.run(2).save(tmp_path)

    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    training.run(3)
    with pytest.raises(InputError, match="No space left on device"):
        training.save(tmp_path)
    assert steps(tmp_path) == ["step-0000001.safetensors", "step-0000002.safetensors"]
