"""Requant: accumulator to code in integers only, proved equal to onnxruntime's float32 formula.

The formula is a staircase that only rises with the accumulator: it is known once the smallest
accumulator of each code is. So equality on all accumulators of a range is two integer comparisons
a step: the form has reached the code at the step, and has not one accumulator before it.
"""

import enum
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxptq.errors import ProgramError
from onnxptq.fixed_point import find_fixed_point, prove_fixed_point
from onnxptq.formulas import BoolArray, IntArray
from onnxptq.quant import F32, I32
from onnxptq.staircase import I64, INT32_MAX, INT32_MIN, Steps, parts, steps_inside, thresholds

GROUP = 16
"""Channels that share a form: the int32 lanes of a 512-bit vector."""

MOST_THRESHOLDS = 15
"""More comparisons than this cost more than the emulation of the float formula."""


class Form(enum.IntEnum):
    """How a group of channels turns accumulators into codes."""

    FIXED_POINT = 0
    THRESHOLDS = 1
    INT64 = 2


@dataclass(frozen=True, slots=True, eq=False)
class Requant:
    """Accumulator to code, C channels in groups of `GROUP`.

    Attributes:
        scale: The float32 scale of `formulas.requantized` that it stands for, [C], >= 0. INT64
            needs nothing else: mantissa and exponent are in its bits.
        zero_point: Of the output.
        lo: Lowest code of the output: of the container, or of a fused Clip.
        hi: Highest code.
        form: `Form` of each group, [G].
        multiplier: FIXED_POINT: clip((acc * multiplier + rounding) >> shift, lo, hi), [C], >= 0.
        rounding: The zero point is in it, [C].
        shift: 0 to `MOST_SHIFT`, [C].
        thresholds: THRESHOLDS: lo + sum(acc >= thresholds[c]), [C, hi - lo]; [C, 0] if no group
            uses them. Codes out of reach have INT32_MAX.
        proved: Equal to the formula on all accumulators of the channel's range, [C].
    """

    scale: F32
    zero_point: int
    lo: int
    hi: int
    form: npt.NDArray[np.int8]
    multiplier: I32
    rounding: I64
    shift: I32
    thresholds: I32
    proved: BoolArray


def find(
    scale: F32,
    zero_point: int,
    lo: int,
    hi: int,
    acc_lo: npt.ArrayLike,
    acc_hi: npt.ArrayLike,
) -> Requant:
    """The cheapest form of each group of channels that equals the float formula.

    FIXED_POINT where it is proved for all channels of a group, else THRESHOLDS where the range has
    no more than 16 codes, else INT64, which is always exact.

    Args:
        scale: float32 scales, [C]; finite, and 0 only where a product of tiny ones underflowed.
        zero_point: Of the output.
        lo: Lowest code of the output.
        hi: Highest code.
        acc_lo: Lowest accumulator that can occur, [C] or [].
        acc_hi: Highest one.

    Raises:
        ProgramError: A scale is not a positive number, or an accumulator range is not in int32.
    """
    scale = np.ascontiguousarray(scale, np.float32)
    low, high = _ranges(scale, acc_lo, acc_hi)
    _check(scale, lo, hi, low, high)
    channels = scale.size
    multiplier, shift = np.zeros(channels, np.int32), np.zeros(channels, np.int32)
    rounding, fixed = np.zeros(channels, np.int64), np.zeros(channels, np.bool_)
    few = hi - lo <= MOST_THRESHOLDS
    table = np.zeros((channels, hi - lo if few else 0), np.int32)
    counted = np.full(channels, few)
    for part in parts(channels, hi - lo):
        steps = steps_inside(thresholds(scale[part], zero_point, lo, hi), lo, low[part], high[part])
        found = find_fixed_point(steps, scale[part].astype(np.float64))
        multiplier[part], rounding[part], shift[part] = found
        fixed[part] = prove_fixed_point(steps, *found)
        if few:
            table[part] = np.clip(steps.thresholds, INT32_MIN, INT32_MAX)
            counted[part] = _counts_hold(steps, table[part])
    form = _forms(fixed, counted)
    if not (form == Form.THRESHOLDS).any():
        table = table[:, :0]
    each = np.repeat(form, GROUP)[:channels]
    proved = np.select(
        [each == Form.FIXED_POINT, each == Form.THRESHOLDS], [fixed, counted], default=True
    )
    return Requant(
        scale, zero_point, lo, hi, form, multiplier, rounding, shift, table, proved.astype(np.bool_)
    )


def prove(requant: Requant, acc_lo: npt.ArrayLike, acc_hi: npt.ArrayLike) -> BoolArray:
    """Whether each channel equals the float formula on all accumulators of its range, [C].

    Nothing but the form itself is looked at, not how it was found. INT64 has no numbers of its own
    that could be wrong.
    """
    low, high = _ranges(requant.scale, acc_lo, acc_hi)
    each = np.repeat(requant.form, GROUP)[: requant.scale.size]
    proved = np.ones(requant.scale.size, np.bool_)
    for part in parts(requant.scale.size, requant.hi - requant.lo):
        exact = thresholds(requant.scale[part], requant.zero_point, requant.lo, requant.hi)
        steps = steps_inside(exact, requant.lo, low[part], high[part])
        numbers = (requant.multiplier[part], requant.rounding[part], requant.shift[part])
        fixed = prove_fixed_point(steps, *numbers)
        counted = _counts_hold(steps, requant.thresholds[part])
        proved[part] = np.select(
            [each[part] == Form.FIXED_POINT, each[part] == Form.THRESHOLDS],
            [fixed, counted],
            default=True,
        )
    return proved


def provable(
    scale: F32,
    zero_point: int,
    lo: int,
    hi: int,
    acc_lo: npt.ArrayLike = INT32_MIN,
    acc_hi: npt.ArrayLike = INT32_MAX,
) -> BoolArray:
    """Whether a fixed-point form equals the float formula on a range of accumulators, [C]."""
    scale = np.ascontiguousarray(scale, np.float32)
    low, high = _ranges(scale, acc_lo, acc_hi)
    _check(scale, lo, hi, low, high)
    holds = np.zeros(scale.size, np.bool_)
    for part in parts(scale.size, hi - lo):
        steps = steps_inside(thresholds(scale[part], zero_point, lo, hi), lo, low[part], high[part])
        found = find_fixed_point(steps, scale[part].astype(np.float64))
        holds[part] = prove_fixed_point(steps, *found)
    return holds


def apply(requant: Requant, acc: IntArray) -> I32:
    """Run the integer forms in numpy.

    Args:
        requant: The forms.
        acc: int32 accumulators, [..., C].

    Returns:
        Codes, shape of `acc`.
    """
    wide = np.asarray(acc, np.int64)
    codes = np.empty(wide.shape, np.int32)
    each = np.repeat(requant.form, GROUP)[: requant.scale.size]
    for form, run in _RUN.items():
        chosen = np.flatnonzero(each == form)
        if chosen.size:
            codes[..., chosen] = run(requant, wide[..., chosen], chosen)
    return codes


def _counts_hold(steps: Steps, table: I32) -> BoolArray:
    """The proof of thresholds: each has as many accumulators of the range above it as it should."""
    if table.shape[1] != steps.thresholds.shape[1]:
        return np.zeros(steps.low.shape, np.bool_)
    low, high = steps.low[:, None], steps.high[:, None] + 1
    mine = np.clip(np.sort(table.astype(np.int64), axis=1), low, high)
    return (mine == np.clip(steps.thresholds, low, high)).all(axis=1)


def _forms(fixed: BoolArray, counted: BoolArray) -> npt.NDArray[np.int8]:
    starts = np.arange(0, fixed.size, GROUP)
    if starts.size == 0:
        return np.zeros(0, np.int8)
    all_fixed = np.logical_and.reduceat(fixed, starts)
    all_counted = np.logical_and.reduceat(counted, starts)
    other = np.where(all_counted, Form.THRESHOLDS, Form.INT64)
    return np.where(all_fixed, Form.FIXED_POINT, other).astype(np.int8)


def _run_fixed_point(requant: Requant, acc: I64, chosen: npt.NDArray[np.intp]) -> I64:
    product = acc * requant.multiplier[chosen] + requant.rounding[chosen]
    return np.clip(product >> requant.shift[chosen].astype(np.int64), requant.lo, requant.hi)


def _run_thresholds(requant: Requant, acc: I64, chosen: npt.NDArray[np.intp]) -> I64:
    passed = (acc[..., None] >= requant.thresholds[chosen]).sum(axis=-1, dtype=np.int64)
    return requant.lo + passed


def _run_int64(requant: Requant, acc: I64, chosen: npt.NDArray[np.intp]) -> I64:
    """cvtdq2ps, mulps, clamp, cvtps2dq on int64: three roundings half to even."""
    mantissa, exponent = split_scale(requant.scale[chosen])
    size = np.abs(acc)
    size, acc_exponent = _to_24_bits(size)
    product, more = _to_24_bits(size * mantissa)
    exponent = exponent + acc_exponent + more
    # Below 2^9 no code is out of reach for certain; beyond it only the clamp matters.
    far = (_bit_length(product) + exponent > 10) & (product > 0)
    left = np.where(far, 0, np.clip(exponent, 0, 10))
    right = np.clip(-exponent, 0, 62)
    steps = np.where(far, 1 << 10, _half_to_even(product, right) << left)
    codes = np.where(acc < 0, -steps, steps) + requant.zero_point
    return np.clip(codes, requant.lo, requant.hi)


_RUN = {
    Form.FIXED_POINT: _run_fixed_point,
    Form.THRESHOLDS: _run_thresholds,
    Form.INT64: _run_int64,
}


def split_scale(scale: F32) -> tuple[I64, I64]:
    """Mantissa below 2^24 and exponent of float32 numbers: scale = mantissa * 2^exponent."""
    bits = np.ascontiguousarray(scale, np.float32).view(np.int32).astype(np.int64)
    field = bits >> 23 & 0xFF
    fraction = bits & 0x7FFFFF
    normal = field > 0
    return np.where(normal, fraction | 0x800000, fraction), np.where(normal, field, 1) - 150


def _to_24_bits(x: I64) -> tuple[I64, I64]:
    """The nearest float32, ties to even, as an integer and the power of two it is to be times."""
    excess = np.maximum(_bit_length(x) - 24, 0)
    return _half_to_even(x, excess), excess


def _half_to_even(x: I64, places: I64) -> I64:
    """Divide x >= 0 by 2^places and round half to even."""
    whole = x >> places
    rest = x - (whole << places)
    half = (np.int64(1) << places) >> 1
    up = (rest > half) | ((rest == half) & (places > 0) & (whole & 1 == 1))
    return whole + up


def _bit_length(x: I64) -> I64:
    for places in (1, 2, 4, 8, 16, 32):
        x = x | x >> places
    return np.bitwise_count(x).astype(np.int64)


def _ranges(scale: F32, acc_lo: npt.ArrayLike, acc_hi: npt.ArrayLike) -> tuple[I64, I64]:
    low = np.broadcast_to(np.asarray(acc_lo, np.int64), scale.shape)
    high = np.broadcast_to(np.asarray(acc_hi, np.int64), scale.shape)
    return np.ascontiguousarray(low), np.ascontiguousarray(high)


def _check(scale: F32, lo: int, hi: int, low: I64, high: I64) -> None:
    usable = np.isfinite(scale) & (scale >= 0)
    if not usable.all():
        raise ProgramError(
            f"requantization scale {scale[~usable][0]} is not a positive number; mend the scales "
            "that it is made of"
        )
    if lo > hi:
        raise ProgramError(f"codes {lo} to {hi} are no range")
    outside = (low < INT32_MIN) | (high > INT32_MAX) | (low > high)
    if outside.any():
        worst = int(np.flatnonzero(outside)[0])
        raise ProgramError(
            f"channel {worst}: accumulators {low[worst]} to {high[worst]} are no int32 range; "
            "use fewer bits for its weights"
        )
