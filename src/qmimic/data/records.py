"""Records of equal length in one memory-mapped file: what is costly to compute and the same each time is kept there.

A record carries a checksum. One that is missing, half written by a killed process or damaged reads as absent and is
computed again, so a file needs no making and no closing. It is never stale either, if its name is the fingerprint of
all that decides what is in it. Processes on one machine share its pages.
"""

import contextlib
import errno
import os
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from qmimic.errors import InputError
from qmimic.files import is_there, own_folder, own_handle

SUM_BYTES = 4


class RecordFile:
    """An open file of records.

    Args:
        path: of the file; it and its folder are made if need be.
        count: of records.
        length: bytes of a record, without its checksum.
        name: what a person calls the file.
        without: the setting by which a person does without it.

    Raises:
        InputError: the file cannot be made, or the disk has no room for all of it.
    """

    def __init__(self, path: Path, count: int, length: int, name: str, without: str) -> None:
        self.count, self.length = count, length
        size = self.size(count, length)
        existed = is_there(path)
        try:
            own_folder(path.parent, path.parent.parent)
            with os.fdopen(own_handle(path, os.O_RDWR), "r+b") as file:
                # All of it at once: a mapped file that finds the disk full later would kill the process.
                os.posix_fallocate(file.fileno(), 0, size)
                os.ftruncate(file.fileno(), size)
                self._file: NDArray[np.uint8] = np.memmap(file, np.uint8, "r+", shape=(count, length + SUM_BYTES))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not existed:
                with contextlib.suppress(OSError):
                    path.unlink()
            raise InputError(
                f"The {name} {path} of {size / 1e6:.0f} MB cannot be made ({error.strerror}); "
                f"free some space, or set {without}=0 to do without."
            ) from error
        self._sound = np.zeros(count, np.bool_)  # checked once by this process

    @staticmethod
    def size(count: int, length: int) -> int:
        """Bytes of a file of so many records."""
        return count * (length + SUM_BYTES)

    def read(self, row: int) -> NDArray[np.uint8] | None:
        """A record, uint8 [length], not copied; None if it is absent."""
        stored = self._file[row]
        if not self._sound[row]:
            self._sound[row] = zlib.crc32(stored[:-SUM_BYTES].data) == int(stored[-SUM_BYTES:].view(np.uint32)[0])
        return stored[:-SUM_BYTES] if self._sound[row] else None

    def write(self, row: int, record: NDArray[np.uint8]) -> None:
        """Keep a record, uint8 [length]."""
        self._file[row, :-SUM_BYTES] = record
        self._file[row, -SUM_BYTES:] = np.array([zlib.crc32(record.data)], np.uint32).view(np.uint8)
