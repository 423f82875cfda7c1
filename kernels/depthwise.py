"""Depthwise convolution in integers: one channel in, one out, vectorised over channels in NHWC.

Versions tried (3x3, 96 channels, 56x56, one thread of a Xeon 2.6 GHz with AVX-512, 2026-11):
    three taps a pass over the channels                       5.2 GMAC/s
    one channel after the other (kept for NCHW)               0.5 GMAC/s
"""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import window
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.share import share, share_naive

U8 = npt.NDArray[np.uint8]
I16 = npt.NDArray[np.int16]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

COLUMNS = window.COLUMNS


def depthwise_scratch_bytes(taps: int, channels: int) -> int:
    """Bytes of scratch a thread needs, a multiple of 64."""
    return 8 * window.PLACE + -(-(16 * taps + 4 * channels) // 64) * 64


def depthwise_naive(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Specification of `depthwise`: one pixel after the other, one tap after the other."""
    r = dict(zip(COLUMNS, row[1:].tolist(), strict=False))
    channels, kernel = r["groups"], (r["k_d"], r["k_h"], r["k_w"])
    size = channels * r["k_d"] * r["k_h"] * r["k_w"]
    weight = consts[r["weight"] : r["weight"] + 2 * size].view(np.int16).astype(np.int64)
    weight = weight.reshape(*kernel, channels)
    pixels = list(np.ndindex(r["batch"], r["out_d"], r["out_h"], r["out_w"]))
    for pixel in pixels[slice(*share_naive(len(pixels), thread, n_threads))]:
        acc = np.zeros(channels, np.int64)
        for tap in np.ndindex(*kernel):
            at = window.tap_naive(r, pixel, tap)
            if at >= 0:
                at += np.arange(channels) * r["x_c"]
                acc += (arena[r["x"] + at].astype(np.int64) - r["x_zero"]) * weight[tap]
        window.write_naive(acc, pixel, row, arena, consts)


@lean_jit
def depthwise(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Write y = codes of sum (x - x_zero) * weight + bias, each channel by itself.

    Outside of x counts as 0. Threads share the output pixels.

    Args:
        row: Columns as conv's, group_in and group_out being 1, [64]. Weight is i16
            [k_d][k_h][k_w][channels], weight codes less their zero point.
        arena: Holds x (u8), y (u8, or i32 with real_acc), scratch of `depthwise_scratch_bytes`.
        consts: Holds weight, bias (i32 [channels]) and requantization.
        thread: Which part to compute, 0 .. n_threads - 1.
        n_threads: Number of parts.
    """
    channels = row[window.GROUPS]
    size = row[window.K_D] * row[window.K_H] * row[window.K_W]
    at = row[window.SCRATCH] + thread * row[window.SCRATCH_BYTES]
    place = arena[at : at + window.PLACE * 8].view(np.int64)
    at += window.PLACE * 8
    taps = arena[at : at + size * 16].view(np.int64)
    at += size * 16
    acc = arena[at : at + channels * 4].view(np.int32)
    at = row[window.WEIGHT]
    weight = consts[at : at + 2 * size * channels].view(np.int16)
    pixels = row[window.BATCH] * row[window.OUT_D] * row[window.OUT_H] * row[window.OUT_W]
    start, stop = share(pixels, thread, n_threads)
    none, one = np.int64(0), np.int64(1)
    for pixel in range(start, stop):
        window.update_places(place, pixel, one, row)
        count = _update_taps(taps, place, channels, row)
        if row[window.X_C] == 1:
            _add_taps(arena, weight, taps, count, acc, np.int32(row[window.X_ZERO]))
        else:
            _add_taps_apart(arena, weight, taps, count, acc, row)
        window.write(acc, place, one, none, channels, row, arena, consts)


@lean_jit
def _update_taps(taps: I64, place: I64, channels: int, row: I64) -> int:
    """Write where x and weight begin for each tap inside of x, [taps, 2]; return their number."""
    step_w = row[window.D_W] * row[window.X_W]
    origin, count = row[window.X] + place[window.IN], 0
    for d in range(place[window.D_FIRST], place[window.D_LAST]):
        from_d = origin + d * row[window.D_D] * row[window.X_D]
        for h in range(place[window.H_FIRST], place[window.H_LAST]):
            from_h = from_d + h * row[window.D_H] * row[window.X_H]
            tap = (d * row[window.K_H] + h) * row[window.K_W]
            for w in range(place[window.W_FIRST], place[window.W_LAST]):
                taps[2 * count] = from_h + w * step_w
                taps[2 * count + 1] = (tap + w) * channels
                count += 1
    return count


@lean_jit
def _add_taps(arena: U8, weight: I16, taps: I64, count: int, acc: I32, zero: np.int32) -> None:
    """acc[c] = sum over taps of (x[c] - zero) * weight[c], channels side by side.

    Three taps a pass over the channels: more arrays a loop and LLVM no longer checks whether they
    overlap, so it does not vectorise.
    """
    c = acc.size
    acc[:] = np.int32(0)
    threes = count // 3 * 3
    for t in range(0, threes, 3):
        x0, x1, x2 = taps[2 * t], taps[2 * t + 2], taps[2 * t + 4]
        w0, w1, w2 = taps[2 * t + 1], taps[2 * t + 3], taps[2 * t + 5]
        p0, p1, p2 = arena[x0 : x0 + c], arena[x1 : x1 + c], arena[x2 : x2 + c]
        q0, q1, q2 = weight[w0 : w0 + c], weight[w1 : w1 + c], weight[w2 : w2 + c]
        for i in range(c):
            a0 = np.int32(np.int32(np.int16(np.int32(p0[i]) - zero)) * np.int32(q0[i]))
            a1 = np.int32(np.int32(np.int16(np.int32(p1[i]) - zero)) * np.int32(q1[i]))
            a2 = np.int32(np.int32(np.int16(np.int32(p2[i]) - zero)) * np.int32(q2[i]))
            acc[i] = np.int32(acc[i] + np.int32(a0 + np.int32(a1 + a2)))
    for t in range(threes, count):
        p, q = arena[taps[2 * t] :], weight[taps[2 * t + 1] :]
        for i in range(c):
            a0 = np.int32(np.int32(np.int16(np.int32(p[i]) - zero)) * np.int32(q[i]))
            acc[i] = np.int32(acc[i] + a0)


@lean_jit
def _add_taps_apart(arena: U8, weight: I16, taps: I64, count: int, acc: I32, row: I64) -> None:
    """As `_add_taps`, where the channels of x lie apart."""
    zero, x_c = np.int32(row[window.X_ZERO]), row[window.X_C]
    for c in range(acc.size):
        total = np.int32(0)
        for t in range(count):
            x = np.int32(np.int32(arena[taps[2 * t] + c * x_c]) - zero)
            total = np.int32(total + np.int32(x * np.int32(weight[taps[2 * t + 1] + c])))
        acc[c] = total
