"""Which accumulators can occur, given the weights' codes and the range of the input's codes."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1


@dataclass(frozen=True, slots=True, eq=False)
class Reach:
    """Ends of what each channel's accumulator can be, bias included.

    Attributes:
        lo: Smallest accumulator, [C].
        hi: Largest accumulator, [C].
        raw: Largest size of a partial sum before zero points are taken off, [C].
    """

    lo: I64
    hi: I64
    raw: I64

    @property
    def worst(self) -> int:
        """The largest size of any sum on the way to an accumulator or of one itself."""
        ends = (np.abs(self.lo), np.abs(self.hi), self.raw)
        return max((int(end.max(initial=0)) for end in ends), default=0)

    @property
    def fits(self) -> bool:
        """Whether no sum leaves int32."""
        low = int(self.lo.min(initial=0)) >= INT32_MIN
        return low and max(int(self.hi.max(initial=0)), int(self.raw.max(initial=0))) <= INT32_MAX


@dataclass(frozen=True, slots=True)
class Codes:
    """The codes that an input can have: [lo, hi], and the code of real 0."""

    lo: int
    hi: int
    zero: int


def of_weights(
    weight: npt.NDArray[np.integer], weight_zero: I64, bias: I64 | None, x: Codes, *, padded: bool
) -> Reach:
    """Reach of a convolution or product with constant weights.

    Each tap is taken at its worst by itself, and such inputs exist, so the ends are attained.

    Args:
        weight: Codes, one row a channel, [C, K].
        weight_zero: Zero points, [C] or [1].
        bias: int32 codes, [C], or None.
        x: The input's codes.
        padded: Whether some taps may read padding, which contributes 0.
    """
    rows = weight.astype(np.int64)
    shifted = rows - weight_zero.reshape(-1, 1)
    up, down = np.maximum(shifted, 0).sum(axis=1), np.minimum(shifted, 0).sum(axis=1)
    low, high = x.lo - x.zero, x.hi - x.zero
    if padded:
        low, high = min(low, 0), max(high, 0)
    added = np.zeros(1, np.int64) if bias is None else bias.astype(np.int64)
    lo, hi = up * low + down * high + added, up * high + down * low + added
    # The kernels sum raw codes and take zero points off at the end; VNNI sums saturate.
    size = max(abs(x.lo), abs(x.hi), 1)
    raw = size * np.maximum(np.maximum(rows, 0).sum(axis=1), -np.minimum(rows, 0).sum(axis=1))
    return Reach(lo, hi, raw)


def of_convolution(
    weight: npt.NDArray[np.integer], weight_zero: I64, bias: I64 | None, x: Codes, *, padded: bool
) -> Reach:
    """Reach of a convolution with weights [C, ...]; other arguments as for `of_weights`."""
    rows = weight.reshape(weight.shape[0], -1)
    return of_weights(rows, weight_zero, bias, x, padded=padded)


def of_matrix(
    weight: npt.NDArray[np.integer], weight_zero: I64, bias: I64 | None, x: Codes
) -> Reach:
    """Reach of each column of a product with constant matrices.

    Args:
        weight: Codes, [..., K, C].
        weight_zero: Zero points, [C] or [1].
        bias: int32 codes, [C] or [1], or None.
        x: The first factor's codes.
    """
    depth, columns = weight.shape[-2:]
    rows = np.swapaxes(weight, -1, -2).reshape(-1, depth)
    stack = max(1, rows.shape[0] // max(columns, 1))
    zeros = np.tile(np.broadcast_to(weight_zero, (columns,)), stack)
    biases = None if bias is None else np.tile(np.broadcast_to(bias, (columns,)), stack)
    each = of_weights(rows, zeros, biases, x, padded=False)
    lo, hi = each.lo.reshape(stack, columns), each.hi.reshape(stack, columns)
    raw = each.raw.reshape(stack, columns)
    return Reach(lo.min(axis=0), hi.max(axis=0), raw.max(axis=0))


def of_products(depth: int | None, a: Codes, b: Codes) -> Reach:
    """Reach of a product of two computed matrices, the same for all columns, [1].

    Args:
        depth: Terms of a sum; None where sizes are free: all of int32 is then taken.
        a: Codes of the first matrix.
        b: Codes of the second one.
    """
    if depth is None:
        return Reach(np.array([INT32_MIN]), np.array([INT32_MAX]), np.zeros(1, np.int64))
    ends = [(i - a.zero) * (j - b.zero) for i in (a.lo, a.hi) for j in (b.lo, b.hi)]
    raw = depth * max(abs(a.lo), abs(a.hi)) * max(abs(b.lo), abs(b.hi))
    lo, hi = min(*ends, 0), max(*ends, 0)
    return Reach(np.array([depth * lo]), np.array([depth * hi]), np.array([raw]))
