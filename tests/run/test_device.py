"""Where a run computes, and that it computes the same there each time."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cli_cases import RECIPE, coco
from qmimic.config import RunConfig
from qmimic.errors import InputError
from qmimic.run import device

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture
def as_it_was() -> Any:
    """What a choice sets for the whole process is set back."""
    before = torch.are_deterministic_algorithms_enabled()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, as_it_was: None) -> Callable[[int, int], None]:
    """Pretends that there are so many GPUs, and that so many processes were started."""

    def pretend(gpus: int, processes: int) -> None:
        monkeypatch.setattr("torch.accelerator.is_available", lambda: gpus > 0)
        monkeypatch.setattr("torch.accelerator.device_count", lambda: gpus)
        monkeypatch.setattr("torch.accelerator.current_accelerator", lambda: torch.device("cuda"))
        monkeypatch.setattr("torch.accelerator.current_device_index", lambda: 0)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))

    return pretend


def test_a_script_may_use_the_gpu_and_then_the_cpu_and_the_gpu_again(machine: Callable[[int, int], None]) -> None:
    machine(1, 1)
    for wanted, given in ("auto", "cuda:0"), ("cpu", "cpu"), ("auto", "cuda:0"), ("cpu", "cpu"):
        accelerator, found = device.choose(RunConfig(device=wanted))
        assert str(found) == given
        assert accelerator.num_processes == 1
        assert torch.are_deterministic_algorithms_enabled() == (given != "cpu")


@pytest.mark.parametrize(("gpus", "machines"), [(1, "a machine with 1 GPU;"), (3, "a machine with 3 GPUs;")])
def test_more_processes_than_gpus_are_refused(machine: Callable[[int, int], None], gpus: int, machines: str) -> None:
    machine(gpus, 4)
    with pytest.raises(InputError, match=f"4 processes were started on {machines} .* or set run.device=cpu"):
        device.choose(RunConfig())


@pytest.mark.parametrize("gpus", [0, 1])
def test_processes_on_the_cpu_may_be_as_many_as_one_likes(machine: Callable[[int, int], None], gpus: int) -> None:
    machine(gpus, 4)
    assert str(device.choose(RunConfig(device="cpu"))[1]) == "cpu"


@pytest.mark.parametrize(("gpus", "taken"), [(0, []), (1, []), (3, [0, 1, 2, 0])])
def test_jobs_take_the_gpus_in_turn(
    machine: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch, gpus: int, taken: list[int]
) -> None:
    machine(gpus, 1)
    found: list[int] = []
    monkeypatch.setattr("torch.accelerator.set_device_index", found.append)
    for turn in range(4):
        device.take_turn(turn)
    assert found == taken


KINDS = {
    "two stages": [],
    "one stage": ["detector.architecture=one_stage"],
    "maxima over regions": ["detector.roi_pooling=pool", "mimic.pooling=pool"],
    "every view": ["augment.scale=[0.8,1.2]", "augment.mosaic=0.5", "augment.transpose=0.5", "student.ema=0.9"],
    "timm": ["teacher.backbone=timm:resnet10t"],
    **{
        name: [f"mimic.distiller={name}"]
        for name in ("channel_wise", "pearson", "fine_grained", "masked_generative", "focal_global", "two_stage_mimic")
    },
    **{name: [f"mimic.distiller={name}", "detector.architecture=one_stage"] for name in ("outputs", "cross_head")},
    "pruned": ["baselines=[taylor,lasso]"],
    "bf16": ["run.precision=bf16"],
}


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_on_a_gpu_one_seed_gives_one_result_whatever_is_trained(tmp_path: Path, kind: str) -> None:
    """In two processes: what a process has computed before must not matter."""
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    data = coco(tmp_path / "data", count=8)
    steps = ["teacher.steps=10", "quantized_teacher.steps=3", "student.steps=12", "data.size=[128,128]"]
    weights = []
    for name in "one", "two":
        run = tmp_path / name
        settings = [f"data.root={data}", f"run.dir={run}", *steps, *KINDS[kind]]
        command = [sys.executable, "-m", "qmimic", "train", str(tmp_path / "recipe.yaml"), *settings]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ})
        assert done.returncode == 0, done.stderr
        assert "does not have a deterministic implementation" not in done.stderr
        assert json.loads((run / "environment.json").read_text())["device"] == "cuda:0"
        weights.append({path.name: load_file(path) for path in sorted(run.glob("*.safetensors"))})
    assert weights[0].keys() == weights[1].keys()
    for name, own in weights[0].items():
        for key, value in own.items():
            assert torch.equal(value, weights[1][name][key]), f"{name} {key}"
