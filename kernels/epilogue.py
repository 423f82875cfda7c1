"""From accumulators of 16 channels to codes in y: bias, fixed point, the limits, a residual sum.

Convolutions leave a tile of accumulators [rows, >= 16] in scratch; what happens to them afterwards
is the same whatever made them. All numbers of 16 channels stand together in `consts`:
"""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import microkernel as mk

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]

LANES = mk.LANES
# Blocks of 64 bytes: bias i32 [16], then i64 [8] each of even and of odd channels.
BIAS, MULTIPLIER, ROUNDING, SHIFT = 0, 64, 192, 320
PARAMS_BYTES = 448
"""Of 16 channels."""
# i64 each: y = clip((code * MULTIPLIER_Y + addend * MULTIPLIER_B + rounding) >> shift, lo, hi)
SUM_MULTIPLIER_Y, SUM_MULTIPLIER_B, SUM_ROUNDING, SUM_SHIFT, SUM_LO, SUM_HI = range(0, 48, 8)
SUM_BYTES = 48


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


def _mask(builder: mk.Builder, count: mk.Vector) -> mk.Vector:
    """The first `count` of 16 lanes."""
    lanes = mk.ir.Constant(mk.ACC, list(range(LANES)))
    few = mk.splat(builder, builder.trunc(count, mk.I32), mk.ACC)
    return builder.icmp_signed("<", lanes, few)


def _write(builder: mk.Builder, codes: mk.Vector, address: mk.Vector, count: mk.Vector) -> None:
    """Store the first `count` codes of a vector."""
    small = mk.ir.VectorType(mk.I8, LANES)
    kind = small.as_pointer()
    arguments = [
        builder.trunc(codes, small),
        builder.inttoptr(address, kind),
        mk.ir.Constant(mk.I32, 1),
        _mask(builder, count),
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


@mk.microkernel("acc", "stride", "rows", "places", "params", "y", "count")
def write_sums(builder: mk.Builder, *values: mk.Vector) -> None:
    """Write acc[i] + bias, of the first `count` of 16 channels, to element places[i] ... of y, i32.

    The rest as in `requantize_rows`.
    """
    acc, stride, rows, places, params, y, count = values
    bias, mask = mk.load(builder, params, mk.ACC), _mask(builder, count)

    def body(builder: mk.Builder, turn: mk.Vector, _: Sequence[mk.Vector]) -> list[mk.Vector]:
        place = mk.load(builder, builder.add(places, builder.mul(turn, mk.number(8))), mk.I64)
        with builder.if_then(builder.icmp_signed(">=", place, mk.number(0)), likely=True):
            sums = mk.load(builder, builder.add(acc, builder.mul(turn, stride)), mk.ACC)
            to = builder.add(y, builder.mul(place, mk.number(4)))
            pointer = builder.inttoptr(to, mk.ACC.as_pointer())
            arguments = [builder.add(sums, bias), pointer, mk.ir.Constant(mk.I32, 1), mask]
            mk.call(builder, "llvm.masked.store.v16i32.p0", mk.ir.VoidType(), arguments)
        return []

    mk.loop(builder, rows, [], body)
