"""From accumulators of 16 channels to codes in y: bias, fixed point, the limits, a residual sum.

Convolutions leave a tile of accumulators [rows, >= 16] in scratch; what happens to them afterwards
is the same whatever made them. All numbers of 16 channels stand together in `consts`, as do those
of a block of 64 channels, whose accumulators are in registers and make one vector of codes.
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
# Blocks of 64 bytes: bias i32 [16], then i64 [8] each of even and of odd channels.
BIAS, MULTIPLIER, ROUNDING, SHIFT = 0, 64, 192, 320
PARAMS_BYTES = 448
"""Of 16 channels."""
# i64 each: y = clip((code * MULTIPLIER_Y + addend * MULTIPLIER_B + rounding) >> shift, lo, hi)
SUM_MULTIPLIER_Y, SUM_MULTIPLIER_B, SUM_ROUNDING, SUM_SHIFT, SUM_LO, SUM_HI = range(0, 48, 8)
SUM_BYTES = 48

BLOCK = 64
"""Channels whose codes are one vector."""
ORDER = np.arange(BLOCK).reshape(4, 4, 4).transpose(1, 0, 2).reshape(4, LANES)
"""Channel of each lane of four vectors, [4, 16]: packing to bytes within each 16 bytes sorts."""
# Of a block: bias i32, multiplier i64 (even, then odd lanes), rounding likewise, shift less 32 i32;
# each for one vector after the other.
BLOCK_BIAS, BLOCK_MULTIPLIER, BLOCK_ROUNDING, BLOCK_SHIFT = 0, 256, 768, 1280
BLOCK_PARAMS_BYTES = 1536
LEAST_BLOCK_SHIFT = 32


def params_of(
    bias: npt.NDArray[np.int32],
    multiplier: npt.NDArray[np.int32],
    rounding: I64,
    shift: I64,
) -> U8:
    """The numbers of C channels as `requantize_rows` reads them, [ceil(C / 16) * PARAMS_BYTES].

    Channels that are added to make groups of 16 full have zeros.
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
    for place, numbers in ((MULTIPLIER, multiplier), (ROUNDING, rounding), (SHIFT, shift)):
        pairs = full(numbers).reshape(groups, LANES // 2, 2)
        put(place, np.ascontiguousarray(pairs.transpose(0, 2, 1)))
    return block.ravel()


def code_naive(params: U8, lane: int, acc: int, limits: tuple[int, int]) -> int:
    """Specification of how a lane of `requantize_rows` makes a code.

    Args:
        params: Of 16 channels.
        lane: Which of them.
        acc: The accumulator, to which the bias has been added.
        limits: Lowest and highest code.
    """

    def of(place: int) -> int:
        numbers = params[place : place + 8 * LANES].view(np.int64)
        return int(numbers.reshape(2, LANES // 2)[lane % 2, lane // 2])

    return min(max((acc * of(MULTIPLIER) + of(ROUNDING)) >> of(SHIFT), limits[0]), limits[1])


def sum_naive(numbers: I64, code: int, addend: int) -> int:
    """Specification of how a lane of `requantize_sums` adds a code to its own; numbers are i64."""
    multiplier_y, multiplier_b, rounding, shift, lo, hi = numbers.tolist()
    total = code * multiplier_y + addend * multiplier_b + rounding
    return min(max(total >> shift, lo), hi)


def block_params_of(bias: I32, multiplier: I32, rounding: I64, shift: I64) -> U8:
    """The numbers of 64 channels as `block_codes` reads them; a shift below 32 counts as 32."""
    pairs = [
        numbers.astype(np.int64)[ORDER].reshape(-1, LANES // 2, 2).transpose(0, 2, 1)
        for numbers in (multiplier, rounding)
    ]
    rest = np.maximum(shift - LEAST_BLOCK_SHIFT, 0)
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
    code = (acc * of(BLOCK_MULTIPLIER) + of(BLOCK_ROUNDING)) >> (LEAST_BLOCK_SHIFT + int(shift))
    return min(max(code, limits[0]), limits[1])


def _halves(builder: mk.Builder, vector: mk.Vector) -> tuple[mk.Vector, mk.Vector]:
    """Even and odd lanes of 16 x i32, each as 8 x i64 with its sign."""
    pairs = builder.bitcast(vector, mk.LONGS)
    bits = mk.constant(32, mk.LONGS)
    return builder.ashr(builder.shl(pairs, bits), bits), builder.ashr(pairs, bits)


def _whole(builder: mk.Builder, even: mk.Vector, odd: mk.Vector) -> mk.Vector:
    """16 x i32 of the low halves of even and odd lanes."""
    one, other = builder.bitcast(even, mk.ACC), builder.bitcast(odd, mk.ACC)
    lanes = [lane for i in range(0, LANES, 2) for lane in (i, LANES + i)]
    return mk.shuffled(builder, one, other, lanes)


def _clipped(builder: mk.Builder, vector: mk.Vector, lo: mk.Vector, hi: mk.Vector) -> mk.Vector:
    for sign, limit in ((">", lo), ("<", hi)):
        vector = builder.select(builder.icmp_signed(sign, vector, limit), vector, limit)
    return vector


class _Numbers:
    """The vectors that stay the same for all rows."""

    def __init__(self, builder: mk.Builder, params: mk.Vector, lo: mk.Vector, hi: mk.Vector):
        self.bias = mk.load(builder, params, mk.ACC)
        self.pairs = [
            [mk.load(builder, mk.at(builder, params, place + 64 * odd), mk.LONGS) for odd in (0, 1)]
            for place in (MULTIPLIER, ROUNDING, SHIFT)
        ]
        bits = mk.constant(32, mk.LONGS)
        # LLVM sees that these are int32, and multiplies 32 bits to 64.
        self.pairs[0] = [builder.ashr(builder.shl(m, bits), bits) for m in self.pairs[0]]
        self.lo, self.hi = (
            mk.splat(builder, builder.trunc(limit, mk.I32), mk.ACC) for limit in (lo, hi)
        )

    def codes(self, builder: mk.Builder, acc: mk.Vector) -> mk.Vector:
        halves = _halves(builder, builder.add(acc, self.bias))
        results = [
            builder.ashr(builder.add(builder.mul(half, multiplier), rounding), shift)
            for half, multiplier, rounding, shift in zip(halves, *self.pairs, strict=True)
        ]
        return _clipped(builder, _whole(builder, *results), self.lo, self.hi)


class _Sum:
    """The numbers of a residual sum, the same for all channels and rows."""

    def __init__(self, builder: mk.Builder, params: mk.Vector):
        def long(place: int) -> mk.Vector:
            return mk.load(builder, mk.at(builder, params, place), mk.I64)

        bits = mk.constant(32, mk.LONGS)
        self.factors = [
            builder.ashr(builder.shl(mk.splat(builder, long(place), mk.LONGS), bits), bits)
            for place in (SUM_MULTIPLIER_Y, SUM_MULTIPLIER_B)
        ]
        self.rounding, self.shift = (
            mk.splat(builder, long(place), mk.LONGS) for place in (SUM_ROUNDING, SUM_SHIFT)
        )
        self.lo, self.hi = (
            mk.splat(builder, builder.trunc(long(place), mk.I32), mk.ACC)
            for place in (SUM_LO, SUM_HI)
        )

    def codes(self, builder: mk.Builder, own: mk.Vector, other: mk.Vector) -> mk.Vector:
        results: list[mk.Vector] = []
        for one, two in zip(_halves(builder, own), _halves(builder, other), strict=True):
            total = builder.add(
                builder.mul(one, self.factors[0]), builder.mul(two, self.factors[1])
            )
            results.append(builder.ashr(builder.add(total, self.rounding), self.shift))
        return _clipped(builder, _whole(builder, *results), self.lo, self.hi)


def _write(builder: mk.Builder, codes: mk.Vector, address: mk.Vector, count: mk.Vector) -> None:
    """Store the first `count` codes of a vector."""
    lanes = mk.ir.Constant(mk.ACC, list(range(LANES)))
    few = mk.splat(builder, builder.trunc(count, mk.I32), mk.ACC)
    mask = builder.icmp_signed("<", lanes, few)
    small = mk.ir.VectorType(mk.I8, LANES)
    kind = small.as_pointer()
    arguments = [
        builder.trunc(codes, small),
        builder.inttoptr(address, kind),
        mk.ir.Constant(mk.I32, 1),
        mask,
    ]
    mk.call(builder, "llvm.masked.store.v16i8.p0", mk.ir.VoidType(), arguments)


def _rows(
    builder: mk.Builder,
    sizes: Sequence[mk.Vector],
    numbers: _Numbers,
    write: Callable[[mk.Vector, mk.Vector], None],
) -> None:
    """Walk over the rows of a tile; rows whose place is negative are left out."""
    acc, stride, rows, places = sizes

    def body(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> list[mk.Vector]:
        place = mk.load(builder, builder.add(places, builder.mul(turn, mk.number(8))), mk.I64)
        with builder.if_then(builder.icmp_signed(">=", place, mk.number(0)), likely=True):
            sums = mk.load(builder, builder.add(acc, builder.mul(turn, stride)), mk.ACC)
            write(numbers.codes(builder, sums), place)
        return []

    mk.loop(builder, rows, [], body)


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
        even, odd = (builder.bitcast(product, mk.ACC) for product in products)
        lanes = [lane for i in range(1, LANES, 2) for lane in (i, LANES + i)]
        upper = mk.shuffled(builder, even, odd, lanes)
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


@mk.microkernel(*_TILE)
def requantize_rows(builder: mk.Builder, *values: mk.Vector) -> None:
    """y[places[i] ...+15] = codes of acc[i], for each row i of a tile; 16 channels.

    acc: address of i32 [rows, 16], `stride` bytes apart. places: address of i64 [rows], offsets in
    bytes from y; negative ones are left out. params: address of PARAMS_BYTES.
    """
    *sizes, params, lo, hi, y = values
    numbers = _Numbers(builder, params, lo, hi)

    def write(codes: mk.Vector, place: mk.Vector) -> None:
        small = mk.ir.VectorType(mk.I8, LANES)
        mk.store(builder, builder.trunc(codes, small), builder.add(y, place))

    _rows(builder, sizes, numbers, write)


@mk.microkernel(*_TILE, "count")
def requantize_few(builder: mk.Builder, *values: mk.Vector) -> None:
    """`requantize_rows` for the first `count` of 16 channels."""
    *sizes, params, lo, hi, y, count = values
    numbers = _Numbers(builder, params, lo, hi)

    def write(codes: mk.Vector, place: mk.Vector) -> None:
        _write(builder, codes, builder.add(y, place), count)

    _rows(builder, sizes, numbers, write)


@mk.microkernel(*_TILE, "addend", "sum_params", "count")
def requantize_sums(builder: mk.Builder, *values: mk.Vector) -> None:
    """`requantize_few`, whose codes are then added to those at the same places from `addend`.

    sum_params: address of SUM_BYTES. The addend is read 16 codes at a time, also where count < 16.
    """
    *sizes, params, lo, hi, y, addend, sum_params, count = values
    numbers, total = _Numbers(builder, params, lo, hi), _Sum(builder, sum_params)

    def write(codes: mk.Vector, place: mk.Vector) -> None:
        small = mk.ir.VectorType(mk.I8, LANES)
        other = mk.load(builder, builder.add(addend, place), small)
        summed = total.codes(builder, codes, builder.zext(other, mk.ACC))
        _write(builder, summed, builder.add(y, place), count)

    _rows(builder, sizes, numbers, write)
