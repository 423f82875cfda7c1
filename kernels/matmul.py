"""Product of two computed matrices in integers, any layout of either."""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels.accumulate import (
    PIXELS,
    add_bias,
    multiply,
    write_accumulators,
    write_accumulators_naive,
    write_codes_naive,
)
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.requantize import requantize_row
from onnxptq.kernels.share import share, share_naive

U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]
I64 = npt.NDArray[np.int64]

COLUMNS = (
    *("a", "b", "y"),  # offsets in the arena
    "bias",  # offset in consts, i32 [n], or -1
    *("m", "k", "n"),
    *("a_m", "a_k", "b_k", "b_n", "y_m", "y_n"),  # strides in elements
    *("a_zero", "b_zero"),
    *("scratch", "scratch_bytes"),  # thread t has scratch + t * scratch_bytes in the arena
    "real_acc",  # 1: y are accumulators, i32, no requantization
)
# fmt: off
(
    A, B, Y, BIAS, M, K, N, A_M, A_K, B_K, B_N, Y_M, Y_N, A_ZERO, B_ZERO,
    SCRATCH, SCRATCH_BYTES, REAL_ACC,
) = range(1, 1 + len(COLUMNS))
# fmt: on

BLOCK = 64
"""Columns of b that are unpacked at a time."""


def matmul_scratch_bytes(k: int) -> int:
    """Bytes of scratch a thread needs, a multiple of 64."""
    return 4 * PIXELS * BLOCK + -(-2 * (PIXELS + BLOCK) * k // 64) * 64


def matmul_naive(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Specification of `matmul`: numpy's product, of int64."""
    r = dict(zip(COLUMNS, row[1:].tolist(), strict=False))
    m, k, n = (np.arange(r[axis]) for axis in "mkn")
    a = arena[r["a"] + m[:, None] * r["a_m"] + k * r["a_k"]].astype(np.int64) - r["a_zero"]
    b = arena[r["b"] + k[:, None] * r["b_k"] + n * r["b_n"]].astype(np.int64) - r["b_zero"]
    acc = a @ b
    if r["bias"] >= 0:
        acc += consts[r["bias"] : r["bias"] + 4 * n.size].view(np.int32)
    start, stop = share_naive(r["m"], thread, n_threads)
    for i in range(start, stop):
        if r["real_acc"]:
            write_accumulators_naive(acc[i], r["y"], i * r["y_m"], r["y_n"], arena)
        else:
            write_codes_naive(acc[i], r["y"], i * r["y_m"], r["y_n"], row, arena, consts)


@lean_jit
def matmul(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Write y[m, n] = codes of sum_k (a[m, k] - a_zero) * (b[k, n] - b_zero) + bias[n].

    Sums wrap around at 32 bits. Threads share the rows of a; each unpacks b for itself.

    Args:
        row: COLUMNS, then those of requantize.py, whose channels are the n columns, [64].
        arena: Holds a, b (u8), y (u8, or i32 with real_acc), scratch of `matmul_scratch_bytes`.
        consts: Holds bias and requantization.
        thread: Which part to compute, 0 .. n_threads - 1.
        n_threads: Number of parts.
    """
    k = row[K]
    at = row[SCRATCH] + thread * row[SCRATCH_BYTES]
    acc = arena[at : at + 4 * PIXELS * BLOCK].view(np.int32)
    at += 4 * PIXELS * BLOCK
    left = arena[at : at + 2 * PIXELS * k].view(np.int16)
    at += 2 * PIXELS * k
    right = arena[at : at + 2 * BLOCK * k].view(np.int16)
    start, stop = share(row[M], thread, n_threads)
    if start == stop:
        return
    for column in range(0, row[N], BLOCK):
        outs = min(BLOCK, row[N] - column)
        _unpack(arena, row[B] + column * row[B_N], row[B_N], row[B_K], row[B_ZERO], outs, right, k)
        for first in range(start, stop, PIXELS):
            count = min(PIXELS, stop - first)
            _unpack(
                arena, row[A] + first * row[A_M], row[A_M], row[A_K], row[A_ZERO], count, left, k
            )
            multiply(left, right, acc, count, outs, k)
            if row[BIAS] >= 0:
                add_bias(acc, count, outs, row[BIAS] + 4 * column, consts)
            for i in range(count):
                y = (first + i) * row[Y_M] + column * row[Y_N]
                sums = acc[i * outs : (i + 1) * outs]
                if row[REAL_ACC] == 0:
                    requantize_row(sums, column, outs, arena, row[Y] + y, row[Y_N], row, consts)
                else:
                    write_accumulators(sums, row[Y], y, row[Y_N], arena)


@lean_jit
def _unpack(
    arena: U8, begin: int, step: int, step_k: int, zero: int, count: int, numbers: I16, k: int
) -> None:
    """numbers[i, :k] = codes - zero of `count` vectors, `step` apart, elements `step_k` apart."""
    less = np.int32(zero)
    if step_k == 1:
        for i in range(count):
            at = begin + i * step
            codes, out = arena[at : at + k], numbers[i * k : (i + 1) * k]
            for j in range(k):
                out[j] = np.int16(np.int32(codes[j]) - less)
        return
    for j in range(k):
        for i in range(count):
            code = np.int32(arena[begin + i * step + j * step_k])
            numbers[i * k + j] = np.int16(code - less)
