"""Fixed point: code = (acc * multiplier + rounding) >> shift, found and proved step by step."""

import numpy as np
import numpy.typing as npt

from onnxptq.formulas import BoolArray
from onnxptq.quant import I32
from onnxptq.staircase import I64, INT32_MAX, Steps

F64 = npt.NDArray[np.float64]

MOST_SHIFT = 54
"""Keeps |zero_point << shift| and |acc * multiplier| below 2^62 each, so that int64 holds both."""

_STEEPEST = 2.0**16
"""From here on one accumulator more leaves every code range; a steeper slope changes nothing."""
_CONSTANT_SHIFT = 32
_SPREAD = 2.0**-10
_MOST_CUTS = 24
_WIDE_GAP = 2.0**-20


def find_fixed_point(steps: Steps, scale: F64) -> tuple[I32, I64, I32]:
    """Multiplier, rounding and shift of each channel, [n]: exact ones wherever there are any.

    The scale itself is tried first, then the slope that leaves the most room. That these numbers
    are exact is for `prove_fixed_point` to say.
    """
    slope = np.minimum(scale, _STEEPEST)
    multiplier, shift = _multiplier(slope)
    low, high = _rounding_range(steps, multiplier, shift)
    failed = np.flatnonzero(low > high)
    if failed.size:
        chosen = steps.take(failed)
        multiplier[failed], shift[failed] = _multiplier(_best_slope(chosen, slope[failed]))
        low[failed], high[failed] = _rounding_range(chosen, multiplier[failed], shift[failed])
    rounding = low + ((high - low) >> 1)
    constant = steps.constant()
    half = 1 << (_CONSTANT_SHIFT - 1)
    rounding = np.where(constant, (steps.first << _CONSTANT_SHIFT) + half, rounding)
    multiplier = np.where(constant, 0, multiplier).astype(np.int32)
    shift = np.where(constant, _CONSTANT_SHIFT, shift).astype(np.int32)
    return multiplier, rounding, shift


def _multiplier(slope: F64) -> tuple[I64, I64]:
    """The 31-bit multiplier and the shift nearest to a slope; fewer bits where it is tiny."""
    _, exponent = np.frexp(slope)
    shift = np.minimum(31 - exponent.astype(np.int64), MOST_SHIFT)
    multiplier = np.rint(np.ldexp(slope, shift)).astype(np.int64)
    carried = multiplier > INT32_MAX
    return np.where(carried, multiplier >> 1, multiplier), np.where(carried, shift - 1, shift)


def _rounding_range(steps: Steps, multiplier: I64, shift: I64) -> tuple[I64, I64]:
    """Lowest and highest rounding for which the form is exact, [n] each; none if they cross."""
    if steps.inner.shape[1] == 0:
        return np.zeros_like(steps.low), np.zeros_like(steps.low)
    needed = (steps.codes << shift[:, None]) - steps.inner * multiplier[:, None]
    low = needed.max(axis=1)
    high = needed.min(axis=1) + (multiplier - 1)
    at_low = (steps.first << shift) - steps.low * multiplier
    at_high = ((steps.last + 1) << shift) - steps.high * multiplier - 1
    low = np.where(steps.first > steps.lo, np.maximum(low, at_low), low)
    high = np.where(steps.last < steps.hi, np.minimum(high, at_high), high)
    constant = steps.constant()
    return np.where(constant, 0, low), np.where(constant, 0, high)


def _best_slope(steps: Steps, slope: F64) -> F64:
    """The slope near `slope` with the widest gap between the steps it must reach and must not.

    The gap is a concave function of the slope, made of straight pieces. Two of its tangents cross
    where it can be highest; the tangent there replaces one of them.

    Source:
        Kelley 1960, "The cutting-plane method for solving convex programs".
    """
    left, right = slope * (1 - _SPREAD), slope * (1 + _SPREAD)
    left_gap, left_rise = _gap(steps, left)
    right_gap, right_rise = _gap(steps, right)
    best, best_gap = slope.copy(), np.full(slope.shape, -np.inf)
    for _ in range(_MOST_CUTS):
        turn = np.where(left_rise > right_rise, left_rise - right_rise, 1)
        moved = (right_gap - left_gap - right_rise * (right - left)) / turn
        middle = np.clip(left + moved, left, right)
        bound = left_gap + left_rise * (middle - left)
        gap, rise = _gap(steps, middle)
        better = gap > best_gap
        best, best_gap = np.where(better, middle, best), np.where(better, gap, best_gap)
        open_ = (bound > 0) & (best_gap < _WIDE_GAP) & (bound - best_gap > bound * 2.0**-10)
        if not open_.any():
            break
        rises = rise > 0
        left, right = np.where(rises, middle, left), np.where(rises, right, middle)
        left_gap, right_gap = np.where(rises, gap, left_gap), np.where(rises, right_gap, gap)
        left_rise, right_rise = np.where(rises, rise, left_rise), np.where(rises, right_rise, rise)
    return best


def _gap(steps: Steps, slope: F64) -> tuple[F64, F64]:
    """How far apart the offsets are that the steps ask for, and how that grows with the slope."""
    needed = steps.codes - slope[:, None] * steps.inner
    rows = np.arange(slope.size)
    top, bottom = needed.argmax(axis=1), needed.argmin(axis=1)
    low, low_acc = needed[rows, top], steps.inner[rows, top]
    high, high_acc = needed[rows, bottom] + slope, steps.inner[rows, bottom] - 1
    at_low = np.where(steps.first > steps.lo, steps.first - slope * steps.low, -np.inf)
    at_high = np.where(steps.last < steps.hi, steps.last + 1 - slope * steps.high, np.inf)
    low_acc = np.where(at_low > low, steps.low, low_acc)
    high_acc = np.where(at_high < high, steps.high, high_acc)
    gap = np.minimum(high, at_high) - np.maximum(low, at_low)
    return gap, (low_acc - high_acc).astype(np.float64)


def prove_fixed_point(steps: Steps, multiplier: I32, rounding: I64, shift: I32) -> BoolArray:
    """The proof of fixed point: int64 has room, and two comparisons a step, [n]."""
    factor, places = multiplier.astype(np.int64), shift.astype(np.int64)
    reach = np.maximum(np.abs(steps.low), np.abs(steps.high)) * np.abs(factor)
    room = np.int64(2**63 - 1) - reach
    fits = (factor >= 0) & (places >= 0) & (places < 63) & (rounding <= room) & (rounding > -room)
    safe = np.where(fits, rounding, 0)[:, None]
    factor, places = factor[:, None], np.clip(places, 0, 62)[:, None]
    product = steps.inner * factor + safe
    reached = (product >> places >= steps.codes).all(axis=1)
    before = ((product - factor) >> places < steps.codes).all(axis=1)
    inner = steps.constant() | (reached & before)
    at_low = ((steps.low * factor[:, 0] + safe[:, 0]) >> places[:, 0]) >= steps.first
    at_high = ((steps.high * factor[:, 0] + safe[:, 0]) >> places[:, 0]) <= steps.last
    ends = (at_low | (steps.first == steps.lo)) & (at_high | (steps.last == steps.hi))
    return fits & inner & ends
