"""What convolutions share: the columns of their rows, taps inside of x, the way from sums to y."""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels.accumulate import (
    add_bias,
    write_accumulators,
    write_accumulators_naive,
    write_codes_naive,
)
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.requantize import requantize_row

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

COLUMNS = (
    # Offsets: x and y in the arena, weight (i16, zero point taken off) and bias (i32) in consts.
    *("x", "y", "weight", "bias"),
    *("batch", "groups", "group_in", "group_out"),
    *("in_d", "in_h", "in_w"),
    *("out_d", "out_h", "out_w"),
    *("k_d", "k_h", "k_w"),
    *("s_d", "s_h", "s_w"),  # strides of the window
    *("d_d", "d_h", "d_w"),  # dilations
    *("p_d", "p_h", "p_w"),  # pads at the beginning; those at the end follow from out_*
    *("x_n", "x_c", "x_d", "x_h", "x_w"),  # strides of x in elements
    *("y_n", "y_c", "y_d", "y_h", "y_w"),
    "x_zero",
    *("scratch", "scratch_bytes"),  # thread t has scratch + t * scratch_bytes in the arena
    "real_acc",  # 1: y are accumulators, i32, no requantization
)
# fmt: off
(
    X, Y, WEIGHT, BIAS, BATCH, GROUPS, GROUP_IN, GROUP_OUT,
    IN_D, IN_H, IN_W, OUT_D, OUT_H, OUT_W, K_D, K_H, K_W, S_D, S_H, S_W, D_D, D_H, D_W,
    P_D, P_H, P_W, X_N, X_C, X_D, X_H, X_W, Y_N, Y_C, Y_D, Y_H, Y_W,
    X_ZERO, SCRATCH, SCRATCH_BYTES, REAL_ACC,
) = range(1, 1 + len(COLUMNS))
# fmt: on

# One place a pixel: where its window begins in x (may lie outside), where its outputs go, both in
# elements from the tensor's begin, and the taps first .. last - 1 of each axis that are inside.
PLACE = 8
IN, OUT, D_FIRST, D_LAST, H_FIRST, H_LAST, W_FIRST, W_LAST = range(PLACE)


def tap_naive(r: dict[str, int], pixel: tuple[int, ...], tap: tuple[int, ...]) -> int:
    """Where in x a tap of an output pixel's window lies, channel 0; -1 outside.

    Args:
        r: The row by names of columns.
        pixel: Place in batch, out_d, out_h, out_w.
        tap: Place in k_d, k_h, k_w.
    """
    at = pixel[0] * r["x_n"]
    for axis, i, j in zip("dhw", pixel[1:], tap, strict=True):
        coordinate = i * r[f"s_{axis}"] - r[f"p_{axis}"] + j * r[f"d_{axis}"]
        if not 0 <= coordinate < r[f"in_{axis}"]:
            return -1
        at += coordinate * r[f"x_{axis}"]
    return at


@lean_jit
def first_tap(begin: int, dilation: int) -> int:
    """The first tap whose coordinate begin + tap * dilation is not negative."""
    return 0 if begin >= 0 else (dilation - 1 - begin) // dilation


@lean_jit
def last_tap(begin: int, dilation: int, taps: int, size: int) -> int:
    """One more than the last of `taps` taps whose coordinate is below `size`; may be below 0."""
    if begin + (taps - 1) * dilation < size:
        return taps
    return (size - 1 - begin) // dilation + 1


@lean_jit
def update_places(places: I64, first: int, count: int, row: I64) -> None:
    """Fill in the places of output pixels first .. first + count - 1, [count * PLACE].

    Pixels are numbered over batch, out_d, out_h, out_w, the last one fastest.
    """
    w = first % row[OUT_W]
    rest = first // row[OUT_W]
    h = rest % row[OUT_H]
    rest //= row[OUT_H]
    d, n = rest % row[OUT_D], rest // row[OUT_D]
    for i in range(count):
        place = places[i * PLACE : (i + 1) * PLACE]
        x_d = d * row[S_D] - row[P_D]
        x_h = h * row[S_H] - row[P_H]
        x_w = w * row[S_W] - row[P_W]
        place[IN] = n * row[X_N] + x_d * row[X_D] + x_h * row[X_H] + x_w * row[X_W]
        place[OUT] = n * row[Y_N] + d * row[Y_D] + h * row[Y_H] + w * row[Y_W]
        place[D_FIRST] = first_tap(x_d, row[D_D])
        place[D_LAST] = last_tap(x_d, row[D_D], row[K_D], row[IN_D])
        place[H_FIRST] = first_tap(x_h, row[D_H])
        place[H_LAST] = last_tap(x_h, row[D_H], row[K_H], row[IN_H])
        place[W_FIRST] = first_tap(x_w, row[D_W])
        place[W_LAST] = last_tap(x_w, row[D_W], row[K_W], row[IN_W])
        w += 1
        if w == row[OUT_W]:
            w, h = 0, h + 1
            if h == row[OUT_H]:
                h, d = 0, d + 1
                if d == row[OUT_D]:
                    d, n = 0, n + 1


def write_naive(acc: I64, pixel: tuple[int, ...], row: I64, arena: U8, consts: U8) -> None:
    """Specification of `write`, for all channels of one pixel (batch, out_d, out_h, out_w)."""
    r = dict(zip(COLUMNS, row[1:].tolist(), strict=False))
    start = sum(i * r[f"y_{axis}"] for i, axis in zip(pixel, "ndhw", strict=True))
    if r["bias"] >= 0:
        acc = acc + consts[r["bias"] : r["bias"] + 4 * acc.size].view(np.int32)
    if r["real_acc"]:
        write_accumulators_naive(acc, r["y"], start, r["y_c"], arena)
    else:
        write_codes_naive(acc, r["y"], start, r["y_c"], row, arena, consts)


@lean_jit
def write(
    acc: I32, places: I64, pixels: int, first: int, outs: int, row: I64, arena: U8, consts: U8
) -> None:
    """Add the bias to channels first .. first + outs - 1 of `pixels` pixels and write them to y."""
    if row[BIAS] >= 0:
        add_bias(acc, pixels, outs, row[BIAS] + 4 * first, consts)
    for i in range(pixels):
        start = places[i * PLACE + OUT] + first * row[Y_C]
        sums = acc[i * outs : (i + 1) * outs]
        if row[REAL_ACC] == 0:
            requantize_row(sums, first, outs, arena, row[Y] + start, row[Y_C], row, consts)
        else:
            write_accumulators(sums, row[Y], start, row[Y_C], arena)
