"""Convolution in integers, any layout; 1x1 convolutions and products with constants are its k = 1.

A block of pixels is unfolded into int16 patches, which one pass over the weights multiplies
(accumulate.py).
"""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import window
from onnxptq.kernels.accumulate import PIXELS, multiply
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.share import share, share_naive

U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]
I64 = npt.NDArray[np.int64]

COLUMNS = window.COLUMNS


def conv_scratch_bytes(k: int, group_out: int) -> int:
    """Bytes of scratch a thread needs for K = taps * group_in, a multiple of 64."""
    return PIXELS * (8 * window.PLACE + 4 * group_out) + -(-PIXELS * 2 * k // 64) * 64


def conv_naive(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Specification of `conv`: one pixel after the other, one tap after the other."""
    r = dict(zip(COLUMNS, row[1:].tolist(), strict=False))
    groups, kernel = (r["groups"], r["group_out"], r["group_in"]), (r["k_d"], r["k_h"], r["k_w"])
    size = int(np.prod(groups)) * int(np.prod(kernel))
    weight = consts[r["weight"] : r["weight"] + 2 * size].view(np.int16).astype(np.int64)
    weight = weight.reshape(*groups[:2], *kernel, groups[2])
    pixels = list(np.ndindex(r["batch"], r["out_d"], r["out_h"], r["out_w"]))
    for pixel in pixels[slice(*share_naive(len(pixels), thread, n_threads))]:
        acc = np.zeros(groups[:2], np.int64)
        for tap in np.ndindex(*kernel):
            at = window.tap_naive(r, pixel, tap)
            if at >= 0:
                codes = arena[r["x"] + at + np.arange(groups[0] * groups[2]) * r["x_c"]]
                inputs = (codes.astype(np.int64) - r["x_zero"]).reshape(groups[0], 1, groups[2])
                acc += (inputs * weight[(slice(None), slice(None), *tap)]).sum(axis=-1)
        window.write_naive(acc.ravel(), pixel, row, arena, consts)


@lean_jit
def conv(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Write y = codes of sum (x - x_zero) * weight + bias; outside of x counts as 0.

    Sums wrap around at 32 bits, as onnxruntime's do. Threads share the output pixels.

    Args:
        row: Columns of window.py, then those of requantize.py, [64]. Weight is i16
            [groups][group_out][k_d][k_h][k_w][group_in], weight codes less their zero point.
        arena: Holds x (u8), y (u8, or i32 with real_acc), scratch of `conv_scratch_bytes`.
        consts: Holds weight, bias (i32 [groups * group_out]) and requantization.
        thread: Which part to compute, 0 .. n_threads - 1.
        n_threads: Number of parts.
    """
    taps = row[window.K_D] * row[window.K_H] * row[window.K_W]
    k, outs = taps * row[window.GROUP_IN], row[window.GROUP_OUT]
    at = row[window.SCRATCH] + thread * row[window.SCRATCH_BYTES]
    places = arena[at : at + PIXELS * window.PLACE * 8].view(np.int64)
    at += PIXELS * window.PLACE * 8
    acc = arena[at : at + PIXELS * outs * 4].view(np.int32)
    at += PIXELS * outs * 4
    patches = arena[at : at + PIXELS * k * 2].view(np.int16)
    pixels = row[window.BATCH] * row[window.OUT_D] * row[window.OUT_H] * row[window.OUT_W]
    start, stop = share(pixels, thread, n_threads)
    for first in range(start, stop, PIXELS):
        count = min(PIXELS, stop - first)
        window.update_places(places, first, count, row)
        for group in range(row[window.GROUPS]):
            x = row[window.X] + group * row[window.GROUP_IN] * row[window.X_C]
            for i in range(count):
                place = places[i * window.PLACE : (i + 1) * window.PLACE]
                _unfold(arena, x, place, patches[i * k : (i + 1) * k], row)
            at = row[window.WEIGHT] + 2 * group * outs * k
            weight = consts[at : at + 2 * outs * k].view(np.int16)
            multiply(patches, weight, acc, count, outs, k)
            window.write(acc, places, count, group * outs, outs, row, arena, consts)


@lean_jit
def _unfold(arena: U8, x: int, place: I64, patch: I16, row: I64) -> None:
    """Write x - x_zero of the window at `place` to `patch` [k_d, k_h, k_w, group_in]."""
    group_in, k_h, k_w = row[window.GROUP_IN], row[window.K_H], row[window.K_W]
    w_first, w_last = place[window.W_FIRST], place[window.W_LAST]
    h_first, h_last = place[window.H_FIRST], place[window.H_LAST]
    d_first, d_last = place[window.D_FIRST], place[window.D_LAST]
    inside = max(d_last - d_first, 0) * max(h_last - h_first, 0) * max(w_last - w_first, 0)
    if inside * group_in != patch.size:
        patch[:] = np.int16(0)
    if inside == 0:
        return
    zero, x_c = np.int32(row[window.X_ZERO]), row[window.X_C]
    step_w = row[window.D_W] * row[window.X_W]
    dense = x_c == 1 and step_w == group_in
    for d in range(d_first, d_last):
        for h in range(h_first, h_last):
            source = x + place[window.IN] + w_first * step_w
            source += d * row[window.D_D] * row[window.X_D] + h * row[window.D_H] * row[window.X_H]
            target = ((d * k_h + h) * k_w + w_first) * group_in
            if dense:
                _copy_less(arena, source, patch, target, (w_last - w_first) * group_in, zero)
                continue
            for _ in range(w_first, w_last):
                if x_c == 1:
                    _copy_less(arena, source, patch, target, group_in, zero)
                else:
                    for c in range(group_in):
                        patch[target + c] = np.int16(np.int32(arena[source + c * x_c]) - zero)
                source += step_w
                target += group_in


@lean_jit
def _copy_less(arena: U8, source: int, patch: I16, target: int, count: int, zero: np.int32) -> None:
    """patch[target:] = arena[source:] - zero, `count` numbers."""
    codes, numbers = arena[source : source + count], patch[target : target + count]
    for i in range(count):
        numbers[i] = np.int16(np.int32(codes[i]) - zero)
