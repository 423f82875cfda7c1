"""Where codes begin and end: QuantizeLinear, DequantizeLinear, accumulators to real numbers.

The one file of the integer runtime with floating-point instructions. Each step is one float32
operation in onnxruntime's order; nothing is contracted to a fused multiply-add.
"""

import numpy as np
import numpy.typing as npt

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
        c, _, run = _run(at, stop, channels, inner)
        x = arena[row[X] + 4 * at : row[X] + 4 * (at + run)].view(np.float32)
        y = arena[row[Y] + at : row[Y] + at + run]
        if inner == 1:
            for k in range(run):
                y[k] = _code(x[k], scale[c + k], zero[c + k], row[LO], row[HI])
        else:
            step, offset = scale[c], zero[c]
            lo, hi = row[LO], row[HI]
            for k in range(run):
                y[k] = _code(x[k], step, offset, lo, hi)
        at += run


@lean_jit
def _run(at: int, stop: int, channels: int, inner: int) -> tuple[int, int, int]:
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
        c, _, run = _run(at, stop, channels, inner)
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
        c, _, run = _run(at, stop, channels, inner)
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
