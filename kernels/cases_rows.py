"""Lays out the arena, the constants and the row of one kernel call, for tests and benchmarks."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Arguments = tuple[Any, ...]
U8 = npt.NDArray[np.uint8]

ROW = 64
ALIGNMENT = 64
JUNK = 0xA5
"""What lies between the arrays and in results before the call: a stray write shows."""


class Layout:
    """Arrays put one after the other, each at an offset that is a multiple of 64 bytes."""

    def __init__(self) -> None:
        self._arena: list[U8] = []
        self._consts: list[U8] = []

    def put(self, array: npt.NDArray[Any]) -> int:
        """Put `array` into the arena; its byte offset."""
        return _append(self._arena, array)

    def room(self, size_bytes: int) -> int:
        """Room for a result in the arena; its byte offset."""
        return _append(self._arena, np.full(size_bytes, JUNK, np.uint8))

    def const(self, array: npt.NDArray[Any]) -> int:
        """Put `array` into the constants; its byte offset."""
        return _append(self._consts, array)

    def arguments(self, columns: Mapping[int, int]) -> Arguments:
        """The arguments of a call by one thread, from column number to value."""
        row = np.zeros(ROW, np.int64)
        for column, value in columns.items():
            row[column] = value
        return row, _joined(self._arena), _joined(self._consts), 0, 1


def named(columns: tuple[str, ...], **values: int) -> dict[int, int]:
    """Column numbers and values; the COLUMNS of a kernel must be given one value each.

    Raises:
        KeyError: A column has no value, or a value has no column.
    """
    if set(values) != set(columns):
        raise KeyError(f"not in both: {sorted(set(values) ^ set(columns))}")
    return {1 + columns.index(name): value for name, value in values.items()}


def numbered(name: str, values: tuple[int, ...] | list[int]) -> dict[str, int]:
    """Columns n0, n1, ... and their values."""
    return {f"{name}{i}": int(value) for i, value in enumerate(values)}


def _append(parts: list[U8], array: npt.NDArray[Any]) -> int:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    offset = sum(part.size for part in parts)
    padding = ALIGNMENT + -flat.size % ALIGNMENT
    parts.append(np.concatenate([flat, np.full(padding, JUNK, np.uint8)]))
    return offset


def _joined(parts: list[U8]) -> U8:
    return np.concatenate([np.zeros(0, np.uint8), *parts])
