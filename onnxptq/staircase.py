"""The float formula as a staircase: the smallest accumulator of each code.

It only rises with the accumulator, so these steps are all there is to know about it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxptq.formulas import BoolArray, IntArray
from onnxptq.quant import F32

I64 = npt.NDArray[np.int64]

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
NEVER = 2**31
"""Threshold of a code that no int32 accumulator reaches."""

_PART_STEPS = 1 << 17
"""Steps worked on at once: 1 MiB an array, so that they stay in the cache."""


@dataclass(frozen=True, slots=True, eq=False)
class Steps:
    """The steps of n staircases inside of their accumulator ranges.

    Attributes:
        thresholds: All of them, [n, K].
        codes: Code reached at each inner step, [n, K]. Channels with fewer than K inner steps
            repeat one of theirs, which changes no minimum or maximum.
        inner: Accumulator of each inner step, [n, K].
        first: Code at the low end of the range, [n].
        last: Code at the high end, [n].
        low: Low end of the range, [n].
        high: High end, [n].
        lo: Lowest code.
        hi: Highest code.
    """

    thresholds: I64
    codes: I64
    inner: I64
    first: I64
    last: I64
    low: I64
    high: I64
    lo: int
    hi: int

    def constant(self) -> BoolArray:
        """Whether the range holds no step at all, [n]."""
        return self.first == self.last

    def take(self, chosen: npt.NDArray[np.intp]) -> "Steps":
        """The steps of some of the channels."""
        return Steps(
            self.thresholds[chosen],
            self.codes[chosen],
            self.inner[chosen],
            self.first[chosen],
            self.last[chosen],
            self.low[chosen],
            self.high[chosen],
            self.lo,
            self.hi,
        )


def steps_inside(exact: I64, lo: int, low: I64, high: I64) -> Steps:
    """What `thresholds` gave, inside of accumulator ranges.

    Args:
        exact: Smallest accumulator of each code, [n, K].
        lo: Lowest code.
        low: Lowest accumulator of each channel, [n].
        high: Highest one, [n].
    """
    count = exact.shape[1]
    below = (exact <= low[:, None]).sum(axis=1)
    upto = (exact <= high[:, None]).sum(axis=1)
    position = np.broadcast_to(np.arange(count), exact.shape)
    inner = exact
    if (below > 0).any() or (upto < count).any():
        last = np.clip(upto - 1, below, max(count - 1, 0))
        position = np.clip(position, np.minimum(below, last)[:, None], last[:, None])
        inner = np.take_along_axis(exact, position, axis=1)
    return Steps(exact, lo + 1 + position, inner, lo + below, lo + upto, low, high, lo, lo + count)


def thresholds(scale: F32, zero_point: int, lo: int, hi: int) -> I64:
    """Smallest int32 accumulator with each code above `lo`, [C, hi - lo], `NEVER` if none has it.

    A closed form guesses them; what counts is that the float formula was asked at each and at the
    accumulator before it.
    """
    steps = np.arange(lo + 1 - zero_point, hi + 1 - zero_point)
    # The lowest product that is rounded to the step: the tie itself where it goes to the even one.
    tie = (steps - 0.5).astype(np.float32)
    edge = np.where(steps % 2 == 0, tie, np.nextafter(tie, np.float32(np.inf)))
    # Exact products from halfway below it are rounded to it in float32.
    middle = (np.nextafter(edge, np.float32(-np.inf)).astype(np.float64) + edge) / 2
    wide = scale.astype(np.float64)[:, None]
    with np.errstate(divide="ignore"):  # a scale of 0 never steps
        guess = np.clip(np.ceil(middle / wide), INT32_MIN, NEVER).astype(np.int64)
    wrong = ~_is_step(guess, scale[:, None], steps)
    if wrong.any():
        rows, columns = np.nonzero(wrong)
        guess[rows, columns] = _bisect(guess[rows, columns], scale[rows], steps[columns])
    return guess


def _reaches(acc: I64, scale: F32, steps: IntArray) -> BoolArray:
    """Whether the float formula gives at least zero_point + steps at an int32 accumulator."""
    with np.errstate(over="ignore"):
        return np.rint(acc.astype(np.float32) * scale) >= steps


def _is_step(acc: I64, scale: F32, steps: IntArray) -> BoolArray:
    """Whether the formula reaches the code here and not one before; int32 has ends."""
    reached = (acc == NEVER) | _reaches(np.minimum(acc, INT32_MAX), scale, steps)
    before = (acc == INT32_MIN) | ~_reaches(np.maximum(acc - 1, INT32_MIN), scale, steps)
    return reached & before


def _bisect(guess: I64, scale: F32, steps: IntArray) -> I64:
    """The exact steps near guesses that two float32 roundings have moved."""
    # Each rounding moves a step by a share of 2^-24 at most.
    room = (np.abs(guess) >> 22) + 2
    below, at = guess - room, np.minimum(guess + room, NEVER)
    below = np.maximum(below, INT32_MIN - 1)
    while ((at - below) > 1).any():
        middle = (at + below) >> 1
        reached = (middle > INT32_MIN - 1) & _reaches(
            np.clip(middle, INT32_MIN, INT32_MAX), scale, steps
        )
        reached = reached | (middle >= NEVER)
        open_ = at - below > 1
        at = np.where(open_ & reached, middle, at)
        below = np.where(open_ & ~reached, middle, below)
    assert _is_step(at, scale, steps).all(), "the formula is not a staircase"
    return at


def parts(channels: int, steps: int) -> Iterator[slice]:
    """Slices of the channels, so that arrays of [n, steps] stay small."""
    size = max(_PART_STEPS // max(steps, 1), 1)
    for start in range(0, channels, size):
        yield slice(start, min(start + size, channels))
