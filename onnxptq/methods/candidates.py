"""Every width a layer may take: its weights rounded as they will be, and how far its output moves.

A layer is one task of arrays, which joblib runs wherever the user's backend runs it.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxptq.methods.moments import Moments
from onnxptq.methods.quadratic import Groups, Search, rounded
from onnxptq.quant import QParams

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Steps and ends of the codes of G groups of R rows; codes are counted from the zero point.

    Attributes:
        steps: > 0, [G, R].
        ends: First and last code, [G, R, 2].
    """

    steps: F64
    ends: F64

    @classmethod
    def of(cls, params: QParams, groups: int, rows: int) -> "Grid":
        """That of a weight, per channel or per tensor."""

        def spread(values: npt.NDArray[np.generic]) -> F64:
            wide = np.broadcast_to(values.reshape(-1), (groups * rows,))
            return wide.reshape(groups, rows).astype(np.float64)

        low, high = params.code_lo - params.zero_point, params.code_hi - params.zero_point
        return cls(spread(params.scale), np.stack([spread(low), spread(high)], axis=2))


@dataclass(frozen=True, slots=True, eq=False)
class Rounded:
    """A weight at one width, and the bias that suits it.

    Attributes:
        codes: Counted from the zero point, [G, R, K].
        steps: [G, R].
        bias: [G, R]; None where it stays as it is.
    """

    codes: npt.NDArray[np.int16]
    steps: F64
    bias: F64 | None

    @property
    def rows(self) -> F64:
        """The real weights that the codes stand for."""
        return self.codes * self.steps[:, :, None]


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What it takes to judge a weight at all widths.

    Attributes:
        rows: The real weights, [G, R, K].
        moments: Of the inputs and float outputs of each layer that reads the weight.
        grids: One a width.
        search: How to round against the data; None for to nearest.
        free_bias: Whether the bias may follow, as `gptq` lets it.
    """

    rows: F64
    moments: tuple[Moments, ...]
    grids: tuple[Grid, ...]
    search: Search | None
    free_bias: bool


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """A weight at all widths: rounded, and the movement of its layers' outputs, [widths]."""

    rounded: tuple[Rounded, ...]
    cosine: F64
    noise: F64


def judge(task: Task) -> Judged:
    """Round a weight at all its widths; 1 - cosine and noise to signal of the outputs at each."""
    found = tuple(_round(task, grid) for grid in task.grids)
    distances = [[_distance(task.rows, one, moments) for moments in task.moments] for one in found]
    summed = np.asarray(distances, np.float64).sum(axis=1)
    return Judged(found, summed[:, 0], summed[:, 1])


def _round(task: Task, grid: Grid) -> Rounded:
    moments, search = task.moments[0], task.search
    # What the data say matters only where rounding looks at it.
    inputs, cross = moments.centred() if task.free_bias else moments.plain()
    groups = Groups(task.rows, inputs, cross, grid.steps, grid.ends)
    codes, steps = groups.nearest(), groups.steps
    if search is not None:
        codes, steps = rounded(groups, groups.weights, search)
    bias = None
    if search is not None and task.free_bias:
        bias = moments.bias(codes * steps[..., None])
    return Rounded(codes.astype(np.int16), steps, bias)


def _distance(rows: F64, found: Rounded, moments: Moments) -> tuple[float, float]:
    """1 - cosine, and noise to signal, of an output whose weights and bias moved.

    Both follow from the movement itself: sums of squares of the whole outputs would cancel.
    """
    moved = found.rows - rows
    shift = 0.0 if found.bias is None else found.bias - _float_bias(rows, moments)
    inner = np.einsum("grk,grk->gr", moved, moments.cross) + shift * moments.target_sum
    square = np.einsum("grk,gkj,grj->gr", moved, moments.inputs, moved, optimize=True)
    linear = np.einsum("grk,gk->gr", moved, moments.input_sum)
    square = square + 2.0 * shift * linear + moments.count * np.square(shift)
    signal = float(moments.target_square.sum())
    noise = max(float(square.sum()), 0.0)
    if signal <= 0.0:
        return 0.0, 0.0
    after = max(signal + 2.0 * float(inner.sum()) + noise, 0.0)
    if after == 0.0:
        return 1.0, noise / signal
    # |F - F'|^2 = (|F| - |F'|)^2 + 2 |F| |F'| (1 - cos)
    gap = (signal - after) / (np.sqrt(signal) + np.sqrt(after))
    cosine = (noise - gap * gap) / (2.0 * np.sqrt(signal * after))
    return max(float(cosine), 0.0), noise / signal


def _float_bias(rows: F64, moments: Moments) -> F64:
    """The bias of the float layer, which its mean output tells."""
    return moments.bias(rows)
