"""From accumulators of 16 channels to codes in y: fixed point, the limits, a residual sum.

Convolutions leave a tile of accumulators [rows, >= 16] in scratch; what happens to them afterwards
is the same whatever made them. All numbers of 16 channels stand together in `consts`.

Even and odd channels are multiplied apart, to 64 bits. Shifts are at least 32, so the upper halves
of the products are one vector again before they are shifted by the rest. Four vectors become one of
bytes, which saturates at 0 and 255 by itself.

Versions tried (56x56x256 codes after tiles, one thread of a Xeon with AVX-512, 2026-11), ns a code:
    a vector of 16 at a time, limits in 32 bits        0.187
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import microkernel as mk
from onnxptq.kernels import target

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

LANES = mk.LANES
# Bias i32 [16], multiplier and rounding i64 [8] of even and [8] of odd channels, shift less 32 i32.
BIAS, MULTIPLIER, ROUNDING, SHIFT = 0, 64, 192, 320
PARAMS_BYTES = 384
"""Of 16 channels."""
LEAST_SHIFT = 32
# i64 each, of a residual sum: see `sum_params_of`.
SUM_LOW, SUM_HIGH, SUM_LESS, SUM_MORE, SUM_SHIFT, SUM_LO, SUM_HI = range(0, 56, 8)
SUM_BYTES = 56
_DIGIT = 16
_WORD, _MOST_HIGH, _MOST_MORE = 0xFFFF, 0x7FFF, 1 << 30
SMALL = mk.ir.VectorType(mk.I8, LANES)

BLOCK = 64
"""Channels whose codes are one vector."""
ORDER = np.arange(BLOCK).reshape(4, 4, 4).transpose(1, 0, 2).reshape(4, LANES)
"""Channel of each lane of four vectors, [4, 16]: packing to bytes within each 16 bytes sorts."""
# Of a block: bias i32, multiplier i64 (even, then odd lanes), rounding likewise, shift less 32 i32;
# each for one vector after the other.
BLOCK_BIAS, BLOCK_MULTIPLIER, BLOCK_ROUNDING, BLOCK_SHIFT = 0, 256, 768, 1280
BLOCK_PARAMS_BYTES = 1536


def params_of(
    bias: npt.NDArray[np.int32],
    multiplier: npt.NDArray[np.int32],
    rounding: I64,
    shift: I64,
) -> U8:
    """The numbers of C channels as microkernels read them, [ceil(C / 16) * PARAMS_BYTES].

    Channels that are added to make groups of 16 full have zeros.

    Args:
        bias: Is added to accumulators; also folded into the rounding, so that they never have to.
        multiplier: At least 0.
        rounding: (acc + bias) * multiplier + rounding stays within int64.
        shift: LEAST_SHIFT .. 62.
    """
    groups = -(-bias.size // LANES)
    block = np.zeros((groups, PARAMS_BYTES), np.uint8)

    def put(place: int, numbers: npt.NDArray[np.int64] | npt.NDArray[np.int32]) -> None:
        raw = numbers.view(np.uint8).reshape(groups, -1)
        block[:, place : place + raw.shape[1]] = raw

    def full(numbers: npt.NDArray[np.int64] | npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
        padded = np.zeros(groups * LANES, np.int64)
        padded[: numbers.size] = numbers
        return padded

    put(BIAS, full(bias).astype(np.int32))
    folded = rounding + bias.astype(np.int64) * multiplier
    put(SHIFT, full(np.maximum(shift - LEAST_SHIFT, 0)).astype(np.int32))
    for place, numbers in ((MULTIPLIER, multiplier), (ROUNDING, folded)):
        pairs = full(numbers).reshape(groups, LANES // 2, 2)
        put(place, np.ascontiguousarray(pairs.transpose(0, 2, 1)))
    return block.ravel()


def code_naive(params: U8, lane: int, acc: int, limits: tuple[int, int]) -> int:
    """Specification of how a lane makes a code.

    Args:
        params: Of 16 channels.
        lane: Which of them.
        acc: The accumulator without bias.
        limits: Lowest and highest code.
    """

    def of(place: int) -> int:
        numbers = params[place : place + 8 * LANES].view(np.int64)
        return int(numbers.reshape(2, LANES // 2)[lane % 2, lane // 2])

    shift = LEAST_SHIFT + int(params[SHIFT : SHIFT + 4 * LANES].view(np.int32)[lane])
    return min(max((acc * of(MULTIPLIER) + of(ROUNDING)) >> shift, limits[0]), limits[1])


def sum_params_of(
    multipliers: tuple[int, int], rounding: int, shift: int, limits: tuple[int, int]
) -> I64 | None:
    """The numbers of a sum clip((code * m + other * m' + rounding) >> shift, lo, hi), i64 [7].

    Multipliers and rounding are split into digits to base 2^16, the low ones of multipliers signed:
    a sum of high digits plus what a sum of low ones carries is the whole sum >> 16.

    Returns:
        None where a digit does not fit, or the shift is less than a digit's.
    """
    highs = [(factor + 0x8000) >> _DIGIT for factor in multipliers]
    more = rounding >> _DIGIT
    if shift < _DIGIT or max(map(abs, highs)) > _MOST_HIGH or abs(more) >= _MOST_MORE:
        return None
    low, high = (((pair[1] & _WORD) << _DIGIT) | (pair[0] & _WORD) for pair in (multipliers, highs))
    rest = min(shift - _DIGIT, 31)
    return np.array([low, high, rounding & _WORD, more, rest, *limits], np.int64)


def sum_naive(numbers: I64, code: int, addend: int) -> int:
    """Specification of how a lane adds a code to its own; numbers are those of `sum_params_of`."""
    low, high, less, more, shift, lo, hi = numbers.tolist()

    def product(pair: int) -> int:
        words = np.array([pair & _WORD, pair >> _DIGIT]).astype(np.uint16).view(np.int16)
        return code * int(words[0]) + addend * int(words[1])

    total = product(high) + more + ((product(low) + less) >> _DIGIT)
    return min(max(total >> shift, lo), hi)


def block_params_of(bias: I32, multiplier: I32, rounding: I64, shift: I64) -> U8:
    """The numbers of 64 channels as `block_codes` reads them; a shift below 32 counts as 32."""
    pairs = [
        numbers.astype(np.int64)[ORDER].reshape(-1, LANES // 2, 2).transpose(0, 2, 1)
        for numbers in (multiplier, rounding)
    ]
    rest = np.maximum(shift - LEAST_SHIFT, 0)
    small = [numbers[ORDER].astype(np.int32) for numbers in (bias, rest)]
    arrays = (small[0], *pairs, small[1])
    return np.concatenate([np.ascontiguousarray(array).view(np.uint8).ravel() for array in arrays])


def block_bias_naive(params: U8, channel: int) -> int:
    """The bias of a channel of a block."""
    lane = ORDER.ravel().tolist().index(channel)
    return int(params[BLOCK_BIAS : BLOCK_BIAS + 4 * BLOCK].view(np.int32)[lane])


def block_code_naive(params: U8, channel: int, acc: int, limits: tuple[int, int]) -> int:
    """Specification of how `block_codes` makes the code of a channel; acc has the bias in it."""
    lane = ORDER.ravel().tolist().index(channel)

    def of(place: int) -> int:
        numbers = params[place : place + 8 * BLOCK].view(np.int64)
        return int(numbers.reshape(4, 2, LANES // 2)[lane // LANES, lane % 2, lane % LANES // 2])

    shift = params[BLOCK_SHIFT : BLOCK_SHIFT + 4 * BLOCK].view(np.int32)[lane]
    code = (acc * of(BLOCK_MULTIPLIER) + of(BLOCK_ROUNDING)) >> (LEAST_SHIFT + int(shift))
    return min(max(code, limits[0]), limits[1])


def _halves(builder: mk.Builder, vector: mk.Vector) -> tuple[mk.Vector, mk.Vector]:
    """Even and odd lanes of 16 x i32, each as 8 x i64 with its sign."""
    pairs = builder.bitcast(vector, mk.LONGS)
    bits = mk.constant(32, mk.LONGS)
    return builder.ashr(builder.shl(pairs, bits), bits), builder.ashr(pairs, bits)


def _upper(builder: mk.Builder, even: mk.Vector, odd: mk.Vector) -> mk.Vector:
    """16 x i32 of the high halves of even and of odd lanes."""
    one, other = builder.bitcast(even, mk.ACC), builder.bitcast(odd, mk.ACC)
    return mk.shuffled(
        builder, one, other, [lane for i in range(1, LANES, 2) for lane in (i, LANES + i)]
    )


def _signed(builder: mk.Builder, longs: mk.Vector) -> mk.Vector:
    """The same int32 numbers, so that LLVM sees they are, and multiplies 32 bits to 64."""
    bits = mk.constant(32, mk.LONGS)
    return builder.ashr(builder.shl(longs, bits), bits)


def _clipped(builder: mk.Builder, vector: mk.Vector, lo: mk.Vector, hi: mk.Vector) -> mk.Vector:
    for sign, limit in ((">", lo), ("<", hi)):
        vector = builder.select(builder.icmp_signed(sign, vector, limit), vector, limit)
    return vector


class _Limits:
    """Lowest and highest code, in lanes of 32 bits and of 8."""

    def __init__(self, builder: mk.Builder, lo: mk.Vector, hi: mk.Vector) -> None:
        self.wide = [mk.splat(builder, builder.trunc(n, mk.I32), mk.ACC) for n in (lo, hi)]
        self.narrow = [mk.splat(builder, builder.trunc(n, mk.I8), mk.BYTES) for n in (lo, hi)]


def _long(builder: mk.Builder, address: mk.Vector, place: int) -> mk.Vector:
    return mk.load(builder, mk.at(builder, address, place), mk.I64)


class _Numbers:
    """The numbers of 16 channels."""

    def __init__(self, builder: mk.Builder, params: mk.Vector) -> None:
        factors, self.rounding = (
            [mk.load(builder, mk.at(builder, params, place + 64 * odd), mk.LONGS) for odd in (0, 1)]
            for place in (MULTIPLIER, ROUNDING)
        )
        self.factors = [_signed(builder, factor) for factor in factors]
        self.shift = mk.load(builder, mk.at(builder, params, SHIFT), mk.ACC)

    def results(self, builder: mk.Builder, acc: mk.Vector) -> mk.Vector:
        """Codes before they are clipped."""
        products = [
            builder.add(builder.mul(half, factor), rounding)
            for half, factor, rounding in zip(
                _halves(builder, acc), self.factors, self.rounding, strict=True
            )
        ]
        return builder.ashr(_upper(builder, *products), self.shift)


class _Sum:
    """The numbers of a residual sum, the same for all channels."""

    def __init__(self, builder: mk.Builder, params: mk.Vector) -> None:
        self.low, self.high, self.less, self.more, self.shift = (
            mk.splat(builder, builder.trunc(_long(builder, params, place), mk.I32), mk.ACC)
            for place in (SUM_LOW, SUM_HIGH, SUM_LESS, SUM_MORE, SUM_SHIFT)
        )
        self.limits = _Limits(
            builder, _long(builder, params, SUM_LO), _long(builder, params, SUM_HI)
        )

    def results(self, builder: mk.Builder, own: mk.Vector, other: mk.Vector) -> mk.Vector:
        """Sums of two codes before they are clipped."""
        words = mk.ir.VectorType(mk.I16, 2 * LANES)
        both = builder.or_(own, builder.shl(other, mk.constant(_DIGIT, mk.ACC)))
        low, high = (
            mk.pair_sums(builder, *(builder.bitcast(v, words) for v in (both, digits)))
            for digits in (self.low, self.high)
        )
        carried = builder.ashr(builder.add(low, self.less), mk.constant(_DIGIT, mk.ACC))
        total = builder.add(builder.add(high, self.more), carried)
        return builder.ashr(total, self.shift)


def _narrowed(builder: mk.Builder, vectors: Sequence[mk.Vector], limits: _Limits) -> mk.Vector:
    """Four vectors of 16 x i32, clipped, as 64 bytes one vector after the other."""
    if "avx512bw" not in target.FEATURES:
        small = [
            builder.trunc(_clipped(builder, vector, *limits.wide), SMALL) for vector in vectors
        ]
        pairs = [mk.shuffled(builder, *small[i : i + 2], range(2 * LANES)) for i in (0, 2)]
        return mk.shuffled(builder, *pairs, range(4 * LANES))
    words = mk.ir.VectorType(mk.I16, 2 * LANES)
    halves = [
        mk.call(builder, "llvm.x86.avx512.packssdw.512", words, vectors[i : i + 2]) for i in (0, 2)
    ]
    packed = mk.call(builder, "llvm.x86.avx512.packuswb.512", mk.BYTES, halves)
    # Both instructions work on quarters: there are four codes of each vector in every quarter.
    fours = builder.bitcast(packed, mk.ACC)
    order = [4 * quarter + vector for vector in range(4) for quarter in range(4)]
    codes = builder.bitcast(mk.shuffled(builder, fours, fours, order), mk.BYTES)
    for sign, limit in zip((">", "<"), limits.narrow, strict=True):
        codes = builder.select(builder.icmp_unsigned(sign, codes, limit), codes, limit)
    return codes


def _place(builder: mk.Builder, places: mk.Vector, turn: mk.Vector, i: int = 0) -> mk.Vector:
    at = builder.add(places, builder.mul(turn, mk.number(8)))
    return mk.load(builder, mk.at(builder, at, 8 * i), mk.I64)


def _if_there(builder: mk.Builder, place: mk.Vector):
    return builder.if_then(builder.icmp_signed(">=", place, mk.number(0)), likely=True)


def _mask(builder: mk.Builder, count: mk.Vector) -> mk.Vector:
    """The first `count` of 16 lanes."""
    lanes = mk.ir.Constant(mk.ACC, list(range(LANES)))
    few = mk.splat(builder, builder.trunc(count, mk.I32), mk.ACC)
    return builder.icmp_signed("<", lanes, few)


def block_codes(
    builder: mk.Builder,
    sums: Sequence[mk.Vector],
    params: mk.Vector,
    lo: mk.Vector,
    hi: mk.Vector,
) -> mk.Vector:
    """64 codes of four vectors of accumulators, which have the bias in them, in ORDER.

    The upper half of a product is all that a shift of 32 or more leaves, so both halves of a vector
    are one again before they are shifted by the rest.
    """

    def number(place: int, kind: mk.Any) -> mk.Vector:
        return mk.load(builder, mk.at(builder, params, place), kind)

    bits = mk.constant(32, mk.LONGS)
    results: list[mk.Vector] = []
    for v, vector in enumerate(sums):
        products: list[mk.Vector] = []
        for odd, half in enumerate(_halves(builder, vector)):
            at = 128 * v + 64 * odd
            factor = number(BLOCK_MULTIPLIER + at, mk.LONGS)
            factor = builder.ashr(builder.shl(factor, bits), bits)
            product = builder.mul(half, factor)
            products.append(builder.add(product, number(BLOCK_ROUNDING + at, mk.LONGS)))
        upper = _upper(builder, *products)
        results.append(builder.ashr(upper, number(BLOCK_SHIFT + 64 * v, mk.ACC)))
    return _packed(builder, results, lo, hi)


def _packed(
    builder: mk.Builder, numbers: Sequence[mk.Vector], lo: mk.Vector, hi: mk.Vector
) -> mk.Vector:
    """Four vectors in ORDER as 64 bytes between the limits."""
    if not target.HAS_VNNI:
        limits = [mk.splat(builder, builder.trunc(limit, mk.I32), mk.ACC) for limit in (lo, hi)]
        small = mk.ir.VectorType(mk.I8, LANES)
        four = [builder.trunc(_clipped(builder, vector, *limits), small) for vector in numbers]
        halves = [mk.shuffled(builder, four[i], four[i + 1], range(2 * LANES)) for i in (0, 2)]
        return mk.shuffled(builder, *halves, np.argsort(ORDER.ravel()).tolist())
    words = mk.ir.VectorType(mk.I16, 2 * LANES)
    pairs = [
        mk.call(builder, "llvm.x86.avx512.packssdw.512", words, numbers[i : i + 2]) for i in (0, 2)
    ]
    codes = mk.call(builder, "llvm.x86.avx512.packuswb.512", mk.BYTES, pairs)
    for sign, limit in ((">", lo), ("<", hi)):
        edge = mk.splat(builder, builder.trunc(limit, mk.I8), mk.BYTES)
        codes = builder.select(builder.icmp_unsigned(sign, codes, edge), codes, edge)
    return codes


_TILE = ("acc", "stride", "rows", "places", "params", "lo", "hi", "y")
_SUM = ("addend", "sum_params")


def _blocks(vectors: int, *names: str) -> Callable[..., None]:
    """Microkernel for so many full vectors of channels, 1, 2 or 4; with _SUM a residual sum."""
    together = 4 // vectors
    """Rows that make four vectors."""

    @mk.microkernel(*_TILE, *names)
    def requantize(builder: mk.Builder, *values: mk.Vector) -> None:
        acc, stride, rows, places, params, lo, hi, y = values[:8]
        numbers = [
            _Numbers(builder, mk.at(builder, params, PARAMS_BYTES * v)) for v in range(vectors)
        ]
        limits = _Limits(builder, lo, hi)
        total = _Sum(builder, values[9]) if names else None

        def codes_of(row: mk.Vector, place: mk.Vector) -> list[mk.Vector]:
            found: list[mk.Vector] = []
            for v in range(vectors):
                sums = mk.load(builder, mk.at(builder, row, 64 * v), mk.ACC)
                result = numbers[v].results(builder, sums)
                if total is not None:
                    at = builder.add(values[8], mk.at(builder, place, LANES * v))
                    other = builder.zext(mk.load(builder, at, SMALL), mk.ACC)
                    own = _clipped(builder, result, *limits.wide)
                    result = total.results(builder, own, other)
                found.append(result)
            return found

        def body(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> list[mk.Vector]:
            first = builder.mul(turn, mk.number(together))
            found: list[mk.Vector] = []
            spots = [_place(builder, places, first, i) for i in range(together)]
            for i, place in enumerate(spots):
                row = builder.add(acc, builder.mul(mk.at(builder, first, i), stride))
                # What is read for a pixel that is left out is thrown away.
                there = builder.icmp_signed(">=", place, mk.number(0))
                found += codes_of(row, builder.select(there, place, mk.number(0)))
            codes = _narrowed(builder, found, limits if total is None else total.limits)
            width = LANES * vectors
            for i, place in enumerate(spots):
                part = mk.shuffled(builder, codes, codes, range(width * i, width * (i + 1)))
                with _if_there(builder, place):
                    mk.store(builder, part, builder.add(y, place))
            return []

        turns = builder.sdiv(mk.at(builder, rows, together - 1), mk.number(together))
        mk.loop(builder, turns, [], body)

    return requantize


requantize_16, requantize_32, requantize_64 = (_blocks(vectors) for vectors in (1, 2, 4))
add_16, add_32, add_64 = (_blocks(vectors, *_SUM) for vectors in (1, 2, 4))


@mk.microkernel(*_TILE, *_SUM, "count")
def requantize_few(builder: mk.Builder, *values: mk.Vector) -> None:
    """The first `count` of 16 channels; a residual sum where `addend` is not 0.

    The addend is read 16 codes at a time.
    """
    acc, stride, rows, places, params, lo, hi, y, addend, sum_params, count = values
    numbers, limits = _Numbers(builder, params), _Limits(builder, lo, hi)
    total = _Sum(builder, sum_params)
    mask = _mask(builder, count)
    alone = builder.icmp_signed("==", addend, mk.number(0))
    readable = builder.select(alone, y, addend)

    def body(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> list[mk.Vector]:
        place = _place(builder, places, turn)
        with _if_there(builder, place):
            sums = mk.load(builder, builder.add(acc, builder.mul(turn, stride)), mk.ACC)
            own = _clipped(builder, numbers.results(builder, sums), *limits.wide)
            other = mk.load(builder, builder.add(readable, place), SMALL)
            added = total.results(builder, own, builder.zext(other, mk.ACC))
            added = _clipped(builder, added, *total.limits.wide)
            codes = builder.trunc(builder.select(alone, own, added), SMALL)
            arguments = [
                codes,
                builder.inttoptr(builder.add(y, place), SMALL.as_pointer()),
                mk.ir.Constant(mk.I32, 1),
                mask,
            ]
            mk.call(builder, "llvm.masked.store.v16i8.p0", mk.ir.VoidType(), arguments)
        return []

    mk.loop(builder, rows, [], body)


@mk.microkernel("acc", "stride", "rows", "places", "params", "y", "count")
def write_sums(builder: mk.Builder, *values: mk.Vector) -> None:
    """Write acc[i] + bias, of the first `count` of 16 channels, to element places[i] ... of y, i32.

    The rest as in `requantize_few`.
    """
    acc, stride, rows, places, params, y, count = values
    bias, mask = mk.load(builder, params, mk.ACC), _mask(builder, count)

    def body(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> list[mk.Vector]:
        place = _place(builder, places, turn)
        with _if_there(builder, place):
            sums = mk.load(builder, builder.add(acc, builder.mul(turn, stride)), mk.ACC)
            to = builder.add(y, builder.mul(place, mk.number(4)))
            pointer = builder.inttoptr(to, mk.ACC.as_pointer())
            arguments = [builder.add(sums, bias), pointer, mk.ir.Constant(mk.I32, 1), mask]
            mk.call(builder, "llvm.masked.store.v16i32.p0", mk.ir.VoidType(), arguments)
        return []

    mk.loop(builder, rows, [], body)
