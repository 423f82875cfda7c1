"""Moving codes: copies between any two layouts, fills, and taking along an axis.

Times of `copy` for bytes (ns each, one core of a Xeon with AVX-512, 2026-11):
    64x56x56: rows 0.05, NCHW to NHWC 0.17, back 0.22, the first through a table 0.45
        rows by memcpy 0.02, both transpositions by blocks of 16 x 64 in vectors 0.035
    3x224x224, NCHW to NHWC: byte by byte 0.93, as a shuffle of three vectors 0.026
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import microkernel as mk
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.share import share
from onnxptq.kernels.table import look_up

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

_SIZES = ("n0", "n1", "n2", "n3", "n4", "n5")
_FROM = ("x0", "x1", "x2", "x3", "x4", "x5")
_TO = ("y0", "y1", "y2", "y3", "y4", "y5")
COPY_COLUMNS = ("x", "y", "bytes", *_SIZES, *_FROM, *_TO, "table")
FILL_COLUMNS = ("y", "value", *_SIZES, *_TO)
TAKE_COLUMNS = ("x", "y", "outer", "count", "inner", "index", "length")

X, Y, BYTES, N0, N1, N2, N3, N4, N5 = range(1, 10)
X0, X1, X2, X3, X4, X5 = range(10, 16)
Y0, Y1, Y2, Y3, Y4, Y5 = range(16, 22)
COPY_TABLE = 22
FILL_Y, FILL_VALUE, FILL_N0 = range(1, 4)
FILL_N4, FILL_N5, FILL_Y0, FILL_Y4, FILL_Y5 = 7, 8, 9, 13, 14
TAKE_X, TAKE_Y, OUTER, COUNT, INNER, INDEX, LENGTH = range(1, 1 + len(TAKE_COLUMNS))

TILE = 32
"""Side of the squares in which a transposition goes, so that both sides stay in the cache."""


def _places_naive(row: I64, base: int, sizes: int, strides: int) -> I64:
    """Byte offset of every element, [n0, ..., n5]."""
    places = np.asarray(row[base])
    for axis in range(6):
        places = places[..., None] + np.arange(row[sizes + axis]) * row[strides + axis]
    return places


def copy_naive(row: I64, arena: U8, consts: U8, *_threads: int) -> None:
    """Specification of `copy`: byte by byte."""
    width = np.arange(row[BYTES])
    moved = arena[_places_naive(row, X, N0, X0)[..., None] + width]
    if row[COPY_TABLE] >= 0:
        moved = consts[row[COPY_TABLE] : row[COPY_TABLE] + 256][moved]
    arena[_places_naive(row, Y, N0, Y0)[..., None] + width] = moved


@lean_jit
def copy(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """y[i0, ..., i5] = x[i0, ..., i5] for any strides: transpose, slice, concat, broadcast, flip.

    Quick where the last axis is contiguous on both sides, and where of the last two axes one is
    contiguous in x and the other in y. x and y do not overlap.

    Args:
        row: COPY_COLUMNS. bytes: 1, 4 or 8 an element; strides in bytes, those of x may be negative
            or 0, and all are multiples of `bytes`, as are the offsets x and y. table: offset of
            uint8 [256] in consts that 1-byte elements go through, or -1.
        arena: uint8 [bytes], changed in place.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    lines = row[N0] * row[N1] * row[N2] * row[N3] * row[N4]
    first, last, start, stop = 0, lines, 0, row[N5]
    if lines >= n_threads:
        first, last = share(lines, thread, n_threads)
    else:
        start, stop = share(row[N5], thread, n_threads)
    if start >= stop:
        return
    line = first
    while line < last:
        # Lines of the last but one axis are one plane.
        count = min(row[N4] - line % row[N4], last - line)
        x_at = row[X] + _offset(row, N0, X0, line) + start * row[X5]
        y_at = row[Y] + _offset(row, N0, Y0, line) + start * row[Y5]
        if row[X5] == row[BYTES] and row[Y5] == row[BYTES] and row[COPY_TABLE] < 0:
            to, y4 = arena.ctypes.data + y_at, row[Y4]
            source, x4, size = arena.ctypes.data + x_at, row[X4], (stop - start) * row[BYTES]
            for k in range(count):
                mk.copy_bytes(to + k * y4, source + k * x4, size)
        elif row[BYTES] == 1:
            _copy_plane(row, arena, consts, x_at, y_at, count, stop - start)
        elif row[BYTES] == 4:
            words = arena[: arena.size // 4 * 4].view(np.int32)
            _copy_words(words, row, 2, x_at, y_at, count, stop - start)
        else:
            longs = arena[: arena.size // 8 * 8].view(np.int64)
            _copy_words(longs, row, 3, x_at, y_at, count, stop - start)
        line += count


@lean_jit
def _offset(row: I64, sizes: int, strides: int, line: int) -> int:
    """Bytes between the first line and `line`."""
    offset = 0
    for axis in range(4, -1, -1):
        n = row[sizes + axis]
        if n > 1:
            rest = line // n
            offset += (line - rest * n) * row[strides + axis]
            line = rest
    return offset


ACROSS, DOWN = 64, 16
"""Bytes of a line and lines of x that a block of a transposition has."""


def _interleave(count: int) -> Callable[..., None]:
    """Microkernel that makes one line of `count` lines: all first bytes, all second ones, ..."""

    @mk.microkernel("y", "x", "stride", "rounds")
    def interleave(
        builder: mk.Builder, y: mk.Vector, x: mk.Vector, stride: mk.Vector, rounds: mk.Vector
    ) -> None:
        def body(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> list[mk.Vector]:
            at = builder.add(x, builder.mul(turn, mk.number(ACROSS)))
            lines: list[mk.Vector] = []
            for _line in range(count):
                lines.append(mk.load(builder, at, mk.BYTES))
                at = builder.add(at, stride)
            pairs = [
                mk.shuffled(builder, lines[i], lines[min(i + 1, count - 1)], range(2 * ACROSS))
                for i in (0, 2)
            ]
            to = builder.add(y, builder.mul(turn, mk.number(count * ACROSS)))
            for part in range(count):
                places = [divmod(ACROSS * part + i, count) for i in range(ACROSS)]
                lanes = [ACROSS * line + pixel for pixel, line in places]
                mk.store(
                    builder, mk.shuffled(builder, *pairs, lanes), mk.at(builder, to, ACROSS * part)
                )
            return []

        mk.loop(builder, rounds, [], body)

    return interleave


interleave_3, interleave_4 = _interleave(3), _interleave(4)


def _block(across: int) -> Callable[..., None]:
    """Microkernel that transposes 16 lines of `across` bytes."""

    @mk.microkernel("y", "y_stride", "x", "x_stride")
    def transpose(
        builder: mk.Builder, y: mk.Vector, y_stride: mk.Vector, x: mk.Vector, x_stride: mk.Vector
    ) -> None:
        kind = mk.ir.VectorType(mk.I8, across)
        lines: list[mk.Vector] = []
        for _ in range(DOWN):
            lines.append(mk.load(builder, x, kind))
            x = builder.add(x, x_stride)
        # Four times line i and line i + 8 become two lines, byte by byte in turn, in each 16 bytes.
        low, high = (
            [
                lane
                for first in range(half, across, DOWN)
                for i in range(DOWN // 2)
                for lane in (first + i, across + first + i)
            ]
            for half in (0, DOWN // 2)
        )
        for _ in range(4):
            lines = [
                mk.shuffled(builder, lines[i], lines[i + DOWN // 2], lanes)
                for i in range(DOWN // 2)
                for lanes in (low, high)
            ]
        for first in range(0, across, DOWN):
            for line in lines:
                mk.store(builder, mk.shuffled(builder, line, line, range(first, first + DOWN)), y)
                y = builder.add(y, y_stride)

    return transpose


transpose_block, transpose_small = _block(ACROSS), _block(DOWN)


@lean_jit
def _copy_plane(
    row: I64, arena: U8, consts: U8, x_at: int, y_at: int, lines: int, length: int
) -> None:
    """Bytes of `lines` lines; through the table if there is one."""
    x4, x5, y4, y5 = row[X4], row[X5], row[Y4], row[Y5]
    if row[COPY_TABLE] >= 0:
        table = consts[row[COPY_TABLE] : row[COPY_TABLE] + 256]
        for k in range(lines):
            if x5 == 1 and y5 == 1:
                look_up(arena, x_at + k * x4, y_at + k * y4, length, table)
                continue
            for i in range(length):
                code = arena[x_at + k * x4 + i * x5]
                arena[y_at + k * y4 + i * y5] = table[code]
    elif x4 == 1 and y5 == 1:
        _transpose(arena, (x_at, x5), (y_at, y4), lines, length)
    elif x5 == 1 and y4 == 1:
        _transpose(arena, (x_at, x4), (y_at, y5), length, lines)
    else:
        _copy_rest(arena, (x_at, x4, x5), (y_at, y4, y5), (0, 0), (lines, length))


@lean_jit
def _transpose(arena: U8, x: tuple[int, int], y: tuple[int, int], lines: int, length: int) -> None:
    """y[k, i] = x[i, k] of bytes; x and y are the place of the first element and the wide stride.

    What does not fill a block is done again: the last block of a side ends where the side does.
    """
    (x_at, x_wide), (y_at, y_wide) = x, y
    memory = arena.ctypes.data
    if length in (3, 4) and y_wide == length and lines >= ACROSS:
        rounds = lines // ACROSS
        if length == 3:
            interleave_3(memory + y_at, memory + x_at, x_wide, rounds)
        else:
            interleave_4(memory + y_at, memory + x_at, x_wide, rounds)
        _copy_rest(
            arena, (x_at, 1, x_wide), (y_at, y_wide, 1), (rounds * ACROSS, 0), (lines, length)
        )
    elif length >= DOWN and lines >= ACROSS:
        for k in range(0, lines, ACROSS):
            left = min(k, lines - ACROSS)
            for i in range(0, length, DOWN):
                top = min(i, length - DOWN)
                source = memory + x_at + top * x_wide + left
                transpose_block(memory + y_at + left * y_wide + top, y_wide, source, x_wide)
    elif length >= DOWN and lines >= DOWN:
        for k in range(0, lines, DOWN):
            left = min(k, lines - DOWN)
            for i in range(0, length, DOWN):
                top = min(i, length - DOWN)
                source = memory + x_at + top * x_wide + left
                transpose_small(memory + y_at + left * y_wide + top, y_wide, source, x_wide)
    else:
        _copy_rest(arena, (x_at, 1, x_wide), (y_at, y_wide, 1), (0, 0), (lines, length))


@lean_jit
def _copy_rest(
    arena: U8,
    x: tuple[int, int, int],
    y: tuple[int, int, int],
    start: tuple[int, int],
    stop: tuple[int, int],
) -> None:
    """Bytes in tiles; x and y are the place of the first element and both strides."""
    (x_at, x4, x5), (y_at, y4, y5) = x, y
    for top in range(start[0], stop[0], TILE):
        for left in range(start[1], stop[1], TILE):
            _copy_tile(
                arena,
                (x_at + top * x4 + left * x5, x4, x5),
                (y_at + top * y4 + left * y5, y4, y5),
                min(TILE, stop[0] - top),
                min(TILE, stop[1] - left),
            )


@lean_jit
def _copy_tile(
    arena: U8, x: tuple[int, int, int], y: tuple[int, int, int], lines: int, length: int
) -> None:
    """Bytes of one tile; x and y are the place of the first element and both strides."""
    x_at, x4, x5 = x
    y_at, y4, y5 = y
    if y5 == 1:
        for k in range(lines):
            line = arena[y_at + k * y4 : y_at + k * y4 + length]
            begin = x_at + k * x4
            for i in range(length):
                line[i] = arena[np.uint64(begin + i * x5)]
    else:
        for i in range(length):
            for k in range(lines):
                source = np.uint64(x_at + k * x4 + i * x5)
                arena[np.uint64(y_at + k * y4 + i * y5)] = arena[source]


@lean_jit
def _copy_words(
    words: I32 | I64, row: I64, bits: int, x_at: int, y_at: int, lines: int, length: int
) -> None:
    """Elements of 2^bits bytes of `lines` lines."""
    x4, x5, y4, y5 = row[X4] >> bits, row[X5] >> bits, row[Y4] >> bits, row[Y5] >> bits
    x_at, y_at = x_at >> bits, y_at >> bits
    for k in range(lines):
        for i in range(length):
            source = np.uint64(x_at + k * x4 + i * x5)
            words[np.uint64(y_at + k * y4 + i * y5)] = words[source]


def fill_naive(row: I64, arena: U8, _consts: U8, *_threads: int) -> None:
    """Specification of `fill`."""
    arena[_places_naive(row, FILL_Y, FILL_N0, FILL_Y0)] = row[FILL_VALUE]


@lean_jit
def fill(row: I64, arena: U8, _consts: U8, thread: int, n_threads: int) -> None:
    """y[i0, ..., i5] = value, bytes: the borders of a Pad, a constant.

    Args:
        row: FILL_COLUMNS; strides in bytes; value: a stored code.
        arena: uint8 [bytes], changed in place.
        _consts: Not read.
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    length = row[FILL_N5]
    lines = row[FILL_N4]
    for axis in range(4):
        lines *= row[FILL_N0 + axis]
    first, last, start, stop = 0, lines, 0, length
    if lines >= n_threads:
        first, last = share(lines, thread, n_threads)
    else:
        start, stop = share(length, thread, n_threads)
    value, step = np.uint8(row[FILL_VALUE]), row[FILL_Y5]
    for line in range(first, last):
        at = row[FILL_Y] + _offset(row, FILL_N0, FILL_Y0, line) + start * step
        if step == 1:
            arena[at : at + stop - start] = value
        else:
            for i in range(stop - start):
                arena[at + i * step] = value


def take_naive(row: I64, arena: U8, consts: U8, *_threads: int) -> None:
    """Specification of `take`: numpy's take."""
    outer, count, inner, length = row[[OUTER, COUNT, INNER, LENGTH]].tolist()
    x = arena[row[TAKE_X] : row[TAKE_X] + outer * length * inner].reshape(outer, length, inner)
    index = consts[row[INDEX] : row[INDEX] + 8 * count].view(np.int64)
    y = x[:, index]
    arena[row[TAKE_Y] : row[TAKE_Y] + y.size] = y.ravel()


@lean_jit
def take(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """y[o, i] = x[o, index[i]], runs of `inner` bytes: Gather, Resize to nearest.

    Args:
        row: TAKE_COLUMNS. x [outer, length, inner], y [outer, count, inner], both contiguous bytes;
            index: offset of int64 [count] in consts, each in 0..length - 1.
        arena: uint8 [bytes], changed in place.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    count, inner, length = row[COUNT], row[INNER], row[LENGTH]
    index = consts[row[INDEX] : row[INDEX] + 8 * count].view(np.int64)
    start, stop = share(row[OUTER] * count, thread, n_threads)
    if start >= stop:
        return
    memory = arena.ctypes.data
    outer = start // count
    i = start - outer * count
    for run in range(start, stop):
        x_at = row[TAKE_X] + (outer * length + index[i]) * inner
        y_at = row[TAKE_Y] + run * inner
        if inner == 1:
            arena[y_at] = arena[x_at]
        else:
            mk.copy_bytes(memory + y_at, memory + x_at, inner)
        i += 1
        if i == count:
            i = 0
            outer += 1
