"""What convolutions and products share: the product of int16 rows, the bias, the way to y.

Each inner loop over K serves 2 pixels x 4 channels, and LLVM makes it multiply-add pairs of int16.

Versions tried (one thread of a Xeon 2.6 GHz with AVX512-VNNI, 2026-11), GMAC/s at K = 576, 64 out:
    int32 dot product, 1 pixel x 4 channels                   19.5
    2 pixels x 2 channels                                     21.7
    2 pixels x 4 channels                                     23.9
"""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.requantize import requantize_row_naive

U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

PIXELS = 16
"""Output pixels a pass over the weights: patches stay in the second cache at K = 4608."""


def multiply_naive(patches: I16, weight: I16, acc: I32, pixels: int, outs: int, k: int) -> None:
    """Specification of `multiply`: numpy's product, of int64."""
    left = patches[: pixels * k].reshape(pixels, k).astype(np.int64)
    right = weight[: outs * k].reshape(outs, k).astype(np.int64)
    acc[: pixels * outs] = (left @ right.T).astype(np.int32).ravel()


@lean_jit
def multiply(patches: I16, weight: I16, acc: I32, pixels: int, outs: int, k: int) -> None:
    """acc[i, o] = sum over K of patches[i] * weight[o], for the first `pixels` patches.

    Args:
        patches: Left factors, [>= pixels, K], within -255 .. 255.
        weight: Right factors, [outs, K], within -255 .. 255.
        acc: Result, [>= pixels, outs].
        pixels: How many patches there are.
        outs: How many rows `weight` has.
        k: K.
    """
    fours, pairs = outs // 4 * 4, pixels // 2 * 2
    for o in range(0, fours, 4):
        w0, w1 = weight[o * k : (o + 1) * k], weight[(o + 1) * k : (o + 2) * k]
        w2, w3 = weight[(o + 2) * k : (o + 3) * k], weight[(o + 3) * k : (o + 4) * k]
        for i in range(0, pairs, 2):
            p, q = patches[i * k : (i + 1) * k], patches[(i + 1) * k : (i + 2) * k]
            a0, a1, a2, a3 = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
            b0, b1, b2, b3 = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
            for j in range(k):
                x, y = np.int32(p[j]), np.int32(q[j])
                a0 = np.int32(a0 + np.int32(x * np.int32(w0[j])))
                a1 = np.int32(a1 + np.int32(x * np.int32(w1[j])))
                a2 = np.int32(a2 + np.int32(x * np.int32(w2[j])))
                a3 = np.int32(a3 + np.int32(x * np.int32(w3[j])))
                b0 = np.int32(b0 + np.int32(y * np.int32(w0[j])))
                b1 = np.int32(b1 + np.int32(y * np.int32(w1[j])))
                b2 = np.int32(b2 + np.int32(y * np.int32(w2[j])))
                b3 = np.int32(b3 + np.int32(y * np.int32(w3[j])))
            upper, lower = acc[i * outs + o :], acc[(i + 1) * outs + o :]
            upper[0], upper[1], upper[2], upper[3] = a0, a1, a2, a3
            lower[0], lower[1], lower[2], lower[3] = b0, b1, b2, b3
        if pairs < pixels:
            p = patches[pairs * k : pixels * k]
            a0, a1, a2, a3 = np.int32(0), np.int32(0), np.int32(0), np.int32(0)
            for j in range(k):
                x = np.int32(p[j])
                a0 = np.int32(a0 + np.int32(x * np.int32(w0[j])))
                a1 = np.int32(a1 + np.int32(x * np.int32(w1[j])))
                a2 = np.int32(a2 + np.int32(x * np.int32(w2[j])))
                a3 = np.int32(a3 + np.int32(x * np.int32(w3[j])))
            upper = acc[pairs * outs + o :]
            upper[0], upper[1], upper[2], upper[3] = a0, a1, a2, a3
    for o in range(fours, outs):
        w0 = weight[o * k : (o + 1) * k]
        for i in range(pixels):
            p = patches[i * k : (i + 1) * k]
            a0 = np.int32(0)
            for j in range(k):
                a0 = np.int32(a0 + np.int32(np.int32(p[j]) * np.int32(w0[j])))
            acc[i * outs + o] = a0


@lean_jit
def add_bias(acc: I32, pixels: int, outs: int, offset: int, consts: U8) -> None:
    """Add the bias at `offset` of `consts` (i32 [outs]; none if negative) to acc [pixels, outs]."""
    if offset < 0:
        return
    bias = consts[offset : offset + 4 * outs].view(np.int32)
    for i in range(pixels):
        sums = acc[i * outs : (i + 1) * outs]
        for o in range(outs):
            sums[o] = np.int32(sums[o] + bias[o])


def write_codes_naive(
    acc: I64, y: int, start: int, step: int, row: I64, arena: U8, consts: U8
) -> None:
    """Specification of the way from all sums of a pixel to its codes."""
    wrapped = acc.astype(np.int32)
    requantize_row_naive(wrapped, 0, acc.size, arena, y + start, step, row, consts)


def write_accumulators_naive(acc: I64, y: int, start: int, step: int, arena: U8) -> None:
    """Specification of `write_accumulators` for all sums of a pixel."""
    for channel, number in enumerate(acc.astype(np.int32)):
        at = y + 4 * (start + channel * step)
        arena[at : at + 4].view(np.int32)[0] = number


@lean_jit
def write_accumulators(acc: I32, y: int, start: int, step: int, arena: U8) -> None:
    """Write `acc` to the i32 tensor at offset `y`, from element `start` on, `step` apart."""
    numbers = arena[y : y + (arena.size - y) // 4 * 4].view(np.int32)
    for o in range(acc.size):
        numbers[start + o * step] = acc[o]
