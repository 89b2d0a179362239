"""Memory: what the C library keeps between training steps, and how running out of it is recognised.

glibc hands large freed blocks back to the system and asks for them again a moment later; the system then clears
every page anew. For a tiny network that costs as much as its convolutions. Kept, the same blocks serve every step.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
LARGEST_BLOCK = 32 << 20  # glibc's own limit for blocks that it may keep
KEPT = 1 << 30


def keep_freed_memory() -> None:
    """Let this process keep up to 1 GiB that it has freed; without glibc, nothing happens."""
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)
        mallopt(M_TRIM_THRESHOLD, KEPT)


def is_lack_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, the GPU's included; torch has no single type for that."""
    return isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error)
