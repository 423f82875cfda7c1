"""Mean of each channel over a whole map, by way of an integer sum and one requantization.

Versions tried (512 channels of 49 pixels, us, one core of a Xeon with AVX-512, 2026-11):
    sums of 64 channels in memory                       2.3
    sums of 64 channels in registers, of 16 bits        1.0
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import microkernel as mk
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.requantize import requantize_row, requantize_row_naive
from onnxptq.kernels.share import share

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

COLUMNS = (
    *("x", "y", "batch", "channels", "pixels"),
    *("x_n", "x_c", "x_p", "y_n", "y_c", "x_zero", "scratch", "scratch_bytes"),
)
(
    X, Y, BATCH, CHANNELS, PIXELS,
    X_N, X_C, X_P, Y_N, Y_C, X_ZERO, SCRATCH, SCRATCH_BYTES,
) = range(1, 1 + len(COLUMNS))  # fmt: skip

BLOCK = 64
"""Channels summed at once: a cache line of codes."""


def scratch_bytes() -> int:
    """Scratch that each thread needs, in bytes."""
    return 4 * BLOCK


def global_average_pool_naive(row: I64, arena: U8, consts: U8, *_threads: int) -> None:
    """Specification of `global_average_pool`."""
    batch, channels, pixels = row[[BATCH, CHANNELS, PIXELS]].tolist()
    x = np.lib.stride_tricks.as_strided(
        arena[row[X] :], (batch, channels, pixels), row[[X_N, X_C, X_P]]
    )
    acc = (x.astype(np.int64).sum(axis=2) - pixels * row[X_ZERO]).astype(np.int32)
    for n in range(batch):
        start = int(row[Y] + n * row[Y_N])
        requantize_row_naive(acc[n], 0, channels, arena, start, int(row[Y_C]), row, consts)


@lean_jit
def global_average_pool(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Codes of sum(x - x_zero) over all pixels; the scale of the requantization holds 1 / pixels.

    Args:
        row: COLUMNS, and those of requantize.py from 48 on. Strides in elements; x_zero a stored
            code; pixels below 2^23, so that sums fit int32; scratch_bytes as `scratch_bytes()`.
        arena: uint8 [bytes], changed in place; y does not overlap x.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    channels = row[CHANNELS]
    blocks = (channels + BLOCK - 1) // BLOCK
    begin = row[SCRATCH] + thread * row[SCRATCH_BYTES]
    sums = arena[begin : begin + 4 * BLOCK].view(np.int32)
    start, stop = share(row[BATCH] * blocks, thread, n_threads)
    for unit in range(start, stop):
        n = unit // blocks
        first = (unit - n * blocks) * BLOCK
        count = min(BLOCK, channels - first)
        acc = sums[:count]
        x_at = row[X] + n * row[X_N] + first * row[X_C]
        if row[X_C] == 1:
            _sum_blocks(row, arena, x_at, acc)
        else:
            _sum_planes(row, arena, x_at, acc)
        y_at = row[Y] + n * row[Y_N] + first * row[Y_C]
        requantize_row(acc, first, count, arena, y_at, row[Y_C], row, consts)


MOST_PIXELS = 257
"""Whose codes can be added up in 16 bits."""


@mk.microkernel("x", "step", "pixels", "acc")
def _add_pixels(
    builder: mk.Builder, x: mk.Vector, step: mk.Vector, pixels: mk.Vector, acc: mk.Vector
) -> None:
    """Add the sums of a few pixels `step` apart, of 64 channels, to the i32 at address `acc`."""
    words, sums = (mk.ir.VectorType(kind, BLOCK) for kind in (mk.I16, mk.I32))

    def body(builder: mk.Builder, turn: mk.Vector, carried: Sequence[mk.Vector]) -> list[mk.Vector]:
        codes = mk.load(builder, builder.add(x, builder.mul(turn, step)), mk.BYTES)
        return [builder.add(carried[0], builder.zext(codes, words))]

    (total,) = mk.loop(builder, pixels, [mk.constant(0, words)], body)
    old = mk.load(builder, acc, sums)
    mk.store(builder, builder.add(old, builder.zext(total, sums)), acc)


@lean_jit
def _sum_blocks(row: I64, arena: U8, x_at: int, acc: I32) -> None:
    """Sums where the channels of a pixel are contiguous: pixel by pixel."""
    nothing = np.int32(-row[PIXELS] * row[X_ZERO])
    for c in range(acc.size):
        acc[c] = nothing
    if acc.size == BLOCK:
        for first in range(0, row[PIXELS], MOST_PIXELS):
            pixels = min(MOST_PIXELS, row[PIXELS] - first)
            source = arena.ctypes.data + x_at + first * row[X_P]
            _add_pixels(source, row[X_P], pixels, acc.ctypes.data)
        return
    for p in range(row[PIXELS]):
        x = arena[x_at + p * row[X_P] : x_at + p * row[X_P] + acc.size]
        for c in range(acc.size):
            acc[c] = np.int32(acc[c] + np.int32(x[c]))


@lean_jit
def _sum_planes(row: I64, arena: U8, x_at: int, acc: I32) -> None:
    """Sums for any other strides: channel by channel."""
    pixels, step = row[PIXELS], row[X_P]
    for c in range(acc.size):
        x = arena[x_at + c * row[X_C] : x_at + c * row[X_C] + (pixels - 1) * step + 1]
        total = np.int32(0)
        if step == 1:
            for p in range(pixels):
                total = np.int32(total + np.int32(x[p]))
        else:
            for p in range(pixels):
                total = np.int32(total + np.int32(x[p * step]))
        acc[c] = np.int32(total - pixels * row[X_ZERO])
