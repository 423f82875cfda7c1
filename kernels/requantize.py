"""Accumulators to codes, in integers only: the three forms, one for each group of 16 channels.

Which form a group has was decided and proved elsewhere (requant.py); here it is only carried out.
Kernels with a requantization keep its numbers at the same places of their row, the constants below.
Codes are stored ones: LO, HI and ZERO lie in 0 .. 255, and so does what is written.

Versions tried (96 channels, one thread of a Xeon 2.6 GHz with AVX-512, 2026-11), ns a channel:
    INT64 with branches and a loop for the number of bits     11.4
    INT64 without branches, vectorised                         2.5
"""

import math

import numpy as np
import numpy.typing as npt

from onnxptq.kernels.jit import lean_jit

U8 = npt.NDArray[np.uint8]
I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

ROW = 64
"""Length of a row: its first number is the kernel's, the kernel's columns follow."""
GROUP = 16
"""Channels that share a form."""
FIXED_POINT, THRESHOLDS_FORM, INT64 = range(3)

REQUANT_COLUMNS = (
    "form",  # u8 [G], offset in consts as all but the last four; absent arrays have -1
    "multiplier",  # i32 [C]
    "rounding",  # i64 [C]
    "shift",  # i64 [C], 0 .. 62
    "mantissa",  # i32 [C], scale = mantissa * 2^exponent, mantissa 0 .. 2^24 - 1
    "exponent",  # i64 [C]
    "thresholds",  # i32 [C, steps]
    "steps",
    "lo",
    "hi",
    "zero",
)
FORM, MULTIPLIER, ROUNDING, SHIFT, MANTISSA, EXPONENT, THRESHOLDS, STEPS, LO, HI, ZERO = range(
    48, 48 + len(REQUANT_COLUMNS)
)


def requantize_row_naive(
    acc: I32, first: int, count: int, out: U8, start: int, step: int, row: I64, consts: U8
) -> None:
    """Specification of `requantize_row`; the INT64 form is onnxruntime's formula in float32."""
    r = [int(number) for number in row]
    for i in range(count):
        c, a = first + i, int(acc[i])
        form = int(consts[r[FORM] + c // GROUP])
        if form == FIXED_POINT:
            multiplier = int(_number(consts, r[MULTIPLIER], c, np.int32))
            rounding = int(_number(consts, r[ROUNDING], c, np.int64))
            shift = int(_number(consts, r[SHIFT], c, np.int64))
            code = min(max((a * multiplier + rounding) >> shift, r[LO]), r[HI])
        elif form == THRESHOLDS_FORM:
            steps = range(c * r[STEPS], (c + 1) * r[STEPS])
            code = r[LO] + sum(a >= _number(consts, r[THRESHOLDS], t, np.int32) for t in steps)
        else:
            mantissa = int(_number(consts, r[MANTISSA], c, np.int32))
            exponent = int(_number(consts, r[EXPONENT], c, np.int64))
            with np.errstate(over="ignore", under="ignore"):
                real = np.float32(a) * np.float32(math.ldexp(mantissa, exponent))
            real = min(max(real, np.float32(r[LO] - r[ZERO])), np.float32(r[HI] - r[ZERO]))
            code = int(np.rint(real)) + r[ZERO]
        out[start + i * step] = code


def _number(consts: U8, offset: int, i: int, dtype: type[np.signedinteger]) -> np.signedinteger:
    """Number `i` of an array in `consts`."""
    size = np.dtype(dtype).itemsize
    return consts[offset + i * size : offset + (i + 1) * size].view(dtype)[0]


@lean_jit
def requantize_row(
    acc: I32, first: int, count: int, out: U8, start: int, step: int, row: I64, consts: U8
) -> None:
    """Write the codes of channels first .. first + count - 1 of one pixel.

    Args:
        acc: Accumulators, acc[i] that of channel first + i.
        first: First channel, anywhere in a group.
        count: How many channels, at least 0.
        out: Codes; channel first + i is written to out[start + i * step].
        start: Where the first channel goes.
        step: Distance of two channels in `out`, at least 1.
        row: Holds the columns from 48 on, [64].
        consts: Where the arrays are.
    """
    begin = 0
    while begin < count:
        form = consts[row[FORM] + (first + begin) // GROUP]
        end = begin + GROUP - (first + begin) % GROUP
        while end < count and consts[row[FORM] + (first + end) // GROUP] == form:
            end += GROUP
        end = min(end, count)
        run, place = acc[begin:end], start + begin * step
        if form == FIXED_POINT:
            _fixed_point(run, first + begin, out, place, step, row, consts)
        elif form == THRESHOLDS_FORM:
            _thresholds(run, first + begin, out, place, step, row, consts)
        else:
            _float_emulated(run, first + begin, out, place, step, row, consts)
        begin = end


@lean_jit
def _fixed_point(
    acc: I32, first: int, out: U8, start: int, step: int, row: I64, consts: U8
) -> None:
    """FIXED_POINT on a run of channels."""
    count, lo, hi = acc.size, row[LO], row[HI]
    at = row[MULTIPLIER] + 4 * first
    multiplier = consts[at : at + 4 * count].view(np.int32)
    at = row[ROUNDING] + 8 * first
    rounding = consts[at : at + 8 * count].view(np.int64)
    at = row[SHIFT] + 8 * first
    shift = consts[at : at + 8 * count].view(np.int64)
    if step == 1:
        codes = out[start : start + count]  # the loop over these is the one that vectorises
        for i in range(count):
            codes[i] = fixed_point(acc[i], multiplier[i], rounding[i], shift[i], lo, hi)
    else:
        for i in range(count):
            code = fixed_point(acc[i], multiplier[i], rounding[i], shift[i], lo, hi)
            out[start + i * step] = code


@lean_jit
def fixed_point(
    acc: np.int32, multiplier: np.int32, rounding: int, shift: int, lo: int, hi: int
) -> np.uint8:
    """clip((acc * multiplier + rounding) >> shift, lo, hi)."""
    code = (np.int64(acc) * np.int64(multiplier) + rounding) >> shift
    return np.uint8(min(max(code, lo), hi))


@lean_jit
def _thresholds(acc: I32, first: int, out: U8, start: int, step: int, row: I64, consts: U8) -> None:
    """THRESHOLDS on a run of channels: the lowest code plus the number of thresholds reached."""
    steps = row[STEPS]
    at = row[THRESHOLDS] + 4 * steps * first
    thresholds = consts[at : at + 4 * steps * acc.size].view(np.int32)
    for i in range(acc.size):
        reached = np.int32(0)
        for threshold in thresholds[i * steps : (i + 1) * steps]:
            reached = np.int32(reached + np.int32(acc[i] >= threshold))
        out[start + i * step] = np.uint8(row[LO] + reached)


@lean_jit
def _float_emulated(
    acc: I32, first: int, out: U8, start: int, step: int, row: I64, consts: U8
) -> None:
    """INT64 on a run of channels."""
    count, zero = acc.size, row[ZERO]
    lo, hi = row[LO] - zero, row[HI] - zero
    at = row[MANTISSA] + 4 * first
    mantissa = consts[at : at + 4 * count].view(np.int32)
    at = row[EXPONENT] + 8 * first
    exponent = consts[at : at + 8 * count].view(np.int64)
    if step == 1:
        codes = out[start : start + count]
        for i in range(count):
            codes[i] = np.uint8(float_emulated(acc[i], mantissa[i], exponent[i], lo, hi) + zero)
    else:
        for i in range(count):
            code = float_emulated(acc[i], mantissa[i], exponent[i], lo, hi) + zero
            out[start + i * step] = np.uint8(code)


@lean_jit
def float_emulated(acc: np.int32, mantissa: np.int32, exponent: int, lo: int, hi: int) -> int:
    """rint(clip(float32(acc) * scale, lo, hi)) on int64, without branches, so that it vectorises.

    Three roundings, half to even: of acc to 24 bits, of the product to 24 bits, to an integer. The
    clamp commutes with the last because its ends are integers. Products that float32 would hold as
    subnormals become 0 and infinities are clamped whatever their bits, so they need no case.

    Args:
        acc: Accumulator.
        mantissa: 2^23 .. 2^24 - 1; or less, if the scale is 0 or subnormal.
        exponent: scale = mantissa * 2^exponent.
        lo: Lowest code less the zero point.
        hi: Highest code less the zero point.

    Source:
        onnxruntime/core/mlas/lib/quantize.cpp, MlasRequantizeOutput.
    """
    sign = np.int64(acc) >> 31
    size = (np.int64(acc) ^ sign) - sign
    bits = _bits(size)
    excess = max(bits - 24, 0)
    size = _rounded(size, excess) << excess  # float32(acc), at most 2^32: the product is exact
    product = size * np.int64(mantissa)
    # A full mantissa makes it bits + 23 or bits + 24 bits long, and 24 of them stay.
    excess = max(bits - 1 + (product >> (bits + 23) > 0), 0)
    product = _rounded(product, excess)
    power = exponent + excess  # float32(acc) * scale = product * 2^power
    # Beyond 2^30 all is clamped, below 2^-40 all is 0: no shift has to be longer.
    real = _rounded(product << max(min(power, 30), 0), max(min(-power, 40), 0))
    return min(max((real ^ sign) - sign, lo), hi)


@lean_jit
def _rounded(number: int, bits: int) -> int:
    """The quotient number / 2^bits to the nearest integer, half to even; number >= 0, bits >= 0."""
    # Adding just less than half, plus one if the result would be odd, carries exactly when due.
    odd = (number >> bits) & 1
    half = (np.int64(1) << bits) >> 1
    return (number + max(half - 1 + odd, 0)) >> bits


@lean_jit
def _bits(number: int) -> int:
    """How many bits `number` has, 0 for 0; 0 <= number < 2^32."""
    bits = np.int64(0)
    for half in (16, 8, 4, 2, 1):
        more = half if number >> half > 0 else 0
        bits += more
        number >>= more
    return bits + number
