"""Two codes to one code: add, mul, min and max, with broadcasting.

All codes, zero points, lo, hi and the table are those stored (uint8). The caller has proved the
fixed-point form, or the table, equal to onnxruntime's float formula on all pairs of codes.

Times of `pair` (200,704 elements, ns each, one core of a Xeon with AVX-512, 2026-11):
    add 0.21, mul 0.25 (0.35 with a factor a channel), min 0.03, add by table 0.83
"""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels.jit import lean_jit
from onnxptq.kernels.share import share

I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

COLUMNS = (
    *("a", "b", "y", "op", "form"),
    *("n0", "n1", "n2", "n3", "n4", "n5"),
    *("a0", "a1", "a2", "a3", "a4", "a5"),
    *("b0", "b1", "b2", "b3", "b4", "b5"),
    *("multiplier_a", "multiplier_b", "rounding", "shift"),
    *("a_zero", "b_zero", "lo", "hi", "table"),
)
(
    A, B, Y, OP, FORM,
    N0, N1, N2, N3, N4, N5,
    A0, A1, A2, A3, A4, A5,
    B0, B1, B2, B3, B4, B5,
    MULTIPLIER_A, MULTIPLIER_B, ROUNDING, SHIFT,
    A_ZERO, B_ZERO, LO, HI, TABLE,
) = range(1, 1 + len(COLUMNS))  # fmt: skip

ADD, MUL, MIN, MAX = range(4)
FIXED_POINT, BY_TABLE = range(2)


def pair_naive(row: I64, arena: U8, consts: U8, *_threads: int) -> None:
    """Specification of `pair`: numpy on broadcast views."""
    shape = tuple(row[N0 : N5 + 1].tolist())
    a, b = (
        np.lib.stride_tricks.as_strided(arena[row[start] :], shape, row[first : first + 6])
        for start, first in ((A, A0), (B, B0))
    )
    a, b = a.astype(np.int64), b.astype(np.int64)
    if row[OP] == MIN:
        y = np.minimum(a, b)
    elif row[OP] == MAX:
        y = np.maximum(a, b)
    elif row[FORM] == BY_TABLE:
        y = consts[row[TABLE] : row[TABLE] + 65536].reshape(256, 256)[a, b]
    else:
        if row[OP] == ADD:
            acc = a * row[MULTIPLIER_A] + b * row[MULTIPLIER_B]
        else:
            acc = (a - row[A_ZERO]) * (b - row[B_ZERO]) * row[MULTIPLIER_A]
        y = np.clip((acc + row[ROUNDING]) >> row[SHIFT], row[LO], row[HI])
    arena[row[Y] : row[Y] + y.size] = y.ravel()


@lean_jit
def pair(row: I64, arena: U8, consts: U8, thread: int, n_threads: int) -> None:
    """Combine two codes, y = op(a, b), on up to six axes; y is contiguous.

    Args:
        row: COLUMNS. Sizes n, strides of a and b in elements (0 where broadcast).
            op: 0 add, 1 mul, 2 min, 3 max (which need no form, lo and hi).
            form 0: add  clip((a * multiplier_a + b * multiplier_b + rounding) >> shift, lo, hi)
                    mul  clip(((a - a_zero) * (b - b_zero) * multiplier_a + rounding) >> shift, ...)
                    |multiplier| < 2^31, and the sum stays within int64.
            form 1: table[a, b], uint8 [256, 256] in consts.
        arena: uint8 [bytes], changed in place.
        consts: uint8 [bytes].
        thread: Which of the threads this is.
        n_threads: How many there are.
    """
    length = row[N5]
    lines = row[N0] * row[N1] * row[N2] * row[N3] * row[N4]
    start, stop = share(lines * length, thread, n_threads)
    at = start
    while at < stop:
        line = at // length
        i = at - line * length
        a_at = row[A] + _offset(row, A0, line) + i * row[A5]
        b_at = row[B] + _offset(row, B0, line) + i * row[B5]
        # Along the last but one axis only the strides are added: dividing for each line is slow.
        for _ in range(line % row[N4], row[N4]):
            count = min(length - i, stop - at)
            if count <= 0:
                break
            _line(row, arena, consts, a_at, b_at, row[Y] + at, count)
            at += count
            a_at += row[A4] - i * row[A5]
            b_at += row[B4] - i * row[B5]
            i = 0


@lean_jit
def _offset(row: I64, first: int, line: int) -> int:
    """Elements between the first line and `line`, by the strides from column `first`."""
    offset = 0
    for axis in range(4, -1, -1):
        n = row[N0 + axis]
        if n > 1:
            rest = line // n
            offset += (line - rest * n) * row[first + axis]
            line = rest
    return offset


@lean_jit
def _line(row: I64, arena: U8, consts: U8, a_at: int, b_at: int, y_at: int, count: int) -> None:
    """One run along the last axis."""
    a_step, b_step = row[A5], row[B5]
    a = arena[a_at : a_at + (count - 1) * a_step + 1]
    b = arena[b_at : b_at + (count - 1) * b_step + 1]
    y = arena[y_at : y_at + count]
    if row[OP] == MIN:
        _min(a, b, y, a_step, b_step)
    elif row[OP] == MAX:
        _max(a, b, y, a_step, b_step)
    elif row[FORM] == BY_TABLE:
        table = consts[row[TABLE] : row[TABLE] + 65536]
        for i in range(count):
            y[i] = table[(np.int64(a[i * a_step]) << 8) | np.int64(b[i * b_step])]
    elif row[OP] == MUL:
        _mul(row, a, b, y, a_step, b_step)
    else:
        _add(row, a, b, y, a_step, b_step)


@lean_jit
def _add(row: I64, a: U8, b: U8, y: U8, a_step: int, b_step: int) -> None:
    """Fixed-point sums; a loop for each pattern of strides, so that LLVM vectorises it."""
    # Read as int32: LLVM then multiplies 32 bits to 64, one instruction instead of three.
    m_a, m_b = np.int32(row[MULTIPLIER_A]), np.int32(row[MULTIPLIER_B])
    rounding, shift, lo, hi = row[ROUNDING], row[SHIFT], row[LO], row[HI]
    if a_step == 1 and b_step == 1:
        for i in range(y.size):
            acc = np.int64(a[i]) * np.int64(m_a) + np.int64(b[i]) * np.int64(m_b) + rounding
            y[i] = min(max(acc >> shift, lo), hi)
    elif a_step == 1 and b_step == 0:
        rest = np.int64(b[0]) * np.int64(m_b) + rounding
        for i in range(y.size):
            y[i] = min(max((np.int64(a[i]) * np.int64(m_a) + rest) >> shift, lo), hi)
    elif a_step == 0 and b_step == 1:
        rest = np.int64(a[0]) * np.int64(m_a) + rounding
        for i in range(y.size):
            y[i] = min(max((np.int64(b[i]) * np.int64(m_b) + rest) >> shift, lo), hi)
    else:
        for i in range(y.size):
            acc = np.int64(a[i * a_step]) * np.int64(m_a) + np.int64(b[i * b_step]) * np.int64(m_b)
            y[i] = min(max((acc + rounding) >> shift, lo), hi)


@lean_jit
def _mul(row: I64, a: U8, b: U8, y: U8, a_step: int, b_step: int) -> None:
    """Fixed-point products, loops as in `_add`."""
    m = np.int32(row[MULTIPLIER_A])
    a_zero, b_zero = np.int32(row[A_ZERO]), np.int32(row[B_ZERO])
    rounding, shift, lo, hi = row[ROUNDING], row[SHIFT], row[LO], row[HI]
    if a_step == 1 and b_step == 1:
        for i in range(y.size):
            product = np.int32(
                np.int32(np.int32(a[i]) - a_zero) * np.int32(np.int32(b[i]) - b_zero)
            )
            y[i] = min(max((np.int64(product) * np.int64(m) + rounding) >> shift, lo), hi)
    elif (a_step == 1 and b_step == 0) or (a_step == 0 and b_step == 1):
        many, one = (a, np.int32(b[0]) - b_zero) if a_step == 1 else (b, np.int32(a[0]) - a_zero)
        zero = np.int32(a_zero if a_step == 1 else b_zero)
        for i in range(y.size):
            product = np.int32(np.int32(np.int32(many[i]) - zero) * np.int32(one))
            y[i] = min(max((np.int64(product) * np.int64(m) + rounding) >> shift, lo), hi)
    else:
        for i in range(y.size):
            product = (np.int64(a[i * a_step]) - a_zero) * (np.int64(b[i * b_step]) - b_zero)
            y[i] = min(max((product * np.int64(m) + rounding) >> shift, lo), hi)


@lean_jit
def _min(a: U8, b: U8, y: U8, a_step: int, b_step: int) -> None:
    """The smaller codes."""
    if a_step == 1 and b_step == 1:
        for i in range(y.size):
            y[i] = min(a[i], b[i])
    else:
        for i in range(y.size):
            y[i] = min(a[i * a_step], b[i * b_step])


@lean_jit
def _max(a: U8, b: U8, y: U8, a_step: int, b_step: int) -> None:
    """The larger codes."""
    if a_step == 1 and b_step == 1:
        for i in range(y.size):
            y[i] = max(a[i], b[i])
    else:
        for i in range(y.size):
            y[i] = max(a[i * a_step], b[i * b_step])
