"""Where codes begin and end: QuantizeLinear, DequantizeLinear, accumulators to real numbers.

The one file of the integer runtime with floating-point instructions. Each step is one float32
operation in onnxruntime's order; nothing is contracted to a fused multiply-add.

Versions of `quantize` tried (150,528 elements, us, one core of a Xeon with AVX-512, 2026-11):
    the loop of `_code`, vectorised by LLVM; it waits for divisions      25
    products with 1 / scale, divisions only where halves are near        16
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import microkernel as mk
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.share import share

F32 = npt.NDArray[np.float32]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

QUANTIZE_COLUMNS = ("x", "y", "outer", "channels", "inner", "scale", "zero", "lo", "hi")
DEQUANTIZE_COLUMNS = ("x", "y", "outer", "channels", "inner", "scale", "zero")
ACC_TO_REAL_COLUMNS = ("x", "y", "outer", "channels", "inner", "scale", "bias")
X, Y, OUTER, CHANNELS, INNER, SCALE, ZERO, LO, HI = range(1, 1 + len(QUANTIZE_COLUMNS))
BIAS = ZERO


def _operands_naive(row: I64, consts: U8) -> tuple[tuple[int, ...], F32, I32]:
    """Shape of x, scale [channels, 1] and what stands behind it (zero or bias, as int32)."""
    shape = tuple(row[[OUTER, CHANNELS, INNER]].tolist())
    size = 4 * shape[1]
    scale = consts[row[SCALE] : row[SCALE] + size].view(np.float32)[:, None]
    second = consts[row[ZERO] : row[ZERO] + size] if row[ZERO] >= 0 else consts[:0]
    return shape, scale, second.view(np.int32)[:, None]


def quantize_naive(row: I64, arena: U8, consts: U8, *_threads: int) -> None:
    """Specification of `quantize`: NaN becomes lo, as by the x86 maximum."""
    shape, scale, zero = _operands_naive(row, consts)
    count = int(np.prod(shape))
    x = arena[row[X] : row[X] + 4 * count].view(np.float32).reshape(shape)
    lo, hi = (row[[LO, HI], None, None] - zero).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        steps = x / scale
    steps = np.minimum(np.where(np.isnan(steps), lo, np.maximum(steps, lo)), hi)
    codes = np.rint(steps).astype(np.int32) + zero
    arena[row[Y] : row[Y] + count] = codes.ravel()


@lean_jit
def quantize(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Code rint(clip(x / scale, lo - zero, hi - zero)) + zero, halves to even: QuantizeLinear.

    The quotient is a true float32 division. NaN becomes lo, as in onnxruntime on x86.

    Args:
        row: QUANTIZE_COLUMNS. x float32 and y uint8 [outer, channels, inner], contiguous; scale
            (float32, > 0) and zero (int32) [channels] in consts; zero, lo, hi in stored codes.
        arena: uint8 [bytes], changed in place.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    channels, inner = row[CHANNELS], row[INNER]
    scale = consts[row[SCALE] : row[SCALE] + 4 * channels].view(np.float32)
    zero = consts[row[ZERO] : row[ZERO] + 4 * channels].view(np.int32)
    start, stop = share(row[OUTER] * channels * inner, thread, n_threads)
    at = start
    while at < stop:
        c, _, run = channel_run(at, stop, channels, inner)
        x = arena[row[X] + 4 * at : row[X] + 4 * (at + run)].view(np.float32)
        y = arena[row[Y] + at : row[Y] + at + run]
        if inner == 1:
            for k in range(run):
                y[k] = _code(x[k], scale[c + k], zero[c + k], row[LO], row[HI])
        else:
            step, offset = scale[c], zero[c]
            lo, hi, rounds = row[LO], row[HI], 0
            if LEAST_SCALE < step < MOST_SCALE:
                rounds = run // TOGETHER
            if rounds > 0:
                low, high = np.float32(np.int32(lo - offset)), np.float32(np.int32(hi - offset))
                inverse = np.float32(np.true_divide(np.float32(1), step))
                _quantize_line(
                    arena.ctypes.data + row[X] + 4 * at,
                    arena.ctypes.data + row[Y] + at,
                    rounds,
                    np.float32(step).view(np.int32),
                    np.float32(inverse).view(np.int32),
                    offset,
                    np.float32(low).view(np.int32),
                    np.float32(high).view(np.int32),
                )
            for k in range(rounds * TOGETHER, run):
                y[k] = _code(x[k], step, offset, lo, hi)
        at += run


LEAST_SCALE, MOST_SCALE = np.float32(2.0**-100), np.float32(2.0**100)
"""Between these, 1 / scale is as exact as any float32."""
TOGETHER = 64
"""Codes that `quantize_line` makes at a time."""
REALS = mk.ir.VectorType(mk.ir.FloatType(), mk.LANES)
NO_FRACTION = 12582912.0
"""1.5 * 2^23: a float32 sum with it is rounded to an integer, which its low bits hold."""
NEAR_HALF = 0.5 - 2.0**-13
"""A product with 1 / scale is within 2^-22 of the quotient, and no code is beyond 2^8."""


def _reals(builder: mk.Builder, number: mk.Vector) -> mk.Vector:
    """A vector of a float32, given as its bits."""
    bits = mk.splat(builder, builder.trunc(number, mk.I32), mk.ACC)
    return builder.bitcast(bits, REALS)


@mk.microkernel("x", "y", "rounds", "scale", "inverse", "zero", "low", "high")
def _quantize_line(builder: mk.Builder, *values: mk.Vector) -> None:
    """Write 64 codes for each round; scale, its inverse, low and high are bits of float32.

    Products with the inverse have the code of the quotient, but where they are near to a half;
    then all of the round are divided.
    """
    x, y, rounds, scale, inverse, zero, low, high = values
    step, factor, least, most = (_reals(builder, n) for n in (scale, inverse, low, high))
    offset = mk.splat(builder, builder.trunc(zero, mk.I8), mk.BYTES)
    magic, limit = (
        mk.ir.Constant(REALS, [number] * mk.LANES) for number in (NO_FRACTION, NEAR_HALF)
    )
    small, mask = mk.ir.VectorType(mk.I8, mk.LANES), mk.constant(0x7FFFFFFF, mk.ACC)

    def clipped(steps: mk.Vector) -> mk.Vector:
        # NaN is not greater than `low`, so it becomes that.
        steps = builder.select(builder.fcmp_ordered(">", steps, least), steps, least)
        return builder.select(builder.fcmp_ordered("<", steps, most), steps, most)

    def body(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> list[mk.Vector]:
        source = builder.add(x, builder.mul(turn, mk.number(4 * TOGETHER)))
        target = builder.add(y, builder.mul(turn, mk.number(TOGETHER)))
        reals = [
            mk.load(builder, mk.at(builder, source, 4 * first), REALS)
            for first in range(0, TOGETHER, mk.LANES)
        ]

        def write(all_steps: Sequence[mk.Vector]) -> None:
            parts = [builder.trunc(builder.bitcast(s, mk.ACC), small) for s in all_steps]
            pairs = [mk.shuffled(builder, *parts[i : i + 2], range(2 * mk.LANES)) for i in (0, 2)]
            codes = mk.shuffled(builder, *pairs, range(TOGETHER))
            mk.store(builder, builder.add(codes, offset), target)

        near, rounded = None, list[mk.Vector]()
        for real in reals:
            steps = clipped(builder.fmul(real, factor))
            whole = builder.fadd(steps, magic)
            rounded.append(whole)
            rest = builder.fsub(steps, builder.fsub(whole, magic))
            size = builder.bitcast(builder.and_(builder.bitcast(rest, mk.ACC), mask), REALS)
            found = builder.fcmp_ordered(">", size, limit)
            near = found if near is None else builder.or_(near, found)
        write(rounded)
        some = builder.icmp_unsigned("!=", builder.bitcast(near, mk.I16), mk.ir.Constant(mk.I16, 0))
        with builder.if_then(some, likely=False):
            write([builder.fadd(clipped(builder.fdiv(real, step)), magic) for real in reals])
        return []

    mk.loop(builder, rounds, [], body)


@lean_jit
def channel_run(at: int, stop: int, channels: int, inner: int) -> tuple[int, int, int]:
    """Channel and place of element `at`, and how many elements from it on one loop can take.

    These are the rest of a channel's run, or all channels behind where a run is one element.
    """
    c, i = at // inner % channels, at % inner
    run = channels - c if inner == 1 else inner - i
    return c, i, min(run, stop - at)


@lean_jit
def _code(x: np.float32, scale: np.float32, zero: np.int32, lo: int, hi: int) -> np.uint8:
    """Code of one number."""
    low, high = np.float32(np.int32(lo - zero)), np.float32(np.int32(hi - zero))
    # numpy's division: that of Python looks for a zero, which keeps LLVM from vectorising.
    steps = np.float32(np.true_divide(x, scale))
    # In this order, so that NaN, which is greater than nothing, becomes `low`.
    steps = steps if steps > low else low
    steps = steps if steps < high else high
    return np.uint8(np.int32(np.rint(steps)) + zero)


def dequantize_naive(row: I64, arena: U8, consts: U8, *_threads: int) -> None:
    """Specification of `dequantize`."""
    shape, scale, zero = _operands_naive(row, consts)
    count = int(np.prod(shape))
    x = arena[row[X] : row[X] + count].reshape(shape)
    real = (x.astype(np.int32) - zero).astype(np.float32) * scale
    arena[row[Y] : row[Y] + 4 * count].view(np.float32)[:] = real.ravel()


@lean_jit
def dequantize(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Number float32(x - zero) * scale, as DequantizeLinear.

    Args:
        row: DEQUANTIZE_COLUMNS. x uint8 and y float32 [outer, channels, inner], contiguous; scale
            (float32) and zero (int32, stored code) [channels] in consts.
        arena: uint8 [bytes], changed in place.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    channels, inner = row[CHANNELS], row[INNER]
    scale = consts[row[SCALE] : row[SCALE] + 4 * channels].view(np.float32)
    zero = consts[row[ZERO] : row[ZERO] + 4 * channels].view(np.int32)
    start, stop = share(row[OUTER] * channels * inner, thread, n_threads)
    at = start
    while at < stop:
        c, _, run = channel_run(at, stop, channels, inner)
        x = arena[row[X] + at : row[X] + at + run]
        y = arena[row[Y] + 4 * at : row[Y] + 4 * (at + run)].view(np.float32)
        if inner == 1:
            for k in range(run):
                y[k] = np.float32(np.int32(np.int32(x[k]) - zero[c + k])) * scale[c + k]
        else:
            step, offset = scale[c], zero[c]
            for k in range(run):
                y[k] = np.float32(np.int32(np.int32(x[k]) - offset)) * step
        at += run


def acc_to_real_naive(row: I64, arena: U8, consts: U8, *_threads: int) -> None:
    """Specification of `acc_to_real`."""
    shape, scale, bias = _operands_naive(row, consts)
    count = int(np.prod(shape))
    acc = arena[row[X] : row[X] + 4 * count].view(np.int32).reshape(shape)
    real = acc.astype(np.float32) * scale
    if row[BIAS] >= 0:
        real += bias.view(np.float32)
    arena[row[Y] : row[Y] + 4 * count].view(np.float32)[:] = real.ravel()


@lean_jit
def acc_to_real(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Number float32(acc) * scale, and where there is a bias, that sum rounded once more.

    Args:
        row: ACC_TO_REAL_COLUMNS. x int32 and y float32 [outer, channels, inner], contiguous; scale
            and bias float32 [channels] in consts, bias -1 where there is none.
        arena: uint8 [bytes], changed in place; y may be x.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    channels, inner = row[CHANNELS], row[INNER]
    scale = consts[row[SCALE] : row[SCALE] + 4 * channels].view(np.float32)
    # Without a bias this is not read.
    bias = consts[max(row[BIAS], 0) : max(row[BIAS], 0) + 4 * channels].view(np.float32)
    start, stop = share(row[OUTER] * channels * inner, thread, n_threads)
    at = start
    while at < stop:
        c, _, run = channel_run(at, stop, channels, inner)
        x = arena[row[X] + 4 * at : row[X] + 4 * (at + run)].view(np.int32)
        y = arena[row[Y] + 4 * at : row[Y] + 4 * (at + run)].view(np.float32)
        # -0.0 + 0.0 is 0.0: no bias is not a bias of 0.
        if inner == 1:
            for k in range(run):
                y[k] = np.float32(x[k]) * scale[c + k]
            if row[BIAS] >= 0:
                for k in range(run):
                    y[k] += bias[c + k]
        else:
            step = scale[c]
            for k in range(run):
                y[k] = np.float32(x[k]) * step
            if row[BIAS] >= 0:
                shift = bias[c]
                for k in range(run):
                    y[k] += shift
        at += run
