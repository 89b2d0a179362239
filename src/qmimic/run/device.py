"""Where a run computes: which processes, which device of this one, and sums on it that come out the same each time."""

import os
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.state import is_initialized
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

from qmimic.config import RunConfig
from qmimic.errors import InputError

PATIENCE = timedelta(hours=6)


def processes_here() -> int:
    """Processes of the run on this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def choose(config: RunConfig) -> tuple[Accelerator, torch.device]:
    """The processes of a run, and the device of this one.

    Networks are moved to the device by who builds them: Accelerate keeps its first device for as long as Python runs,
    but a script may train on a GPU and then export on the CPU.

    Raises:
        InputError: more processes than this machine has GPUs, or several processes of a run on another device.
    """
    cpu = config.device == "cpu" or not torch.accelerator.is_available()
    here, gpus = processes_here(), torch.accelerator.device_count()
    if not cpu and here > gpus:
        raise InputError(
            f"{here} processes were started on a machine with {gpus} GPU{'s' * (gpus > 1)}; start one process for "
            "each, or set run.device=cpu."
        )
    # Between processes: what a phase of the mimic loss does not use must not be waited for.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    # Told that there is no GPU: otherwise, processes without one would not find each other.
    first = not is_initialized()
    # One process labels pictures and prunes while the others wait: longer than the ten minutes that are usual.
    patience = InitProcessGroupKwargs(timeout=PATIENCE)
    accelerator = Accelerator(
        cpu=cpu and first,
        device_placement=False,
        mixed_precision="no",  # ours is chosen for each network, not by the launcher
        kwargs_handlers=[unused, patience],
    )
    if accelerator.num_processes > 1 and cpu != (accelerator.device.type == "cpu"):
        raise InputError(
            "Several processes stay on the device of their first run; start them anew to change run.device."
        )
    device = accelerator.device if accelerator.num_processes > 1 else _alone(cpu)
    _repeat_sums(device)
    return accelerator, device


def take_turn(turn: int) -> None:
    """Let this process, which is the turn-th of many that compute apart, use one of this machine's GPUs."""
    gpus = torch.accelerator.device_count()
    if gpus > 1:
        torch.accelerator.set_device_index(turn % gpus)


def _alone(cpu: bool) -> torch.device:
    """The device of a process that trains alone."""
    found = None if cpu else torch.accelerator.current_accelerator()
    return torch.device(found.type, torch.accelerator.current_device_index()) if found else torch.device("cpu")


def _repeat_sums(device: torch.device) -> None:
    """Have a GPU take sums in one order: left alone, its threads add as they end, and one seed gives many results."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # float32 is to mean the same as on the CPU; bf16 is a setting
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read by cuBLAS at its first product
    # What has no such form, as some layers of timm's networks, torch names in a warning and computes all the same.
    torch.use_deterministic_algorithms(device.type == "cuda", warn_only=True)
    # Nothing here reads what it has not written, so nothing needs to be filled first.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
