"""What a killed run needs to continue: weights, optimizer, moving average, step. The step gives the random numbers."""

import copy
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qmimic.detectors.files import TensorFile, load_state, read_tensors, require_sum, write_tensors
from qmimic.errors import InputError

KEPT = 2
NAME = r"step-\d{7,}\.safetensors"


def save_checkpoint(
    folder: Path,
    step: int,
    key: str,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
) -> None:
    """Write `step-N.safetensors` and remove all but the last two, this one included.

    Files of later steps are removed first: training did not continue from them, so they are damaged or another stage's.

    Args:
        folder: of the stage's checkpoints.
        step: steps done.
        key: fingerprint of the stage; another stage will not continue from this file.
        module: the objective that is trained.
        optimizer: its optimizer.
        average: moving average of its weights, if one is kept.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    tensors = {f"module.{name}": tensor for name, tensor in module.state_dict().items()}
    if average is not None:
        tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items() if value is not None}
    for torso in _named(folder, r"\.step-\d{7,}-[0-9a-f]{16}\.safetensors"):  # unfinished files of a killed process
        torso.unlink()
    newest = folder / f"step-{step:07d}.safetensors"
    write_tensors(newest, tensors, {"step": step, "key": key})
    files = _named(folder, NAME)
    place = files.index(newest) + 1
    for other in files[place:] + files[: max(0, place - KEPT)]:
        other.unlink()


def load_checkpoint(
    folder: Path,
    key: str,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: nn.Module | None,
    steps: int = sys.maxsize,
) -> int:
    """Restore the newest intact checkpoint of this stage; a damaged one is skipped with a warning.

    Args: as `save_checkpoint`, and the steps of the whole schedule.

    Returns:
        Steps done; 0 without a checkpoint, which leaves everything as it was.
    """
    parts: list[nn.Module | torch.optim.Optimizer] = [module, optimizer, *([] if average is None else [average])]
    for path in reversed(_named(folder, NAME)):
        untouched = copy.deepcopy([part.state_dict() for part in parts])
        try:
            file = read_tensors(path, verify=False)
            if not file.header:
                raise InputError("its header is missing")
            if file.header.get("key") != key:
                continue
            step = file.header["step"]
            if type(step) is not int or not 0 <= step <= steps:
                raise InputError(f"its step {step} is not one of the schedule's {steps}")
            load_state(module, _part(file, "module."), path)
            if average is not None:
                load_state(average, _part(file, "average."), path)
            _load_optimizer(optimizer, _part(file, "optimizer."))
            require_sum(file, path)
            return step
        except (InputError, KeyError, ValueError, TypeError, IndexError) as error:
            for part, state in zip(parts, untouched, strict=True):
                part.load_state_dict(state)
            warnings.warn(f"Checkpoint {path} is damaged ({error}); continuing from the one before it.", stacklevel=2)
    return 0


def _named(folder: Path, pattern: str) -> list[Path]:
    """The regular files of a folder whose whole name matches, in order; nothing else is ever read or removed."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if re.fullmatch(pattern, path.name) and not path.is_symlink())


def _part(file: TensorFile, prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): t for name, t in file.tensors.items() if name.startswith(prefix)}


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        index, _, key = name.partition(".")
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"NaN or infinite numbers in optimizer.{name}")
        parameter = parameters[int(index)]
        if tensor.shape == parameter.shape:
            # Fused optimizers go by memory, not by index: a moment must have its parameter's memory layout.
            tensor = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
