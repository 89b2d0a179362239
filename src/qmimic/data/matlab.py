"""MATLAB files (version 5, as before 7.3): texts, numbers and cells of them, and nothing else.

A general reader trusts what such a file says of its own sizes and types, and a kilobyte made by hand ends the process
or fills its memory. This one reads the kinds of values that label files have, and checks each against the bytes that
are there.
"""

import math
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from qmimic.errors import InputError
from qmimic.files import MIB, read_bytes

MAX_BYTES = 64 * MIB  # of a file, and of what its compressed parts become; WIDER FACE's largest needs a third
MAX_VALUES = 1_000_000  # texts, arrays and cells
MAX_CELLS = 4  # cells in cells
HEADER = 128
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX, COMPRESSED = 14, 15
TEXTS = {1: "latin-1", 2: "latin-1", 4: "utf-16", 16: "utf-8", 17: "utf-16", 18: "utf-32"}
CELL, CHARACTERS, NUMERIC = 1, 4, range(6, 16)  # classes of arrays
COMPLEX = 0x800

Value: TypeAlias = str | NDArray[Any] | list[Any]  # of a list, again such values


def read_matlab(path: Path, names: Collection[str], root: Path | None = None) -> dict[str, Value]:
    """Variables of a MATLAB file.

    Args:
        path: of the file.
        names: of the variables that are wanted; others are passed over.
        root: folder that the file may not leave, see `files.open_file`.

    Returns:
        Texts as str, numbers as arrays of their shape, cells as a list, column by column.

    Raises:
        MissingError: there is no such file.
        InputError: it is cut short, too large, of another version, or a variable is of another kind.
    """
    content = read_bytes(path, MAX_BYTES, root)
    try:
        return _File(content).variables(names)
    except (ValueError, zlib.error, OverflowError, TypeError) as error:
        raise InputError(
            f"{path} is cut short or not a MATLAB file before version 7.3 ({error}); fetch it again."
        ) from error


class _File:
    def __init__(self, content: bytes) -> None:
        ends = {b"IM": "<", b"MI": ">"}.get(content[HEADER - 2 : HEADER])
        if ends is None:
            raise ValueError("it lacks the header")
        self._content, self._ends = content, ends
        self._left, self._values = MAX_BYTES, MAX_VALUES

    def variables(self, names: Collection[str]) -> dict[str, Value]:
        found: dict[str, Value] = {}
        rest = memoryview(self._content)[HEADER:]
        while len(rest):
            kind, own, rest = self._element(rest)
            if kind == COMPRESSED:
                kind, own, _ = self._element(memoryview(self._unpacked(own)))
            if kind != MATRIX:
                raise ValueError(f"there is a part of type {kind} where a variable should be")
            name, value = self._matrix(own, names, 0)
            if value is not None:
                found[name] = value
        return found

    def _unpacked(self, packed: memoryview) -> bytes:
        unpacked = zlib.decompressobj().decompress(packed, self._left + 1)
        self._left -= len(unpacked)
        if self._left < 0:
            raise ValueError(f"it becomes more than {MAX_BYTES // MIB} MiB")
        return unpacked

    def _element(self, rest: memoryview) -> tuple[int, memoryview, memoryview]:
        """Type and bytes of the first element, and what follows it."""
        tag, length = (self._number(rest, place) for place in (0, 4))
        start = 8
        if tag >> 16:  # a small one: type and length share four bytes, the data have the other four
            tag, length, start = tag & 0xFFFF, tag >> 16, 4
            if length > 4:
                raise ValueError("a small element is not small")
        end = start + length
        if end > len(rest):
            raise ValueError(f"{length} bytes are promised and {len(rest) - start} are there")
        after = end if tag == COMPRESSED else (end + 7) // 8 * 8
        return tag, rest[start:end], rest[after:]

    def _number(self, rest: memoryview, place: int) -> int:
        if len(rest) < place + 4:
            raise ValueError("it ends in the middle of an element")
        return int.from_bytes(rest[place : place + 4], "little" if self._ends == "<" else "big")

    def _matrix(self, rest: memoryview, names: Collection[str] | None, depth: int) -> tuple[str, Value | None]:
        """A variable's or a cell's name and value; no value if its name is not among those that are wanted."""
        self._values -= 1
        if self._values < 0:
            raise ValueError(f"it has more than {MAX_VALUES:,} values")
        if not len(rest):
            return "", np.zeros((0, 0))
        _, flags, rest = self._element(rest)
        flag = self._number(flags, 0)
        kind, shape, rest = self._element(rest)
        if kind != 5 or len(shape) % 4 or not 2 <= len(shape) // 4 <= 4:
            raise ValueError("an array has no shape")
        sides = tuple(self._number(shape, place) for place in range(0, len(shape), 4))
        _, label, rest = self._element(rest)
        name = label.tobytes().decode("latin-1")
        if names is not None and name not in names:
            return name, None
        count = math.prod(sides)
        if flag & 0xFF == CELL:
            return name, self._cells(rest, count, depth)
        kind, data, _ = self._element(rest)
        if flag & 0xFF == CHARACTERS:
            return name, self._text(kind, data, sides, count)
        if flag & 0xFF not in NUMERIC or flag & COMPLEX or kind not in NUMBERS:
            raise ValueError(f"{name or 'a cell'} is neither text nor real numbers nor cells")
        values = np.frombuffer(data, self._ends + NUMBERS[kind])
        if len(values) != count:
            raise ValueError(f"{name or 'a cell'} has {len(values)} numbers and a shape for {count}")
        return name, values.reshape(sides, order="F")

    def _cells(self, rest: memoryview, count: int, depth: int) -> list[Value]:
        if depth >= MAX_CELLS:
            raise ValueError(f"it has more than {MAX_CELLS} cells in each other")
        cells: list[Value] = []
        for _ in range(count):  # each takes eight bytes at least, so that the bytes that are there end this
            kind, own, rest = self._element(rest)
            if kind != MATRIX:
                raise ValueError(f"there is a part of type {kind} where a cell should be")
            _, value = self._matrix(own, None, depth + 1)
            assert value is not None, "all cells are wanted"
            cells.append(value)
        return cells

    def _text(self, kind: int, data: memoryview, sides: tuple[int, ...], count: int) -> str:
        if kind not in TEXTS or (count and sides[0] != 1):
            raise ValueError("a text is not one line")
        coding = TEXTS[kind] + ({"<": "-le", ">": "-be"}[self._ends] if kind in (4, 17, 18) else "")
        return data.tobytes().decode(coding)
