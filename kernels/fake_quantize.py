"""Numba for learning: activations rounded to codes and back, some of them left as they are.

Per tensor, codes counted from the zero point. Nothing here runs a network.

Versions tried for `fake_quantize` and `fake_quantize_gradient` together (512 Ki float32, one core
of an AMD EPYC without AVX-512, 2026-11):
    torch, one operator after the other            some 20 passes over memory
    gradient in one loop with a sum                17 ns an element, which LLVM does not vectorise
    gradient in three loops over a chunk            1.3 ns
"""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels.jit import jit

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]

CHUNK = 1024
"""Elements whose sum is taken in float32 lanes before it goes to float64."""
LANES = 32


def fake_quantize_naive(x: F32, free: U8, grid: F32, out: F32) -> None:
    """Specification of `fake_quantize`."""
    scale, lo, hi = grid
    out[:] = np.where(free != 0, x, np.clip(np.rint(x / scale), lo, hi) * scale)


@jit
def fake_quantize(x: F32, free: U8, grid: F32, out: F32) -> None:
    """What the codes of x stand for; x itself where it is free.

    Args:
        x: Values, [n].
        free: Not 0 where a value stays as it is, [n].
        grid: Scale, first and last code counted from the zero point, [3].
        out: Filled, [n].
    """
    scale, lo, hi = grid[0], grid[1], grid[2]
    for i in range(x.size):
        code = min(max(np.rint(x[i] / scale), lo), hi)
        out[i] = x[i] if free[i] != 0 else code * scale


def fake_quantize_gradient_naive(x: F32, free: U8, grid: F32, grad: F32, out: F32) -> float:
    """Specification of `fake_quantize_gradient`."""
    scale, lo, hi = grid
    exact = x / scale
    code = np.rint(exact)
    inside = (code >= lo) & (code <= hi)
    out[:] = np.where((free != 0) | inside, grad, 0)
    slope = np.clip(code, lo, hi) - np.where(inside, exact, 0)
    return float(np.sum(np.where(free != 0, 0, slope * grad), dtype=np.float64) * scale)


@jit
def fake_quantize_gradient(x: F32, free: U8, grid: F32, grad: F32, out: F32) -> float:
    """Gradients of `fake_quantize`, straight through the rounding.

    Args:
        x: Values, [n].
        free: Not 0 where a value stayed as it is, [n].
        grid: As in `fake_quantize`.
        grad: Gradient of its result, [n].
        out: Filled with the gradient of x, [n].

    Returns:
        Gradient of the logarithm of the scale. Its sums of 1,024 are taken in float32, so that it
        differs from the twin's by up to 1e-4 of the largest number that was summed.

    Source:
        Esser et al. 2020, LSQ (arXiv:1902.08153), equations 3 and 5.
    """
    scale, lo, hi = grid[0], grid[1], grid[2]
    slopes, total = np.empty(CHUNK, np.float32), 0.0
    for begin in range(0, x.size, CHUNK):
        end = min(begin + CHUNK, x.size)
        _slopes(x[begin:end], free[begin:end], grad[begin:end], (scale, lo, hi), slopes)
        _kept(x[begin:end], free[begin:end], grad[begin:end], (scale, lo, hi), out[begin:end])
        total += sum_of(slopes[: end - begin])
    return total * scale


@jit
def _slopes(x: F32, free: U8, grad: F32, grid: tuple[float, float, float], slopes: F32) -> None:
    scale, lo, hi = grid
    for i in range(x.size):
        exact = x[i] / scale
        code = np.rint(exact)
        end = min(max(code, lo), hi)
        slope = (end - exact if code == end else end) * grad[i]
        slopes[i] = np.float32(0) if free[i] != 0 else slope


@jit
def _kept(x: F32, free: U8, grad: F32, grid: tuple[float, float, float], out: F32) -> None:
    scale, lo, hi = grid
    for i in range(x.size):
        code = np.rint(x[i] / scale)
        inside = code == min(max(code, lo), hi)
        out[i] = grad[i] if (free[i] != 0) | inside else np.float32(0)


@jit
def sum_of(values: F32) -> float:
    """Sum of float32 numbers, taken in lanes, [n]."""
    lanes = np.zeros(LANES, np.float32)
    whole = values.size // LANES * LANES
    for begin in range(0, whole, LANES):
        for lane in range(LANES):
            lanes[lane] += values[begin + lane]
    total = 0.0
    for lane in range(LANES):
        total += lanes[lane]
    for i in range(whole, values.size):
        total += values[i]
    return total


def mix_rows_naive(
    first: F32, second: F32, rows: npt.NDArray[np.int64], coins: U8, out: F32
) -> None:
    """Specification of `mix_rows`."""
    out[:] = np.where(coins != 0, first[rows], second[rows])


@jit
def mix_rows(first: F32, second: F32, rows: npt.NDArray[np.int64], coins: U8, out: F32) -> None:
    """Some rows, each element of them from the first array where its coin is not 0.

    Args:
        first: Values, [N, n].
        second: Values, [N, n].
        rows: Numbers of the rows wanted, [B].
        coins: Which array each element comes from, [B, n].
        out: Filled, [B, n].
    """
    for b in range(rows.size):
        _mix(first[rows[b]], second[rows[b]], coins[b], out[b])


@jit
def _mix(first: F32, second: F32, coins: U8, out: F32) -> None:
    for i in range(out.size):
        one, other = first[i], second[i]  # both are read, so that the choice is a select
        out[i] = one if coins[i] != 0 else other
