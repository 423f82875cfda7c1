"""PairRequant: two codes to one in integers only, proved on every pair of codes that can occur."""

import enum
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxptq.errors import ProgramError
from onnxptq.formulas import IntArray, PairFormula, added, multiplied
from onnxptq.quant import I32

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Range = tuple[int, int]

_COMPUTE = {"add": added, "mul": multiplied}
_MOST_SHIFT = 48
_MOST_EXPONENT = 16
"""A ratio of 2^16 and more leaves every code range at the first step."""
_MULTIPLIER_END = 2**31
_PRODUCT_END = 2**62
_SPREAD = 2.0**-12
_MOST_CUTS = 16
_ROUNDS = 3


class PairForm(enum.IntEnum):
    """How a pair of codes becomes one."""

    FIXED_POINT = 0
    TABLE = 1


@dataclass(frozen=True, slots=True, eq=False)
class PairRequant:
    """Two codes to one; codes are those of ONNX.

    Attributes:
        kind: "add" or "mul".
        formula: onnxruntime's float formula that it stands for.
        lo: Lowest code of the output: of the container, or of a fused Clip.
        hi: Highest code.
        form: FIXED_POINT or TABLE.
        multipliers: add: clip((a * multipliers[0] + b * multipliers[1] + rounding) >> shift); mul:
            clip(((a - a_zero) * (b - b_zero) * multipliers[0] + rounding) >> shift). int64 holds
            all of it with a bit to spare.
        rounding: Zero points are in it.
        shift: 0 to 62.
        table: TABLE: [256, 256] by (a - container_min, b - container_min), else of size 0.
        proved: Equal to the formula on all pairs of the ranges it was made for.
    """

    kind: str
    formula: PairFormula
    lo: int
    hi: int
    form: PairForm
    multipliers: tuple[int, int]
    rounding: int
    shift: int
    table: npt.NDArray[np.int8 | np.uint8]
    proved: bool


def find_pair(
    kind: str, formula: PairFormula, lo: int, hi: int, a_range: Range, b_range: Range
) -> PairRequant:
    """Fixed point where it is proved on every pair of codes in the ranges, else a table.

    Args:
        kind: "add" or "mul".
        formula: Scales and zero points.
        lo: Lowest code of the output.
        hi: Highest code.
        a_range: First and last code of the first operand.
        b_range: Those of the second.

    Raises:
        ProgramError: The kind or a range makes no sense.
    """
    _check(kind, formula, (lo, hi), a_range, b_range)
    empty = np.zeros((0, 0), formula.dtype)
    numbers = _fixed_point(kind, formula, (lo, hi), a_range, b_range)
    if numbers is not None:
        multipliers, rounding, shift = numbers
        pair = PairRequant(
            kind, formula, lo, hi, PairForm.FIXED_POINT, multipliers, rounding, shift, empty, True
        )
        if prove_pair(pair, a_range, b_range):
            return pair
    codes = np.arange(256) + np.iinfo(formula.dtype).min
    table = _expected(kind, formula, (lo, hi), codes[:, None], codes[None, :])
    return PairRequant(
        kind, formula, lo, hi, PairForm.TABLE, (0, 0), 0, 0, table.astype(formula.dtype), True
    )


def prove_pair(pair: PairRequant, a_range: Range, b_range: Range) -> bool:
    """Whether the integer form equals the float formula on every pair of codes; all are tried."""
    a, b = _pairs(a_range, b_range)
    if pair.form == PairForm.FIXED_POINT and not _fits(pair, a, b):
        return False
    expected = _expected(pair.kind, pair.formula, (pair.lo, pair.hi), a, b)
    if pair.form == PairForm.TABLE and pair.table.shape != (256, 256):
        return False
    return bool((apply_pair(pair, a, b) == expected).all())


def apply_pair(pair: PairRequant, a: IntArray, b: IntArray) -> I32:
    """Run the integer form in numpy.

    Args:
        pair: The form.
        a: Codes of the first operand.
        b: Codes of the second, of a shape that broadcasts with `a`.
    """
    wide_a, wide_b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    if pair.form == PairForm.TABLE:
        first = int(np.iinfo(pair.formula.dtype).min)
        return pair.table[wide_a - first, wide_b - first].astype(np.int32)
    total = _weigh(pair.kind, pair.formula, pair.multipliers, wide_a, wide_b) + pair.rounding
    return np.clip(total >> pair.shift, pair.lo, pair.hi).astype(np.int32)


def _check(kind: str, formula: PairFormula, codes: Range, a_range: Range, b_range: Range) -> None:
    if kind not in _COMPUTE:
        raise ProgramError(f"no pair of codes is requantized by {kind!r}; it must be add or mul")
    info = np.iinfo(formula.dtype)
    for lo, hi in (codes, a_range, b_range):
        if not info.min <= lo <= hi <= info.max:
            raise ProgramError(f"codes {lo} to {hi} are no range of {formula.dtype}")


def _pairs(a_range: Range, b_range: Range) -> tuple[I64, I64]:
    a = np.arange(a_range[0], a_range[1] + 1, dtype=np.int64)
    b = np.arange(b_range[0], b_range[1] + 1, dtype=np.int64)
    return a[:, None], b[None, :]


def _expected(kind: str, formula: PairFormula, codes: Range, a: I64, b: I64) -> I32:
    grid_a, grid_b = np.broadcast_arrays(a, b)
    return np.clip(_COMPUTE[kind](grid_a, grid_b, formula), *codes)


def _weigh(kind: str, formula: PairFormula, multipliers: tuple[int, int], a: I64, b: I64) -> I64:
    if kind == "add":
        return a * multipliers[0] + b * multipliers[1]
    return (a - formula.a.zero_point) * (b - formula.b.zero_point) * multipliers[0]


def _fits(pair: PairRequant, a: I64, b: I64) -> bool:
    """Whether no step of the arithmetic leaves int64, checked with numbers that cannot overflow."""
    if any(abs(multiplier) >= _MULTIPLIER_END for multiplier in pair.multipliers):
        return False
    if abs(pair.rounding) >= _PRODUCT_END or not 0 <= pair.shift <= 62:
        return False
    total = _weigh(pair.kind, pair.formula, pair.multipliers, a, b)
    ends = (int(total.min()) + pair.rounding, int(total.max()) + pair.rounding)
    return all(abs(end) < _PRODUCT_END for end in ends)


@dataclass(frozen=True, slots=True, eq=False)
class _Bounds:
    """What a fixed-point form must do: reach some codes at some points, and not reach others.

    Attributes:
        at: Points whose code must be reached, [n, D]: (a, b), or the product of both.
        reach: That code, [n].
        below: Points that must stay below a code, [m, D].
        miss: That code, [m].
    """

    at: F64
    reach: F64
    below: F64
    miss: F64


def _fixed_point(
    kind: str, formula: PairFormula, codes: Range, a_range: Range, b_range: Range
) -> tuple[tuple[int, int], int, int] | None:
    """Multipliers, rounding and shift, or None where a search finds none."""
    a, b = _pairs(a_range, b_range)
    expected = _expected(kind, formula, codes, a, b)
    if (expected == expected[0, 0]).all():
        return (0, 0), int(expected[0, 0]), 0
    slopes = _ratios(kind, formula)
    exponent = math.frexp(float(slopes.max()))[1]
    if exponent > _MOST_EXPONENT:
        return None
    # 30 bits: what the search moves a multiplier by must not carry it to 2^31.
    shift = min(30 - exponent, _MOST_SHIFT)
    bounds = _bounds(kind, formula, codes, expected, (a, b))
    for candidate in (slopes, _widest(bounds, slopes)):
        whole = np.rint(candidate * 2.0**shift).astype(np.int64)
        low = (bounds.reach.astype(np.int64) << shift) - bounds.at.astype(np.int64) @ whole
        high = (bounds.miss.astype(np.int64) << shift) - bounds.below.astype(np.int64) @ whole - 1
        first, last = int(low.max()), int(high.min())
        if first <= last:
            second = int(whole[1]) if whole.size > 1 else 0
            return (int(whole[0]), second), first + (last - first) // 2, shift
    return None


def _ratios(kind: str, formula: PairFormula) -> F64:
    a, b = float(formula.a.scale), float(formula.b.scale)
    y = float(formula.y.scale)
    return np.array([a / y, b / y] if kind == "add" else [a * b / y])


def _bounds(
    kind: str, formula: PairFormula, codes: Range, expected: I32, pairs: tuple[I64, I64]
) -> _Bounds:
    """The pairs at the borders between codes: no other pair asks for more than these do."""
    lo, hi = codes
    reach = expected > lo
    miss = expected < hi
    a, b = np.broadcast_arrays(*pairs)
    if kind == "add":
        # The formula rises with a and with b, so pairs with a neighbour of their own code beside
        # them ask for nothing more.
        for axis in (0, 1):
            same = np.diff(expected, axis=axis) == 0
            ends = [[0, 0], [0, 0]]
            ends[axis] = [1, 0]
            reach = reach & ~np.pad(same, ends)
            ends[axis] = [0, 1]
            miss = miss & ~np.pad(same, ends)
        points = np.stack([a, b], axis=-1)
    else:
        points = ((a - formula.a.zero_point) * (b - formula.b.zero_point))[..., None]
    real, wanted = points.astype(np.float64), expected.astype(np.float64)
    return _Bounds(real[reach], wanted[reach], real[miss], wanted[miss] + 1)


def _widest(bounds: _Bounds, slopes: F64) -> F64:
    """Slopes near these with a wider gap between what must be reached and what must not.

    The gap is concave in the slopes; it is maximised along one direction after the other.
    """
    directions = [np.eye(slopes.size)[axis] for axis in range(slopes.size)]
    if slopes.size > 1:
        directions += [np.array([1.0, 1.0]), np.array([1.0, -1.0])]
    for _ in range(_ROUNDS if slopes.size > 1 else 1):
        for direction in directions:
            slopes = slopes + direction * _climb(bounds, slopes, direction * slopes) * slopes
    return slopes


def _climb(bounds: _Bounds, slopes: F64, direction: F64) -> float:
    """How far to go along a direction, at most `_SPREAD` either way, until the gap is widest.

    Source:
        Kelley 1960, "The cutting-plane method for solving convex programs".
    """
    reach, reach_rise = bounds.reach - bounds.at @ slopes, bounds.at @ direction
    miss, miss_rise = bounds.miss - bounds.below @ slopes, bounds.below @ direction

    def gap(way: float) -> tuple[float, float, float]:
        needed, allowed = reach - way * reach_rise, miss - way * miss_rise
        top, bottom = int(needed.argmax()), int(allowed.argmin())
        rise = float(reach_rise[top] - miss_rise[bottom])
        return way, float(allowed[bottom] - needed[top]), rise

    left, right, best = gap(-_SPREAD), gap(_SPREAD), gap(0.0)
    for _ in range(_MOST_CUTS):
        if left[2] <= right[2]:
            break
        turn = right[1] - left[1] + left[2] * left[0] - right[2] * right[0]
        middle = gap(min(max(turn / (left[2] - right[2]), left[0]), right[0]))
        best = max(best, middle, key=lambda point: point[1])
        if left[1] + left[2] * (middle[0] - left[0]) - middle[1] < 2.0**-40:
            break
        left, right = (middle, right) if middle[2] > 0 else (left, middle)
    return best[0]
