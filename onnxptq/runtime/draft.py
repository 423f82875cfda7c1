"""A plan that is being made: values, rows and constants, before the arena is laid out."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxptq.errors import ProgramError
from onnxptq.kernels.dispatch import MOST_PARTS, NUMBERS, ROW, columns_of
from onnxptq.program import ABSENT, Instr, IntegerProgram

Array = npt.NDArray[Any]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Shape = tuple[int, ...]

ALIGN = 64
"""Bytes of a cache line, and of the widest vector: everything in arena and consts starts at one."""
SCRATCH = -1
"""Storage of what a kernel writes down while it runs; every part of a row has its own."""
PART_WORK = 40_000
"""The least work of a part of a row: handing out less takes as long. Unit: 0.1 ns, about what it
takes to write a byte or for 16 multiplications."""
SIGN = 128
"""What an int8 code is stored with in addition, so that kernels only know uint8."""


@dataclass(frozen=True, slots=True)
class View:
    """Elements in the arena, one after the other.

    Attributes:
        storage: Which piece of the arena.
        offset: First byte in that piece.
        shape: Sizes.
        dtype: Type of an element as it is stored: uint8 for int8 codes.
    """

    storage: int
    offset: int
    shape: Shape
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def at(self, offset: int, shape: Shape) -> "View":
        """Other elements of the same piece, `offset` bytes after the first of these."""
        return View(self.storage, self.offset + offset, shape, self.dtype)


Cell = int | View
"""What a column of a row holds: a number, or the place of a value."""


@dataclass(frozen=True, slots=True)
class Origin:
    """What a step of a plan is for: position of the instruction, and who computes it."""

    instr: int
    kernel: str


@dataclass(frozen=True, slots=True)
class RowDraft:
    """A row whose places are still to be added: `places` has (column, storage)."""

    numbers: tuple[int, ...]
    places: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class IslandCall:
    """onnxruntime runs nodes between two segments of rows.

    Attributes:
        island: Which of the program's islands.
        inputs: Ids of the values it reads.
        outputs: Ids of the values it makes.
        node: For errors.
    """

    island: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    node: str


class Constants:
    """Arrays in one block of bytes, equal ones once."""

    def __init__(self) -> None:
        self._arrays: list[Array] = []
        self._offsets: dict[bytes, int] = {}
        self._size = 0

    def add(self, array: Array) -> int:
        """Offset of these bytes, which begin at a multiple of ALIGN."""
        array = np.ascontiguousarray(array)
        raw = array.reshape(-1).view(np.uint8).data
        key = hashlib.sha256(raw).digest()
        if key not in self._offsets:
            self._offsets[key] = self._size
            self._arrays.append(array)
            self._size += aligned(array.nbytes)
        return self._offsets[key]

    def block(self) -> U8:
        """All bytes."""
        block = empty_block(self._size)
        offset = 0
        for array in self._arrays:
            block[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
            offset += aligned(array.nbytes)
        return block


def aligned(size: int) -> int:
    """The next multiple of ALIGN."""
    return -(-size // ALIGN) * ALIGN


def empty_block(size: int) -> U8:
    """Uninitialised bytes [size] that begin at a multiple of ALIGN."""
    block = np.empty(size + ALIGN, np.uint8)
    start = -block.ctypes.data % ALIGN
    return block[start : start + size]


class Draft:
    """What has been planned so far.

    Attributes:
        program: What is planned.
        views: Values in the arena, by id.
        known: Values that are known before the program runs, as ONNX has them, by id.
        sizes: Bytes of each storage.
        images: Constants that lie in the arena: storage and what it holds.
        steps: Rows and islands, in order.
        origins: What each step is for.
        constants: What kernels read besides the arena.
        scratch_bytes: Of the row that needs most, for each part of it.
        sums: Residual sums that may be computed with the convolution whose output is the key.
        done: Outputs of instructions that another one's row computes too.
        instr: Position of the instruction that is being planned.
    """

    def __init__(self, program: IntegerProgram) -> None:
        self.program = program
        self.views: dict[int, View] = {}
        self.known: dict[int, Array] = dict(program.constants)
        self.sizes: list[int] = []
        self.images: list[tuple[int, Array]] = []
        self.steps: list[RowDraft | IslandCall] = []
        self.origins: list[Origin] = []
        self.constants = Constants()
        self.scratch_bytes = 0
        self.sums: Mapping[int, Instr] = {}
        self.done: set[int] = set()
        self.instr = 0

    def is_signed(self, value: int) -> bool:
        """Whether it holds int8 codes, which are stored with 128 added."""
        return self.program.values[value].dtype == "int8"

    def sign(self, value: int) -> int:
        """What its codes are stored with in addition."""
        return SIGN if self.is_signed(value) else 0

    def name(self, value: int) -> str:
        """Name of a value, for errors."""
        return self.program.values[value].name

    def shape(self, value: int) -> Shape:
        """Sizes of a value that is in the arena or known."""
        return self.views[value].shape if value in self.views else self.known[value].shape

    def numbers(self, instr: Instr, position: int) -> Array:
        """An operand that sets shapes.

        Raises:
            ProgramError: It is computed from the input.
        """
        value = instr.inputs[position]
        if value not in self.known:
            raise ProgramError(
                f"operand {position} ({self.name(value)!r}) depends on the input's values, but "
                "shapes must depend on shapes alone; keep the node in float"
            )
        return self.known[value]

    def optional_numbers(self, instr: Instr, position: int) -> tuple[int, ...] | None:
        """A list of integers that sets shapes; None where it is absent."""
        if position >= len(instr.inputs) or instr.inputs[position] == ABSENT:
            return None
        return tuple(int(n) for n in self.numbers(instr, position).reshape(-1))

    def read(self, value: int) -> View:
        """Where a value is, to compute with it."""
        if value not in self.views:
            self.views[value] = self._image(value)
        return self.views[value]

    def _image(self, value: int) -> View:
        array = self.known[value]
        view = self.temporary(array.shape, stored_dtype(self.program.values[value].dtype))
        self.images.append((view.storage, stored(array)))
        return view

    def make(self, value: int, shape: Sequence[int]) -> View:
        """Give a value its own place."""
        sizes = tuple(int(n) for n in shape)
        self.views[value] = self.temporary(sizes, stored_dtype(self.program.values[value].dtype))
        return self.views[value]

    def temporary(self, shape: Shape, dtype: np.dtype[Any]) -> View:
        """A place for something without a name."""
        self.sizes.append(math.prod(shape) * dtype.itemsize)
        return View(len(self.sizes) - 1, 0, shape, dtype)

    def scratch(self, size: int) -> dict[str, Cell]:
        """The columns of scratch of `size` bytes for each part of a row."""
        size = aligned(size)
        self.scratch_bytes = max(self.scratch_bytes, size)
        return {"scratch": View(SCRATCH, 0, (), np.dtype(np.uint8)), "scratch_bytes": size}

    def row(self, kernel: str, columns: Mapping[str, Cell], work: int) -> None:
        """Append a call of a kernel; columns that are not named hold 0.

        Args:
            kernel: Which one.
            columns: By name.
            work: How much there is to do, in units of PART_WORK.
        """
        numbers, places = [0] * ROW, list[tuple[int, int]]()
        numbers[0] = NUMBERS[kernel]
        where = columns_of(kernel)
        for name, cell in columns.items():
            if isinstance(cell, View):
                places.append((where[name], cell.storage))
                numbers[where[name]] = cell.offset
            else:
                numbers[where[name]] = int(cell)
        numbers[MOST_PARTS] = max(1, work // PART_WORK)
        self.steps.append(RowDraft(tuple(numbers), tuple(places)))
        self.origins.append(Origin(self.instr, kernel))


def stored_dtype(dtype: str) -> np.dtype[Any]:
    """Type of an element in the arena."""
    return np.dtype(np.uint8 if dtype == "int8" else dtype)


def stored(array: Array) -> Array:
    """A value as the arena has it; shares memory where it is the same."""
    if array.dtype == np.int8:
        return array.view(np.uint8) ^ np.uint8(SIGN)
    return array


def numbered(letter: str, numbers: Sequence[int]) -> dict[str, Cell]:
    """Columns n0, n1, ... of a list."""
    return {f"{letter}{i}": int(n) for i, n in enumerate(numbers)}
