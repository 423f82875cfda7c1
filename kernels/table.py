"""One code to one code: any function by a table of 256 entries, and clipping.

Versions of `table` tried (200,704 elements, ns each, one core of a Xeon with AVX-512, 2026-11):
    one load a code                                    0.173
    two vpermi2b of 128 entries, 64 codes at a time    0.026
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import microkernel as mk
from onnxptq.kernels import target
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.share import share

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

TABLE_COLUMNS = ("x", "y", "count", "table")
CLIP_COLUMNS = ("x", "y", "count", "lo", "hi")
X, Y, COUNT, TABLE = range(1, 1 + len(TABLE_COLUMNS))
LO, HI = range(4, 6)


def table_naive(row: I64, arena: U8, consts: U8, *_threads: int) -> None:
    """Specification of `table`."""
    codes = arena[row[X] : row[X] + row[COUNT]]
    arena[row[Y] : row[Y] + row[COUNT]] = consts[row[TABLE] : row[TABLE] + 256][codes]


TOGETHER = 64 if target.HAS_VBMI else 0
"""Codes that `_look_up` replaces at a time; 0 where the CPU has no instruction for it."""


@mk.microkernel("x", "y", "rounds", "entries")
def _look_up(builder: mk.Builder, *values: mk.Vector) -> None:
    """Replace 64 codes a round; the upper bit of a code says which half of the table it wants."""
    if not target.HAS_VBMI:
        return
    x, y, rounds, entries = values
    parts = [
        mk.load(builder, mk.at(builder, entries, place), mk.BYTES) for place in range(0, 256, 64)
    ]

    def body(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> list[mk.Vector]:
        offset = builder.mul(turn, mk.number(TOGETHER))
        codes = mk.load(builder, builder.add(x, offset), mk.BYTES)
        low, high = (
            mk.call(
                builder,
                "llvm.x86.avx512.vpermi2var.qi.512",
                mk.BYTES,
                [parts[half], codes, parts[half + 1]],
            )
            for half in (0, 2)
        )
        is_low = builder.icmp_signed(">=", codes, mk.constant(0, mk.BYTES))
        mk.store(builder, builder.select(is_low, low, high), builder.add(y, offset))
        return []

    mk.loop(builder, rounds, [], body)


@lean_jit
def look_up(arena: U8, x_at: int, y_at: int, count: int, entries: U8) -> None:
    """y[i] = entries[x[i]] for codes one after the other at two places of the arena.

    Args:
        arena: Changed in place; y may be x, but not overlap it otherwise.
        x_at: Offset of x.
        y_at: Offset of y.
        count: How many.
        entries: [256].
    """
    done = 0
    if TOGETHER > 0:
        rounds = count // TOGETHER
        if rounds > 0:
            memory = arena.ctypes.data
            _look_up(memory + x_at, memory + y_at, rounds, entries.ctypes.data)
        done = rounds * TOGETHER
    x, y = arena[x_at + done : x_at + count], arena[y_at + done : y_at + count]
    for i in range(y.size):
        y[i] = entries[x[i]]


@lean_jit
def table(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """y[i] = table[x[i]].

    Args:
        row: TABLE_COLUMNS; table: offset of uint8 [256] in consts.
        arena: uint8 [bytes], changed in place; y may be x.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    start, stop = share(row[COUNT], thread, n_threads)
    entries = consts[row[TABLE] : row[TABLE] + 256]
    look_up(arena, row[X] + start, row[Y] + start, stop - start, entries)


def clip_naive(row: I64, arena: U8, _consts: U8, *_threads: int) -> None:
    """Specification of `clip`."""
    codes = arena[row[X] : row[X] + row[COUNT]]
    arena[row[Y] : row[Y] + row[COUNT]] = np.minimum(np.maximum(codes, row[LO]), row[HI])


@lean_jit
def clip(row: I64, arena: U8, _consts: U8, thread: int, n_threads: int) -> None:
    """y[i] = min(max(x[i], lo), hi).

    Args:
        row: CLIP_COLUMNS; lo and hi are stored codes, 0..255.
        arena: uint8 [bytes], changed in place; y may be x.
        _consts: Not read.
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    start, stop = share(row[COUNT], thread, n_threads)
    x = arena[row[X] + start : row[X] + stop]
    y = arena[row[Y] + start : row[Y] + stop]
    lo, hi = np.uint8(row[LO]), np.uint8(row[HI])
    for i in range(y.size):
        y[i] = min(max(x[i], lo), hi)
