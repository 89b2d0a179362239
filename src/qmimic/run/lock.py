"""One process at a time in a run folder; POSIX only."""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path

from qmimic.errors import InputError
from qmimic.files import refuse_links
from qmimic.run.folder import OURS, TRACKERS


@contextlib.contextmanager
def exclusive_lock(folder: Path, patience: float = 0.3, writes: bool = True) -> Iterator[None]:
    """Hold a folder, which is made if it is missing: no other process can hold it while the body runs.

    The operating system holds the lock, on the folder itself: however the process ends, the lock goes with it.

    Args:
        folder: any.
        patience: how long to wait for another process to leave, seconds; a moment, for `taken` looks for one.

        writes: the body writes into it, so nothing of ours there may be a link.

    Raises:
        InputError: another process holds it, the folder cannot be made, or something of ours in it is a link.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"Cannot write {folder}: {reason}; choose another folder.") from error
    try:
        # Some network disks have no such locks: there the user has to take care.
        with contextlib.suppress(OSError):
            _lock(handle, folder, time.monotonic() + patience)
        if writes:
            refuse_links(folder, OURS, TRACKERS)
        yield
    finally:
        os.close(handle)


def taken(folder: Path) -> bool:
    """Whether a process holds a folder just now."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a disk without such locks
        return False
    finally:
        os.close(handle)
    return False


def _lock(handle: int, folder: Path, until: float) -> None:
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise InputError(
                    f"Another process is training in {folder}; wait for it, or set run.dir to another folder."
                ) from error
            time.sleep(0.2)
