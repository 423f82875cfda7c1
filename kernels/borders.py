"""Numba for learning: activations rounded by borders of their own between each two codes.

Values lie as [N, C, n]; level k + 1 of channel c begins k + border[c, k] steps above its lowest
code. Nothing here runs a network.
"""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels.fake_quantize import CHUNK, F32, U8, sum_of
from onnxptq.kernels.jit import jit

F64 = npt.NDArray[np.float64]

REACH = 0.25
"""How far from a border, in steps, values have a say in where it goes."""


def border_round_naive(x: F32, free: U8, grid: F32, borders: F32, out: F32) -> None:
    """Specification of `border_round`."""
    scale, lo, _ = grid
    above = x / scale - lo
    passed = above[..., None] >= np.arange(borders.shape[1], dtype=np.float32) + borders[:, None, :]
    codes = passed.sum(axis=-1).astype(np.float32)
    out[:] = np.where(free != 0, x, (codes + lo) * scale)


@jit
def border_round(x: F32, free: U8, grid: F32, borders: F32, out: F32) -> None:
    """What the codes of x stand for; x itself where it is free.

    Args:
        x: Values, [N, C, n].
        free: Not 0 where a value stays as it is, [N, C, n].
        grid: Scale, first and last code counted from the zero point, [3].
        borders: Where each level begins behind the one before, in steps, 0 to 1, [C, levels].
        out: Filled, [N, C, n].
    """
    for sample in range(x.shape[0]):
        for c in range(x.shape[1]):
            _round(x[sample, c], free[sample, c], (grid[0], grid[1]), borders[c], out[sample, c])


@jit
def _round(x: F32, free: U8, grid: tuple[float, float], borders: F32, out: F32) -> None:
    scale, lo = grid
    out[:] = 0
    for k in range(borders.size):
        begin = np.float32(k) + borders[k]
        for i in range(x.size):
            out[i] += np.float32(1) if x[i] / scale - lo >= begin else np.float32(0)
    for i in range(x.size):
        code = (out[i] + lo) * scale
        out[i] = x[i] if free[i] != 0 else code


def border_round_gradient_naive(
    x: F32, free: U8, grid: F32, borders: F32, grad: F32, out: F32, slopes: F64
) -> float:
    """Specification of `border_round_gradient`."""
    scale, lo, hi = grid
    counted = np.where(free != 0, 0, grad)
    exact = x / scale
    code = np.rint(exact)
    inside = (code >= lo) & (code <= hi)
    out[:] = np.where((free != 0) | inside, grad, 0)
    begins = np.arange(borders.shape[1], dtype=np.float32) + borders[:, None, :]
    near = np.maximum(1 - np.abs((exact - lo)[..., None] - begins) / REACH, 0) / REACH
    slopes[:] = -(near * counted[..., None]).sum(axis=(0, 2), dtype=np.float64) * scale
    codes = ((exact - lo)[..., None] >= begins).sum(axis=-1).astype(np.float32) + lo
    slope = codes - np.where(inside, exact, 0)
    return float(np.sum(slope * counted, dtype=np.float64) * scale)


@jit
def border_round_gradient(
    x: F32, free: U8, grid: F32, borders: F32, grad: F32, out: F32, slopes: F64
) -> float:
    """Gradients of `border_round`: straight through to x, to borders by the values near them.

    A border that goes up by a little takes a step from the values in between; how dense they are is
    estimated with a triangle of half the width `REACH`.

    Args:
        x: Values, [N, C, n].
        free: Not 0 where a value stayed as it is, [N, C, n].
        grid: As in `border_round`.
        borders: As in `border_round`.
        grad: Gradient of its result, [N, C, n].
        out: Filled with the gradient of x, [N, C, n].
        slopes: Filled with the gradient of the borders, [C, levels].

    Returns:
        Gradient of the logarithm of the scale; sums are taken as in `fake_quantize_gradient`.
    """
    total, scratch = 0.0, np.empty(CHUNK, np.float32)
    slopes[:] = 0
    for sample in range(x.shape[0]):
        for c in range(x.shape[1]):
            for begin in range(0, x.shape[2], CHUNK):
                end = min(begin + CHUNK, x.shape[2])
                values, loose = x[sample, c, begin:end], free[sample, c, begin:end]
                given, part = grad[sample, c, begin:end], out[sample, c, begin:end]
                total += _slope(values, loose, grid, borders[c], given, scratch)
                for k in range(borders.shape[1]):
                    border = np.float32(k) + borders[c, k]
                    _near(values, loose, (grid[0], grid[1], border), given, scratch)
                    slopes[c, k] -= sum_of(scratch[: values.size]) * grid[0]
                _through(values, loose, grid, given, part)
    return total * grid[0]


@jit
def _slope(x: F32, free: U8, grid: F32, borders: F32, grad: F32, scratch: F32) -> float:
    scale, lo, hi = grid[0], grid[1], grid[2]
    scratch[: x.size] = lo
    for k in range(borders.size):
        begin = np.float32(k) + borders[k]
        for i in range(x.size):
            scratch[i] += np.float32(1) if x[i] / scale - lo >= begin else np.float32(0)
    for i in range(x.size):
        exact = x[i] / scale
        code = np.rint(exact)
        inside = code == min(max(code, lo), hi)
        slope = (scratch[i] - exact if inside else scratch[i]) * grad[i]
        scratch[i] = np.float32(0) if free[i] != 0 else slope
    return sum_of(scratch[: x.size])


@jit
def _near(x: F32, free: U8, grid: tuple[float, float, float], grad: F32, scratch: F32) -> None:
    scale, lo, begin = grid
    reach = np.float32(REACH)
    for i in range(x.size):
        height = max(np.float32(1) - abs(x[i] / scale - lo - begin) / reach, np.float32(0)) / reach
        scratch[i] = np.float32(0) if free[i] != 0 else height * grad[i]


@jit
def _through(x: F32, free: U8, grid: F32, grad: F32, out: F32) -> None:
    scale, lo, hi = grid[0], grid[1], grid[2]
    for i in range(x.size):
        code = np.rint(x[i] / scale)
        inside = code == min(max(code, lo), hi)
        out[i] = grad[i] if (free[i] != 0) | inside else np.float32(0)
