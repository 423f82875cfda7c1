"""The QLinearSoftmax of onnxruntime, with integers only.

It looks exp(x_scale * (x - max)) up in a table of float32, sums the values one after the other in
float32, and takes q = min(rint(t * c / sum) + y_zero, hi) with c = floor(1 / y_scale). From 1.32 on
the quotient is not rounded before rint: of 986 rows with quotients within 2^-22 of a half, it has
the code of the exact quotient everywhere. Up to 1.31.1 t * c and the quotient are rounded to
float32 (38 codes in 211 of such rows differ for c = 128), and where t * c leaves float32, which c
above 148 times the length does, an integer overflows (`_overflowed`).

Versions tried (rows of 1000, ns an element, one core of a Xeon with AVX-512, 2026-11):
    soft-float sums, quotients from a reciprocal, exact ones near halves     8.4
"""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import softfloat
from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.share import share

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

COLUMNS = (
    *("x", "y", "outer", "length", "inner", "table"),
    *("one_over_bits", "y_zero", "hi", "bias128", "x_is_signed", "exact"),
)
(
    X, Y, OUTER, LENGTH, INNER, TABLE,
    ONE_OVER_BITS, Y_ZERO, HI, BIAS128, X_IS_SIGNED, EXACT,
) = range(1, 1 + len(COLUMNS))  # fmt: skip

GUARD = 32
NEAR = 30
"""Quotients are first taken with 30 bits behind the point."""
DOUBT = 1024
"""2^-20: more than the roundings down move a quotient below 600, 2^-30 of it and 2^-30.

Larger quotients keep their place above 512 and saturate, since y_zero >= -128 and hi <= 255.
"""
SATURATED = 512


def _overflowed_naive(row: I64) -> int:
    """Specification of `_overflowed`: -2^31 + y_zero in int32, then as the type takes it."""
    y_zero = int(row[Y_ZERO])
    if not row[BIAS128]:
        return 0
    return SATURATED if y_zero < 0 else -128 - y_zero


def softmax_naive(row: I64, arena: U8, consts: U8, *_threads: int) -> None:
    """Specification of `softmax`: float32 sums in order, quotients exact or of float32."""
    outer, length, inner = row[[OUTER, LENGTH, INNER]].tolist()
    size = outer * length * inner
    x = arena[row[X] : row[X] + size].reshape(outer, length, inner).astype(np.int64)
    table = consts[row[TABLE] : row[TABLE] + 1024].view(np.float32)
    one_over = np.uint32(row[ONE_OVER_BITS]).view(np.float32)
    if x.size == 0:
        return
    top = 127 if row[X_IS_SIGNED] else 255
    values = table[(x - x.max(axis=1, keepdims=True) + top) & 255]
    total = np.zeros((outer, 1, inner), np.float32)
    for k in range(length):
        total += values[:, k : k + 1]
    # No float64 division rounds to a half: t * c and sum have 48 and 24 bits.
    wide = values.astype(np.float64) if row[EXACT] else values
    with np.errstate(over="ignore"):
        shares = wide * one_over / total
    quotients = np.rint(np.where(np.isinf(shares), _overflowed_naive(row), shares))
    codes = np.minimum(quotients, SATURATED).astype(np.int64) + row[Y_ZERO]
    y = np.minimum(codes, row[HI]) + row[BIAS128]
    arena[row[Y] : row[Y] + size] = y.ravel()


@lean_jit
def softmax(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Softmax along the middle axis, code for code as QLinearSoftmax.

    Args:
        row: COLUMNS. x and y [outer, length, inner], contiguous; table: offset in consts of int32
            [256], bits of the float32 that onnxruntime's table holds, in its order: by the byte of
            the ONNX code, so that the largest is at 255 for uint8 and at 127 for int8;
            one_over_bits: those of c; y_zero and hi in ONNX's codes; bias128: 128 where those are
            int8, else 0; x_is_signed: whether x has int8 codes in ONNX; exact: whether quotients
            are not rounded to float32. Every sum is a normal float.
        arena: uint8 [bytes], changed in place; y may be x.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    inner, length = row[INNER], row[LENGTH]
    table = consts[row[TABLE] : row[TABLE] + 1024].view(np.int32)
    top = 127 if row[X_IS_SIGNED] else 255
    start, stop = share(row[OUTER] * inner, thread, n_threads)
    if length == 0:
        return
    for unit in range(start, stop):
        outer = unit // inner
        at = outer * length * inner + unit - outer * inner
        x = arena[row[X] + at : row[X] + at + (length - 1) * inner + 1]
        y = arena[row[Y] + at : row[Y] + at + (length - 1) * inner + 1]
        highest = 0
        for i in range(length):
            highest = max(highest, np.int64(x[i * inner]))
        total = _sum(x, table, top - highest, inner, length)
        _quotients(row, x, y, table, top - highest, total)


@lean_jit
def _sum(x: U8, table: I32, shift: int, step: int, length: int) -> int:
    """Bits of the sum of the table's values, taken one after the other."""
    total = np.int64(0)
    for i in range(length):
        total = _add_positive(total, np.int64(table[(np.int64(x[i * step]) + shift) & 255]))
    return total


@lean_jit
def _add_positive(a: int, b: int) -> int:
    """`softfloat.add` of floats that are not negative: their sum has at most one bit more."""
    larger, smaller = max(a, b), min(a, b)
    e = softfloat.exponent(larger)
    distance = e - softfloat.exponent(smaller)
    if distance > GUARD:
        return larger  # less than a quarter of its last place
    m = softfloat.mantissa(larger) << GUARD
    m += (softfloat.mantissa(smaller) << GUARD) >> distance
    drop = GUARD + (m >> (GUARD + 24))
    rounded = (m + (1 << (drop - 1)) - 1 + ((m >> drop) & 1)) >> drop
    # The hidden bit, a second bit before the point and a carry all count up the exponent.
    return min(((e - 1 + drop - GUARD) << 23) + rounded, softfloat.INFINITY)


@lean_jit
def _quotients(row: I64, x: U8, y: U8, table: I32, shift: int, total: int) -> None:
    """Codes of one run, given the bits of its sum."""
    step, one_over = row[INNER], row[ONE_OVER_BITS]
    y_zero, hi, bias = row[Y_ZERO], row[HI], row[BIAS128]
    m_one, m_total = softfloat.mantissa(one_over), softfloat.mantissa(total)
    exponents = softfloat.exponent(one_over) - softfloat.exponent(total) - 150
    factor = (m_one << 31) // m_total
    for i in range(row[LENGTH]):
        bits = np.int64(table[(np.int64(x[i * step]) + shift) & 255])
        if row[EXACT] == 0:
            product = softfloat.mul(bits, one_over)
            code = _overflowed(y_zero, bias)
            if product != softfloat.INFINITY:
                code = softfloat.round_to_int(softfloat.div(product, total))
            y[i * step] = min(code + y_zero, hi) + bias
            continue
        m = softfloat.mantissa(bits)
        # The quotient is m * m_one / m_total * 2^e.
        e = exponents + softfloat.exponent(bits)
        down = 31 - NEAR - e
        nearly = ((m * factor) >> min(max(down, 0), 62)) + (1 << (NEAR - 1))
        rest = nearly & ((1 << NEAR) - 1)
        if down < 0:
            code = SATURATED
        elif DOUBT < rest < (1 << NEAR) - DOUBT:
            code = nearly >> NEAR
        else:
            code = _rounded_quotient(m * m_one, m_total, -e - 1)
        y[i * step] = min(code + y_zero, hi) + bias


@lean_jit
def _overflowed(y_zero: int, bias: int) -> int:
    """What -2^31 + y_zero becomes, less y_zero: its last byte in uint8; in int8 it is clipped.

    A negative y_zero wraps it around to a large number.
    """
    if bias == 0:
        return 0
    return SATURATED if y_zero < 0 else -128 - y_zero


@lean_jit
def _rounded_quotient(product: int, m_total: int, up: int) -> int:
    """Integer nearest to product / (2 * m_total * 2^up), halves to even; the half-steps are exact.

    A quotient near to a half is at least 0.49, so that `up` is at most 25.
    """
    if up < 0:
        return SATURATED
    divisor = m_total << up
    halves = product // divisor
    code = halves >> 1
    above = halves & 1 != 0 and (product > halves * divisor or code & 1 != 0)
    return code + 1 if above else code
