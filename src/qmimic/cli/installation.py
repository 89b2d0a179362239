"""What this machine and this installation can do for qmimic; heavy libraries are imported only to test them."""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qmimic.extras import Extra, extras, install, version_of

SHOWN = ("qmimic", "torch", "torchvision", "numpy", "pillow", "accelerate", "onnxruntime", "openvino")
# Processor flags as Linux names them, with the makers' names.
FEATURES = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "avx512_bf16": "AVX-512 bf16",
    "amx_int8": "AMX int8",
    "amx_bf16": "AMX bf16",
    "asimd": "NEON",
    "asimddp": "NEON dot product",
    "i8mm": "NEON int8 matrix product",
    "bf16": "NEON bf16",
}
INT8 = {"AVX-512 VNNI", "AVX VNNI", "AMX int8", "NEON dot product", "NEON int8 matrix product"}
LOW_DISK, LOW_MEMORY = 2 << 30, 2 << 30  # bytes
TORCH_SECONDS = 120
_ASK_TORCH = """import json, torch, torchvision
gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
print(json.dumps({"threads": torch.get_num_threads(), "gpus": gpus}))"""


@dataclass(frozen=True)
class Diagnosis:
    """What was found.

    Attributes:
        versions: of Python, qmimic and the libraries; None for a missing one.
        system: operating system and architecture.
        processor: its name.
        cores, allowed: number that the machine has, and that this process may use (by affinity and container limit).
        features: of the processor, those that matter here.
        follows: what the features mean, as sentences.
        threads: how many torch uses; None without torch.
        gpus: that torch sees.
        memory, free_memory, free_disk: bytes; memory within the container's limit, 0 if unknown.
        folder: on the disk in question.
        extras: installed or missing.
        broken: sentences on what keeps training from working, each with its fix.
        advice: sentences worth knowing.
    """

    versions: dict[str, str | None]
    system: str
    processor: str
    cores: int
    allowed: float
    features: tuple[str, ...]
    follows: tuple[str, ...]
    threads: int | None
    gpus: tuple[str, ...]
    memory: int
    free_memory: int
    free_disk: int
    folder: Path
    extras: tuple[Extra, ...]
    broken: tuple[str, ...]
    advice: tuple[str, ...]


def examine(folder: Path) -> Diagnosis:
    """Examine the machine and the installation.

    Args:
        folder: for runs; it need not exist.
    """
    known = tuple(extras())
    broken, advice = [], []
    train = next((one for one in known if one.name == "train"), None)
    missing = [name for name, own in train.packages.items() if own is None] if train else []
    threads: int | None = None
    gpus: tuple[str, ...] = ()
    if missing:
        listed = ", ".join(missing[:4]) + (" and others" if len(missing) > 4 else "")
        broken.append(f"Training needs {listed}: {install('train')}.")
    if version_of("torch"):
        threads, gpus, fault = _torch()
        if fault:
            broken.append(f"torch is installed but does not start ({fault}); install it again.")
    where = _existing(folder)
    disk = shutil.disk_usage(where).free
    if not os.access(where, os.W_OK):
        broken.append(f"{where} cannot be written, but runs go there; work in another folder, or set run.dir.")
    if disk < LOW_DISK:
        advice.append(
            f"Little disk space is free in {where}; `qmimic runs clean` deletes teacher banks and decoded images."
        )
    memory, free = _memory()
    if 0 < free < LOW_MEMORY:
        advice.append("Little memory is free; close programs, or lower batch_size and data.size.")
    features = _features()
    return Diagnosis(
        versions={"python": platform.python_version(), **{name: version_of(name) for name in SHOWN}},
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        processor=_processor(),
        cores=os.cpu_count() or 1,
        allowed=_allowed(),
        features=features,
        follows=_follows(features),
        threads=threads,
        gpus=gpus,
        memory=memory,
        free_memory=free,
        free_disk=disk,
        folder=where,
        extras=known,
        broken=tuple(broken),
        advice=tuple(advice),
    )


def _torch() -> tuple[int | None, tuple[str, ...], str]:
    """Threads, GPUs, and any fault; asked in a separate process, which a broken torch may crash."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=TORCH_SECONDS, check=False
        )
        if done.returncode:
            return None, (), (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        told = json.loads(done.stdout.splitlines()[-1])
        return int(told["threads"]), tuple(map(str, told["gpus"])), ""
    except subprocess.TimeoutExpired:
        return None, (), f"no answer in {TORCH_SECONDS} s"
    except (OSError, ValueError, LookupError) as error:
        return None, (), str(error)


def _follows(features: tuple[str, ...]) -> tuple[str, ...]:
    if not features:
        return ("The features of this processor are unknown; `qmimic bench` measures what files cost on it.",)
    integers = [name for name in features if name in INT8]
    said = [
        f"int8 files are fast here ({integers[0]}); `qmimic export --int8 --to onnx,openvino` writes them."
        if integers
        else "int8 files save space here but hardly any time: this processor has no instructions for int8 products."
    ]
    if "AVX-512 bf16" in features:
        said.append("Teachers of width divisor 4 or less train in bf16 (run.precision=auto).")
    else:
        said.append("Training on this CPU is in fp32: it has no AVX-512 bf16.")
    return tuple(said)


def _features() -> tuple[str, ...]:
    flags: set[str] = set()
    if sys.platform.startswith("linux"):
        found = re.search(r"^(?:flags|Features)\s*:\s*(.*)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
        flags = set(found[1].split()) if found else set()
    elif sys.platform == "darwin":
        told = _sysctl("machdep.cpu.leaf7_features") + " " + _sysctl("hw.optional.arm.FEAT_DotProd")
        flags = {"asimd", "asimddp"} if told.strip().endswith("1") else {flag.lower() for flag in told.split()}
    return tuple(name for flag, name in FEATURES.items() if flag in flags)


def _processor() -> str:
    if sys.platform == "darwin":
        return _sysctl("machdep.cpu.brand_string") or platform.machine()
    found = re.search(r"^(?:model name|Model)\s*:\s*(.*)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _allowed() -> float:
    """Cores that this process may use: its affinity, and the limit of its control group (version 2, then 1)."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _text(Path("/sys/fs/cgroup/cpu.max")).partition(" ")
    if not quota:
        group = Path("/sys/fs/cgroup/cpu")
        quota, period = _text(group / "cpu.cfs_quota_us").strip(), _text(group / "cpu.cfs_period_us")
    try:
        limit = int(quota) / int(period)
    except (ValueError, ZeroDivisionError):  # "max": no limit
        return affinity
    return min(affinity, limit) if limit > 0 else affinity


def _memory() -> tuple[int, int]:
    """Bytes of memory, total and free, within the control group's limit."""
    found = dict(re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB", _text(Path("/proc/meminfo")), re.MULTILINE))
    total, free = 1024 * int(found.get("MemTotal", 0)), 1024 * int(found.get("MemAvailable", 0))
    if not total and sys.platform == "darwin":
        total = int(_sysctl("hw.memsize") or 0)
    group = Path("/sys/fs/cgroup")
    limit, used = _text(group / "memory.max").strip(), _text(group / "memory.current").strip()
    if limit.isdecimal() and used.isdecimal():
        total = min(total or int(limit), int(limit))
        free = min(free, int(limit) - int(used))
    return total, free


def _sysctl(name: str) -> str:
    done = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists."""
    folder = folder.resolve()
    return next(one for one in (folder, *folder.parents) if one.is_dir())
