"""Two codes to one code: add, mul, min and max, with broadcasting.

All codes, zero points, lo, hi and the table are those stored (uint8). The caller has proved the
fixed-point form, or the table, equal to onnxruntime's float formula on all pairs of codes.

Times of `pair` (200,704 elements, ns each, one core of a Xeon with AVX-512, 2026-11):
    add 0.21, mul 0.25 (0.35 with a factor a channel), min 0.03, add by table 0.83
    in vectors of 64 codes, where lines are as long: add 0.075, by sums of two products of 16 bits;
    mul 0.17 (also with a factor a channel), by products of 32 bits
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import microkernel as mk
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
        # Whole lines of the last but one axis go to the vectors together.
        whole = min(row[N4] - line % row[N4], (stop - at) // length)
        if i == 0 and whole > 0:
            places = (a_at, b_at, row[Y] + at)
            together = whole if row[A5] == 1 and row[B5] == 1 else 1
            if _vectors(row, arena, places, length, together):
                at += together * length
                continue
        elif _vectors(row, arena, (a_at, b_at, row[Y] + at), min(length - i, stop - at), 1):
            at += min(length - i, stop - at)
            continue
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


TOGETHER = 64
"""Codes that a microkernel makes at a time."""
WORDS = mk.ir.VectorType(mk.I16, 2 * mk.LANES)
_PLACES = ("a", "b", "y", "rounds", "lines", "a_line", "b_line", "y_line", "lo", "hi")


def _update_lines(
    builder: mk.Builder,
    places: Sequence[mk.Vector],
    numbers: Callable[[mk.Vector, mk.Vector], list[mk.Vector]],
) -> None:
    """Walk over lines of a, b and y, 64 codes a round; `places` is _PLACES.

    `numbers` makes four vectors of 16 numbers, in the order of `mk.packed`, of 64 codes each of a
    and b. They are clipped to the limits and written.
    """
    *starts, rounds, lines, a_line, b_line, y_line = places[:-2]
    lo, hi = (mk.splat(builder, builder.trunc(limit, mk.I8), mk.BYTES) for limit in places[-2:])

    def line(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> list[mk.Vector]:
        begins = [
            builder.add(start, builder.mul(turn, step))
            for start, step in zip(starts, (a_line, b_line, y_line), strict=True)
        ]

        def body(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> list[mk.Vector]:
            offset = builder.mul(turn, mk.number(TOGETHER))
            a, b, y = (builder.add(begin, offset) for begin in begins)
            found = numbers(mk.load(builder, a, mk.BYTES), mk.load(builder, b, mk.BYTES))
            codes = mk.packed(builder, found)
            codes = builder.select(builder.icmp_unsigned(">", codes, lo), codes, lo)
            codes = builder.select(builder.icmp_unsigned("<", codes, hi), codes, hi)
            mk.store(builder, codes, y)
            return []

        mk.loop(builder, rounds, [], body)
        return []

    mk.loop(builder, lines, [], line)


@mk.microkernel(*_PLACES, "low", "high", "rounding_low", "rounding_high", "shift")
def _sums(builder: mk.Builder, *values: mk.Vector) -> None:
    """Fixed-point sums in int32.

    Multipliers and rounding have a low and a high digit, to base 2^16: a sum of high digits plus
    what a sum of low ones carries is the whole sum >> 16.
    """
    low, high, less, more, shift = (
        mk.splat(builder, builder.trunc(number, mk.I32), mk.ACC) for number in values[-5:]
    )
    low, high = builder.bitcast(low, WORDS), builder.bitcast(high, WORDS)

    def total(pairs: mk.Vector) -> mk.Vector:
        pairs = builder.bitcast(pairs, WORDS)
        carried = builder.add(mk.pair_sums(builder, pairs, low), less)
        carried = builder.ashr(carried, mk.constant(16, mk.ACC))
        rest = builder.add(mk.pair_sums(builder, pairs, high), more)
        return builder.ashr(builder.add(rest, carried), shift)

    def numbers(a: mk.Vector, b: mk.Vector) -> list[mk.Vector]:
        zero = mk.constant(0, mk.BYTES)
        both = mk.unpacked(builder, a, b, 16)
        return [total(pairs) for half in both for pairs in mk.unpacked(builder, half, zero, 16)]

    _update_lines(builder, values[:-5], numbers)


@mk.microkernel(*_PLACES, "a_zero", "b_zero", "multiplier", "rounding", "shift")
def _products(builder: mk.Builder, *values: mk.Vector) -> None:
    """Fixed-point products, whose numbers fit 32 bits before they are clipped."""
    zeros = [mk.splat(builder, builder.trunc(zero, mk.I16), WORDS) for zero in values[-5:-3]]
    multiplier, rounding, shift = (mk.splat(builder, n, mk.LONGS) for n in values[-3:])
    bits = mk.constant(32, mk.LONGS)
    multiplier = builder.ashr(builder.shl(multiplier, bits), bits)

    def scaled(longs: mk.Vector) -> mk.Vector:
        result = builder.ashr(builder.add(builder.mul(longs, multiplier), rounding), shift)
        return builder.bitcast(result, mk.ACC)

    def number(product: mk.Vector) -> mk.Vector:
        longs = builder.bitcast(product, mk.LONGS)
        even = scaled(builder.ashr(builder.shl(longs, bits), bits))
        odd = scaled(builder.ashr(longs, bits))
        lanes = [lane for i in range(0, mk.LANES, 2) for lane in (i, mk.LANES + i)]
        return mk.shuffled(builder, even, odd, lanes)

    def numbers(a: mk.Vector, b: mk.Vector) -> list[mk.Vector]:
        zero, found = mk.constant(0, mk.BYTES), list[mk.Vector]()
        wide = (mk.unpacked(builder, codes, zero, 16) for codes in (a, b))
        for one, other in zip(*wide, strict=True):
            left, right = (
                builder.sub(builder.bitcast(half, WORDS), less)
                for half, less in zip((one, other), zeros, strict=True)
            )
            low, high = builder.mul(left, right), mk.high_product(builder, left, right)
            found += [number(pairs) for pairs in mk.unpacked(builder, low, high, 8)]
        return found

    _update_lines(builder, values[:-5], numbers)


@lean_jit
def _vector_sums(
    row: I64, arena: U8, places: tuple[int, int, int], size: int, lines: int, lone: int
) -> bool:
    """Lines of at least 64 codes; False, and nothing is done, where digits do not fit 16 bits.

    `lone` is 1 where an operand stays the same along a line, and is part of the rounding.
    """
    a_at, b_at, y_at = places
    m_a, m_b, rounding = row[MULTIPLIER_A], row[MULTIPLIER_B], row[ROUNDING]
    if lone != 0 and row[B5] == 0:
        rounding += arena[b_at] * m_b
        b_at, m_b = a_at, 0
    elif lone != 0:
        rounding += arena[a_at] * m_a
        a_at, m_a = b_at, 0
    a_high, b_high = (m_a + 0x8000) >> 16, (m_b + 0x8000) >> 16
    rest, shift = rounding >> 16, row[SHIFT] - 16
    if shift < 0 or max(abs(a_high), abs(b_high)) > 0x7FFF or abs(rest) >= 1 << 30:
        return False
    low = ((m_b & 0xFFFF) << 16) | (m_a & 0xFFFF)
    high = ((b_high & 0xFFFF) << 16) | (a_high & 0xFFFF)
    done = 0
    while done < size:
        # The last codes are made again where they do not fill a round.
        first = arena.ctypes.data + min(done, size - TOGETHER)
        rounds = max((size - done) // TOGETHER, 1)
        _sums(
            first + a_at,
            first + b_at,
            first + y_at,
            rounds,
            lines,
            row[A4],
            row[B4],
            size,
            row[LO],
            row[HI],
            low,
            high,
            rounding & 0xFFFF,
            rest,
            min(shift, 31),
        )
        done += rounds * TOGETHER
    return True


@lean_jit
def _vector_products(
    row: I64, arena: U8, places: tuple[int, int, int], size: int, lines: int
) -> bool:
    """Lines of at least 64 codes; False, and nothing is done, where numbers do not fit 32 bits."""
    a_at, b_at, y_at = places
    most = 255 * 255 * abs(row[MULTIPLIER_A]) + abs(row[ROUNDING])
    if most >> row[SHIFT] >= 1 << 31:
        return False
    done = 0
    while done < size:
        first = arena.ctypes.data + min(done, size - TOGETHER)
        rounds = max((size - done) // TOGETHER, 1)
        _products(
            first + a_at,
            first + b_at,
            first + y_at,
            rounds,
            lines,
            row[A4],
            row[B4],
            size,
            row[LO],
            row[HI],
            row[A_ZERO],
            row[B_ZERO],
            row[MULTIPLIER_A],
            row[ROUNDING],
            row[SHIFT],
        )
        done += rounds * TOGETHER
    return True


@lean_jit
def _vectors(row: I64, arena: U8, places: tuple[int, int, int], size: int, lines: int) -> bool:
    """Lines by microkernels; False, and nothing is done, where there is none for them."""
    if row[FORM] == BY_TABLE or row[OP] > MUL or size < TOGETHER or row[A5] + row[B5] == 0:
        return False
    if row[A5] > 1 or row[B5] > 1:
        return False
    if row[A5] == 1 and row[B5] == 1:
        if row[OP] == ADD:
            return _vector_sums(row, arena, places, size, lines, 0)
        return _vector_products(row, arena, places, size, lines)
    if row[OP] == ADD and lines == 1:
        return _vector_sums(row, arena, places, size, lines, 1)
    return False


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
