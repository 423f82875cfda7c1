"""Pooling: the largest code, the average of dequantised codes, the mean of a whole map.

`average_pool` does what onnxruntime's QLinearAveragePool does in float32, with integers only: it
dequantises by a table, adds the values of a window one after the other (each sum rounded), divides
by their number and by the output scale, adds the zero point, rounds half to even, and clips.

Versions tried for `average_pool` (3x3, channels last, ns an output, one core of a Xeon with
AVX-512, 2026-11):
    soft float for each tap and for both divisions                          104
    taps as integers rounded to 24 bits, soft float for both divisions       80
    integer sum of codes, soft float where its result is near to a half       7.1
    the same, 16 channels in registers where they are contiguous               1.7

Versions tried for `max_pool` (3x3, stride 2, 112x112x64, channels last, us, same machine):
    pixel by pixel, each tap read into y                                    174
    four pixels of 64 channels in registers, 16 where there are fewer        15
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import microkernel as mk
from onnxptq.kernels import softfloat
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.share import share

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

WINDOW_COLUMNS = (
    *("x", "y", "batch", "channels"),
    *("in_d", "in_h", "in_w", "out_d", "out_h", "out_w"),
    *("k_d", "k_h", "k_w", "s_d", "s_h", "s_w", "d_d", "d_h", "d_w", "p_d", "p_h", "p_w"),
    *("x_n", "x_c", "x_d", "x_h", "x_w", "y_n", "y_c", "y_d", "y_h", "y_w"),
)
"""Sizes, kernel, strides, dilations, pads at the beginning, and element strides of x and y."""
MAX_POOL_COLUMNS = (*WINDOW_COLUMNS, "empty")
AVERAGE_POOL_COLUMNS = (
    *WINDOW_COLUMNS,
    *("values", "include_pad", "y_scale_bits", "y_zero", "lo", "hi", "bias128"),
)
REDUCE_COLUMNS = ("x", "y", "op", "outer", "count", "inner")
(
    X, Y, BATCH, CHANNELS,
    IN_D, IN_H, IN_W, OUT_D, OUT_H, OUT_W,
    K_D, K_H, K_W, S_D, S_H, S_W, D_D, D_H, D_W, P_D, P_H, P_W,
    X_N, X_C, X_D, X_H, X_W, Y_N, Y_C, Y_D, Y_H, Y_W,
) = range(1, 1 + len(WINDOW_COLUMNS))  # fmt: skip
EMPTY = 1 + len(WINDOW_COLUMNS)
VALUES, INCLUDE_PAD, Y_SCALE_BITS, Y_ZERO, LO, HI, BIAS128 = range(EMPTY, EMPTY + 7)
OP, OUTER, COUNT, INNER = range(3, 7)
MIN, MAX = 2, 3


def _window_naive(row: I64, place: tuple[int, ...]) -> list[I64]:
    """Per axis, the positions inside of the map that the window at `place` covers."""
    axes: list[I64] = []
    for axis, at in enumerate(place):
        begin = at * row[S_D + axis] - row[P_D + axis]
        taps = begin + np.arange(row[K_D + axis]) * row[D_D + axis]
        axes.append(taps[(taps >= 0) & (taps < row[IN_D + axis])])
    return axes


def _maps_naive(row: I64, arena: U8) -> tuple[U8, U8]:
    """Views x [batch, in_d, in_h, in_w, channels] and y, as the row's strides say."""
    views: list[U8] = []
    for start, sizes, strides in ((X, IN_D, X_N), (Y, OUT_D, Y_N)):
        shape = (row[BATCH], *row[sizes : sizes + 3], row[CHANNELS])
        steps = (row[strides], *row[strides + 2 : strides + 5], row[strides + 1])
        views.append(np.lib.stride_tricks.as_strided(arena[row[start] :], shape, steps))
    return views[0], views[1]


def max_pool_naive(row: I64, arena: U8, _consts: U8, *_threads: int) -> None:
    """Specification of `max_pool`."""
    x, y = _maps_naive(row, arena)
    for place in np.ndindex(*row[OUT_D : OUT_W + 1].tolist()):
        window = x[:, *np.ix_(*_window_naive(row, place))]
        if window.shape[1] and window.shape[2] and window.shape[3]:
            y[:, *place] = window.max(axis=(1, 2, 3))
        else:
            y[:, *place] = row[EMPTY]


@lean_jit
def _taps(row: I64, axis: int, at: int) -> tuple[int, int, int]:
    """Of one axis of the window at `at`: its begin in x, first tap inside, one past the last."""
    dilation = row[D_D + axis]
    begin = at * row[S_D + axis] - row[P_D + axis]
    first = (max(-begin, 0) + dilation - 1) // dilation
    stop = min((row[IN_D + axis] - begin + dilation - 1) // dilation, row[K_D + axis])
    return begin, first, max(stop, first)


WIDE, NARROW = 64, 16
"""Channels of a vector."""
TOGETHER = 4
"""Output pixels that are worked on together, so that the loops over taps cost little."""


Nests = Sequence[tuple[mk.Vector, mk.Vector]]


def _over_taps(
    builder: mk.Builder,
    nests: Nests,
    begin: mk.Vector,
    carried: Sequence[mk.Vector],
    tap: Callable[[mk.Vector, Sequence[mk.Vector]], list[mk.Vector]],
) -> list[mk.Vector]:
    """Loops over a window; `nests` has number and distance of the taps of each axis."""
    (count, step), *inner = nests

    def body(builder: mk.Builder, turn: mk.Vector, carried: Sequence[mk.Vector]) -> list[mk.Vector]:
        at = builder.add(begin, builder.mul(turn, step))
        return _over_taps(builder, inner, at, carried, tap) if inner else tap(at, carried)

    return mk.loop(builder, count, carried, body)


_NESTS = ("n_d", "step_d", "n_h", "step_h", "n_w", "step_w")


def _nests(values: Sequence[mk.Vector]) -> Nests:
    """Of the arguments that _NESTS names."""
    return [(values[i], values[i + 1]) for i in range(0, len(_NESTS), 2)]


def _largest(channels: int, pixels: int) -> Callable[..., int]:
    """Microkernel of some channels of a run of output pixels that have all taps in common."""

    @mk.microkernel("x", "x_step", "y", "y_step", "rounds", *_NESTS)
    def largest(builder: mk.Builder, *values: mk.Vector) -> None:
        x, x_step, y, y_step, rounds, *taps = values
        kind = mk.ir.VectorType(mk.I8, channels)

        def tap(at: mk.Vector, best: Sequence[mk.Vector]) -> list[mk.Vector]:
            found: list[mk.Vector] = []
            for old in best:
                new = mk.load(builder, at, kind)
                found.append(builder.select(builder.icmp_unsigned(">", new, old), new, old))
                at = builder.add(at, x_step)
            return found

        def body(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> list[mk.Vector]:
            pixel = builder.mul(turn, mk.number(pixels))
            begin = builder.add(x, builder.mul(pixel, x_step))
            to = builder.add(y, builder.mul(pixel, y_step))
            nothing = [mk.constant(0, kind)] * pixels
            for vector in _over_taps(builder, _nests(taps), begin, nothing, tap):
                mk.store(builder, vector, to)
                to = builder.add(to, y_step)
            return []

        mk.loop(builder, rounds, [], body)

    return largest


_wide_1, _wide_4, _narrow_1, _narrow_4 = (
    _largest(channels, pixels) for channels in (WIDE, NARROW) for pixels in (1, TOGETHER)
)


@lean_jit
def _max_pixels(row: I64, arena: U8, n: int, line: int) -> None:
    """All channels, at least 16 that are contiguous, of one line of output pixels."""
    o_d, o_h = line // row[OUT_H], line % row[OUT_H]
    in_d, first_d, stop_d = _taps(row, 0, o_d)
    in_h, first_h, stop_h = _taps(row, 1, o_h)
    x_at = row[X] + n * row[X_N] + (in_d + first_d * row[D_D]) * row[X_D]
    x_at += (in_h + first_h * row[D_H]) * row[X_H]
    y_at = row[Y] + n * row[Y_N] + o_d * row[Y_D] + o_h * row[Y_H]
    n_d, n_h = stop_d - first_d, stop_h - first_h
    # Windows from `whole` to before `broken` have all their taps inside.
    reach = (row[K_W] - 1) * row[D_W]
    whole = min((row[P_W] + row[S_W] - 1) // row[S_W], row[OUT_W])
    broken = min((row[IN_W] - 1 + row[P_W] - reach) // row[S_W] + 1, row[OUT_W])
    o_w = 0
    while o_w < row[OUT_W]:
        in_w, first_w, stop_w = _taps(row, 2, o_w)
        n_w, count = stop_w - first_w, 1
        if whole <= o_w < broken:
            count = broken - whole
        if n_d <= 0 or n_h <= 0 or n_w <= 0:
            at = y_at + o_w * row[Y_W]
            mk.fill_bytes(arena.ctypes.data + at, row[EMPTY], row[CHANNELS])
        else:
            x_begin = x_at + (in_w + first_w * row[D_W]) * row[X_W]
            _max_run(row, arena, x_begin, y_at + o_w * row[Y_W], count, (n_d, n_h, n_w))
        o_w += count


@lean_jit
def _max_run(
    row: I64, arena: U8, x_at: int, y_at: int, count: int, taps: tuple[int, int, int]
) -> None:
    """All channels of `count` output pixels; the last vector ends where the channels do."""
    n_d, n_h, n_w = taps
    step_d, step_h, step_w = row[D_D] * row[X_D], row[D_H] * row[X_H], row[D_W] * row[X_W]
    x_step, y_step = row[S_W] * row[X_W], row[Y_W]
    channels = row[CHANNELS]
    width = WIDE if channels >= WIDE else NARROW
    for block in range(0, channels, width):
        c = min(block, channels - width)
        x, y = arena.ctypes.data + x_at + c, arena.ctypes.data + y_at + c
        done = 0
        while done < count:
            rounds, together = (count - done) // TOGETHER, 1
            if count >= TOGETHER:
                # What does not fill a block is done again.
                done, together = min(done, count - TOGETHER), TOGETHER
                rounds = max(rounds, 1)
            else:
                rounds = count
            x_from, y_to = x + done * x_step, y + done * y_step
            if width == WIDE and together == 1:
                _wide_1(x_from, x_step, y_to, y_step, rounds, n_d, step_d, n_h, step_h, n_w, step_w)
            elif width == WIDE:
                _wide_4(x_from, x_step, y_to, y_step, rounds, n_d, step_d, n_h, step_h, n_w, step_w)
            elif together == 1:
                _narrow_1(
                    x_from, x_step, y_to, y_step, rounds, n_d, step_d, n_h, step_h, n_w, step_w
                )
            else:
                _narrow_4(
                    x_from, x_step, y_to, y_step, rounds, n_d, step_d, n_h, step_h, n_w, step_w
                )
            done += rounds * together


@lean_jit
def max_pool(row: I64, arena: U8, _consts: U8, thread: int, n_threads: int) -> None:
    """Largest stored code of each window, padding left out.

    The loop inside runs over channels where they are contiguous (NHWC), in vectors where they are
    16 or more, else along the rows.

    Args:
        row: MAX_POOL_COLUMNS; one and two axes have ones in front (in_d = k_d = s_d = d_d = 1);
            empty: the code for a window that lies in the padding.
        arena: uint8 [bytes], changed in place; y does not overlap x.
        _consts: Not read.
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    if row[X_C] == 1 and row[Y_C] == 1 and row[CHANNELS] >= NARROW:
        lines = row[OUT_D] * row[OUT_H]
        start, stop = share(row[BATCH] * lines, thread, n_threads)
        for unit in range(start, stop):
            _max_pixels(row, arena, unit // lines, unit % lines)
    elif row[X_C] == 1 and row[Y_C] == 1:
        pixels = row[OUT_D] * row[OUT_H] * row[OUT_W]
        start, stop = share(row[BATCH] * pixels, thread, n_threads)
        for unit in range(start, stop):
            _max_pixel(row, arena, unit // pixels, unit % pixels)
    else:
        lines = row[OUT_D] * row[OUT_H]
        start, stop = share(row[BATCH] * row[CHANNELS] * lines, thread, n_threads)
        for unit in range(start, stop):
            _max_line(row, arena, unit // lines, unit % lines)


@lean_jit
def _max_pixel(row: I64, arena: U8, n: int, pixel: int) -> None:
    """All channels of one output pixel; channels are contiguous."""
    o_w, line = pixel % row[OUT_W], pixel // row[OUT_W]
    o_h, o_d = line % row[OUT_H], line // row[OUT_H]
    in_d, first_d, stop_d = _taps(row, 0, o_d)
    in_h, first_h, stop_h = _taps(row, 1, o_h)
    in_w, first_w, stop_w = _taps(row, 2, o_w)
    channels = row[CHANNELS]
    y_at = row[Y] + n * row[Y_N] + o_d * row[Y_D] + o_h * row[Y_H] + o_w * row[Y_W]
    y = arena[y_at : y_at + channels]
    if stop_d <= first_d or stop_h <= first_h or stop_w <= first_w:
        y[:] = np.uint8(row[EMPTY])
        return
    x_n = row[X] + n * row[X_N]
    fresh = True
    for k_d in range(first_d, stop_d):
        x_d = x_n + (in_d + k_d * row[D_D]) * row[X_D]
        for k_h in range(first_h, stop_h):
            x_h = x_d + (in_h + k_h * row[D_H]) * row[X_H]
            for k_w in range(first_w, stop_w):
                x_at = x_h + (in_w + k_w * row[D_W]) * row[X_W]
                x = arena[x_at : x_at + channels]
                if fresh:
                    # Not y[:] = x, which copies by way of a new array in case they overlap.
                    for c in range(channels):
                        y[c] = x[c]
                    fresh = False
                else:
                    for c in range(channels):
                        y[c] = max(y[c], x[c])


@lean_jit
def _max_line(row: I64, arena: U8, plane: int, line: int) -> None:
    """One line of outputs of one channel, for any strides."""
    n, c = plane // row[CHANNELS], plane % row[CHANNELS]
    o_d, o_h = line // row[OUT_H], line % row[OUT_H]
    in_d, first_d, stop_d = _taps(row, 0, o_d)
    in_h, first_h, stop_h = _taps(row, 1, o_h)
    y_at = row[Y] + n * row[Y_N] + c * row[Y_C] + o_d * row[Y_D] + o_h * row[Y_H]
    x_c = row[X] + n * row[X_N] + c * row[X_C]
    y_step, x_step = row[Y_W], row[S_W] * row[X_W]
    # A code is never below 0, so the first tap needs no case of its own; `empty` comes at the end.
    for o_w in range(row[OUT_W]):
        arena[y_at + o_w * y_step] = 0
    for k_d in range(first_d, stop_d):
        x_d = x_c + (in_d + k_d * row[D_D]) * row[X_D]
        for k_h in range(first_h, stop_h):
            x_h = x_d + (in_h + k_h * row[D_H]) * row[X_H]
            for k_w in range(row[K_W]):
                shift = k_w * row[D_W] - row[P_W]
                first = (max(-shift, 0) + row[S_W] - 1) // row[S_W]
                stop = min((row[IN_W] - shift + row[S_W] - 1) // row[S_W], row[OUT_W])
                if first < stop:
                    x_at = x_h + shift * row[X_W] + first * x_step
                    y_first = y_at + first * y_step
                    _max_into(arena, x_at, y_first, x_step, y_step, stop - first)
    if row[EMPTY] > 0:
        nothing = stop_d <= first_d or stop_h <= first_h
        for o_w in range(row[OUT_W]):
            _, first_w, stop_w = _taps(row, 2, o_w)
            if nothing or stop_w <= first_w:
                arena[y_at + o_w * y_step] = row[EMPTY]


@lean_jit
def _max_into(arena: U8, x_at: int, y_at: int, x_step: int, y_step: int, count: int) -> None:
    """y[i] = max(y[i], x[i]) along one line."""
    x = arena[x_at : x_at + (count - 1) * x_step + 1]
    y = arena[y_at : y_at + (count - 1) * y_step + 1]
    if x_step == 1 and y_step == 1:
        for i in range(count):
            y[i] = max(y[i], x[i])
    elif x_step == 2 and y_step == 1:
        for i in range(count):
            y[i] = max(y[i], x[2 * i])
    else:
        for i in range(count):
            y[i * y_step] = max(y[i * y_step], x[i * x_step])


def reduce_naive(row: I64, arena: U8, _consts: U8, *_threads: int) -> None:
    """Specification of `reduce`."""
    shape = tuple(row[[OUTER, COUNT, INNER]].tolist())
    x = arena[row[X] : row[X] + int(np.prod(shape))].reshape(shape)
    y = x.min(axis=1) if row[OP] == MIN else x.max(axis=1)
    arena[row[Y] : row[Y] + y.size] = y.ravel()


@lean_jit
def reduce(row: I64, arena: U8, _consts: U8, thread: int, n_threads: int) -> None:
    """Smallest or largest code along one axis: y[o, i] of x[o, :, i].

    Args:
        row: REDUCE_COLUMNS; op: 2 smallest, 3 largest; x [outer, count, inner] and y [outer,
            inner], both contiguous; count >= 1.
        arena: uint8 [bytes], changed in place; y does not overlap x.
        _consts: Not read.
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    count, inner = row[COUNT], row[INNER]
    start, stop = share(row[OUTER] * inner, thread, n_threads)
    at = start
    while at < stop:
        outer = at // inner
        i = at - outer * inner
        run = min(inner - i, stop - at)
        x_at = row[X] + outer * count * inner + i
        if inner == 1:
            arena[row[Y] + at] = _extreme(arena[x_at : x_at + count], row[OP])
        else:
            y = arena[row[Y] + at : row[Y] + at + run]
            for k in range(count):
                x = arena[x_at + k * inner : x_at + k * inner + run]
                if k == 0:
                    for j in range(run):
                        y[j] = x[j]
                elif row[OP] == MIN:
                    for j in range(run):
                        y[j] = min(y[j], x[j])
                else:
                    for j in range(run):
                        y[j] = max(y[j], x[j])
        at += run


@lean_jit
def _extreme(x: U8, op: int) -> np.uint8:
    """Smallest or largest of a contiguous run."""
    best = x[0]
    if op == MIN:
        for i in range(x.size):
            best = min(best, x[i])
    else:
        for i in range(x.size):
            best = max(best, x[i])
    return best


def average_pool_naive(row: I64, arena: U8, consts: U8, *_threads: int) -> None:
    """Specification of `average_pool`: onnxruntime's float32 steps in numpy."""
    x, y = _maps_naive(row, arena)
    values = consts[row[VALUES] : row[VALUES] + 1024].view(np.float32)
    y_scale = np.uint32(row[Y_SCALE_BITS]).view(np.float32)
    for place in np.ndindex(*row[OUT_D : OUT_W + 1].tolist()):
        window = values[x[:, *np.ix_(*_window_naive(row, place))]]
        count = int(np.prod(window.shape[1:4]))
        taps = window.reshape(window.shape[0], count, window.shape[-1])
        total = np.zeros((taps.shape[0], taps.shape[2]), np.float32)
        for k in range(count):
            total += taps[:, k]
        size = row[K_D] * row[K_H] * row[K_W] if row[INCLUDE_PAD] else count
        steps = total / np.float32(size) / y_scale + np.float32(row[Y_ZERO])
        y[:, *place] = np.clip(np.rint(steps), row[LO], row[HI]) + row[BIAS128]


@lean_jit
def average_pool(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Average of each window as onnxruntime's QLinearAveragePool computes it, in integers only.

    y = clip(rint(sum / size / y_scale + y_zero), lo, hi) + bias128, each step rounded to float32.
    The sum goes over the taps inside of the map, the last axis fastest. The size is their number,
    or with include_pad the whole kernel's, even where a window of ceil_mode ends outside of the
    padding (as onnxruntime has it, and ONNX has not).
    A window without pads that is the whole map is not for this kernel: onnxruntime then takes
    QLinearGlobalAveragePool's formula (11 of 1920 codes differ), as `global_average_pool` does.

    The sum of the codes gives the result but for the rounding of those steps. Where it is so near
    to a half that this could matter, the steps are done one by one in soft float.

    Args:
        row: AVERAGE_POOL_COLUMNS. values: offset in consts of int32 [256], bits of
            f32(x_scale * (x - x_zero)) by stored code, one of which is 0; y_zero, lo and hi in
            ONNX's codes; bias128 is 128 where those are int8, else 0. Every window covers a pixel.
        arena: uint8 [bytes], changed in place; y does not overlap x.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    values = consts[row[VALUES] : row[VALUES] + 1024].view(np.int32)
    x_zero = 0
    while x_zero < 255 and values[x_zero] != 0:
        x_zero += 1
    x_scale = np.int64(values[x_zero + 1] if x_zero < 255 else values[254]) & 0x7FFFFFFF
    ratio = _scale_ratio(x_scale, row[Y_SCALE_BITS])
    pixels = row[OUT_D] * row[OUT_H] * row[OUT_W]
    start, stop = share(row[BATCH] * pixels, thread, n_threads)
    for unit in range(start, stop):
        _average_pixel(row, arena, values, x_zero, ratio, unit // pixels, unit % pixels)


@lean_jit
def _scale_ratio(x_scale: int, y_scale: int) -> int:
    """Ratio x_scale / y_scale times 2^32, rounded down; -1 where it is not within 2^-20..2^20.

    It is also -1 for scales so small or large that float32 sums or means might leave its range.
    """
    e_x, e_y = softfloat.exponent(x_scale), softfloat.exponent(y_scale)
    shift = e_x - e_y - 6
    if min(e_x, e_y) < 30 or max(e_x, e_y) > 200 or shift < -26 or shift > 14:
        return -1
    quotient = (softfloat.mantissa(x_scale) << 38) // softfloat.mantissa(y_scale)
    return quotient << shift if shift >= 0 else quotient >> -shift


@lean_jit
def _doubt(ratio: int, taps: int) -> int:
    """How far, in 2^-32, all roundings together may move a result from `exact`.

    A float32 rounding is at most 2^-24 of its result. The values and the sums have `taps` of them
    relative to the largest mean 255 * ratio, the divisions two; that of the last sum is relative to
    255 * ratio + 255. Twice these are taken, which covers what is of second order and the part of
    2^-36 that the ratio is too small. The last term is for rounding down ratio and factor.
    """
    return 512 * ((ratio >> 24) + 1) * (taps + 5) + 512 * 256 * 2 + 256 * (taps + 1)


@mk.microkernel("x", "y", *_NESTS, "factor", "base", "doubt", "lo", "hi", "bias128")
def _averages(builder: mk.Builder, *values: mk.Vector) -> mk.Vector:
    """Write the codes of 16 channels of a pixel; give which of them are too near to a half.

    `base` is what codes of 0 give, times 2^32; `doubt` is below 2^31.
    """
    x, y, *taps = values[:8]
    bytes_16 = mk.ir.VectorType(mk.I8, mk.LANES)
    factor, base, doubt, lo, hi, bias = (mk.splat(builder, n, mk.LONGS) for n in values[8:])

    def tap(at: mk.Vector, carried: Sequence[mk.Vector]) -> list[mk.Vector]:
        return [builder.add(carried[0], builder.zext(mk.load(builder, at, bytes_16), mk.ACC))]

    (sums,) = _over_taps(builder, _nests(taps), x, [mk.constant(0, mk.ACC)], tap)
    codes: list[mk.Vector] = []
    near: list[mk.Vector] = []
    low = mk.constant(0xFFFFFFFF, mk.LONGS)
    room = builder.sub(mk.constant(0x7FFFFFFF, mk.LONGS), doubt)
    for first in (0, mk.LANES // 2):
        half = mk.shuffled(builder, sums, sums, range(first, first + mk.LANES // 2))
        exact = builder.add(builder.mul(builder.zext(half, mk.LONGS), factor), base)
        # As far from 2^31 as 2^31 - doubt: near to 0 or to 2^32.
        apart = builder.sub(builder.and_(exact, low), mk.constant(0x80000000, mk.LONGS))
        far = builder.icmp_signed(">", apart, room)
        far = builder.or_(far, builder.icmp_signed("<", apart, builder.neg(room)))
        near.append(far)
        code = builder.ashr(exact, mk.constant(32, mk.LONGS))
        code = builder.select(builder.icmp_signed(">", code, lo), code, lo)
        code = builder.select(builder.icmp_signed("<", code, hi), code, hi)
        codes.append(builder.trunc(builder.add(code, bias), mk.ir.VectorType(mk.I8, 8)))
    mk.store(builder, mk.shuffled(builder, *codes, range(mk.LANES)), y)
    bits = builder.bitcast(mk.shuffled(builder, *near, range(mk.LANES)), mk.I16)
    return builder.zext(bits, mk.I64)


@lean_jit
def _average_pixel(
    row: I64, arena: U8, values: I32, x_zero: int, ratio: int, n: int, pixel: int
) -> None:
    """All channels of one output pixel."""
    o_w, line = pixel % row[OUT_W], pixel // row[OUT_W]
    o_h, o_d = line % row[OUT_H], line // row[OUT_H]
    in_d, first_d, stop_d = _taps(row, 0, o_d)
    in_h, first_h, stop_h = _taps(row, 1, o_h)
    in_w, first_w, stop_w = _taps(row, 2, o_w)
    counts = (stop_d - first_d, stop_h - first_h, stop_w - first_w)
    taps = counts[0] * counts[1] * counts[2]
    size = row[K_D] * row[K_H] * row[K_W] if row[INCLUDE_PAD] else taps
    y_at = row[Y] + n * row[Y_N] + o_d * row[Y_D] + o_h * row[Y_H] + o_w * row[Y_W]
    x_at = row[X] + n * row[X_N] + (in_d + first_d * row[D_D]) * row[X_D]
    x_at += (in_h + first_h * row[D_H]) * row[X_H] + (in_w + first_w * row[D_W]) * row[X_W]
    factor, doubt = ratio // size, _doubt(ratio, taps)
    base = (row[Y_ZERO] << 32) + (1 << 31) - taps * x_zero * factor
    numbers = (size, factor, base, doubt if ratio >= 0 else np.int64(1) << 32)
    begin = 0
    if row[X_C] == 1 and row[Y_C] == 1 and ratio >= 0 and doubt < 1 << 31:
        while begin + mk.LANES <= row[CHANNELS]:
            near = _averages(
                arena.ctypes.data + x_at + begin,
                arena.ctypes.data + y_at + begin,
                counts[0],
                row[D_D] * row[X_D],
                counts[1],
                row[D_H] * row[X_H],
                counts[2],
                row[D_W] * row[X_W],
                factor,
                base,
                doubt,
                row[LO],
                row[HI],
                row[BIAS128],
            )
            for lane in range(mk.LANES if near != 0 else 0):
                if (near >> lane) & 1 != 0:
                    c = begin + lane
                    arena[y_at + c] = _average(row, arena, values, x_at + c, counts, numbers)
            begin += mk.LANES
    for c in range(begin, row[CHANNELS]):
        code = _average(row, arena, values, x_at + c * row[X_C], counts, numbers)
        arena[y_at + c * row[Y_C]] = code


@lean_jit
def _average(
    row: I64,
    arena: U8,
    values: I32,
    x_at: int,
    counts: tuple[int, int, int],
    numbers: tuple[int, int, int, int],
) -> int:
    """Code of one channel of one output pixel, step by step if it is too near to a half."""
    n_d, n_h, n_w = counts
    size, factor, base, doubt = numbers
    step_d, step_h, step_w = row[D_D] * row[X_D], row[D_H] * row[X_H], row[D_W] * row[X_W]
    acc = 0
    for k_d in range(n_d):
        for k_h in range(n_h):
            x_h = x_at + k_d * step_d + k_h * step_h
            for k_w in range(n_w):
                acc += np.int64(arena[np.uint64(x_h + k_w * step_w)])
    exact = acc * factor + base
    rest = exact & 0xFFFFFFFF
    if doubt < rest < (1 << 32) - doubt:
        code = exact >> 32
    else:
        total = 0
        for k_d in range(n_d):
            for k_h in range(n_h):
                x_h = x_at + k_d * step_d + k_h * step_h
                for k_w in range(n_w):
                    bits = np.int64(values[arena[np.uint64(x_h + k_w * step_w)]]) & 0xFFFFFFFF
                    total = softfloat.add(total, bits)
        code = _average_code(total, size, row[Y_SCALE_BITS], row[Y_ZERO])
    return min(max(code, row[LO]), row[HI]) + row[BIAS128]


@lean_jit
def _average_code(total: int, size: int, y_scale: int, y_zero: int) -> int:
    """Code rint(total / size / y_scale + y_zero) in soft float; total and y_scale are bits."""
    mean = softfloat.div(total, softfloat.from_int32(size))
    steps = softfloat.div(mean, y_scale)
    return softfloat.round_to_int(softfloat.add(steps, softfloat.from_int32(y_zero)))
