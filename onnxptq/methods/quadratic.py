"""Codes and steps of a group of rows with the least quadratic error: GPTQ, descent, best steps."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from onnxptq.kernels import rounding

F64 = npt.NDArray[np.float64]

REFITS = 4
"""Rounds of best step and descent; nearly all rows stand still after two."""


@dataclass(frozen=True, slots=True)
class Search:
    """How hard to look.

    Attributes:
        damping: Added to the diagonal of the inputs' moments, as a share of its mean.
        rounds: Times that all rows are rounded anew, from the steps that the last round found.
        sweeps: Passes of coordinate descent over a row.
        free_steps: Whether each row may take the step that suits its codes best.
    """

    damping: float
    rounds: int
    sweeps: int
    free_steps: bool


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """G groups of R rows of weights; the rows of a group see the same K inputs.

    Attributes:
        weights: Real rows, [G, R, K].
        moments: Covariance of the inputs, [G, K, K].
        cross: Covariance of wanted outputs and inputs, [G, R, K].
        steps: Steps to begin with, > 0, [G, R].
        ends: First and last code of each row, [G, R, 2].
    """

    weights: F64
    moments: F64
    cross: F64
    steps: F64
    ends: F64

    def target(self, ridge: float) -> F64:
        """Real weights that come closest to the wanted outputs on the inputs as codes give them.

        Where all inputs are constant, any weights do, so they stay as they are.

        Args:
            ridge: Pull towards the weights as they are, as a share of the mean diagonal.

        Source:
            methods.md 11.6: ||W X - Q X^||^2 = ||(W' - Q) X^||^2 + const, W' = W X X^T (X^ X^T)^-1.
        """
        pull = ridge * _mean_diagonal(self.moments)
        alive = pull > 0.0
        target = self.weights.copy()
        wanted = self.cross[alive] + pull[alive, None, None] * self.weights[alive]
        solved = np.linalg.solve(_damped(self.moments[alive], pull[alive]), _turned(wanted))
        target[alive] = _turned(solved)
        return target

    def nearest(self) -> F64:
        """Codes of the weights rounded to nearest, [G, R, K]."""
        codes = np.rint(self.weights / self.steps[..., None])
        return np.clip(codes, self.ends[..., :1], self.ends[..., 1:])

    def of(self, chosen: npt.NDArray[np.bool_]) -> "Groups":
        """Some of the groups."""
        parts = (self.weights, self.moments, self.cross, self.steps, self.ends)
        return Groups(*(part[chosen] for part in parts))


def rounded(groups: Groups, target: F64, search: Search) -> tuple[F64, F64]:
    """Codes [G, R, K] and steps [G, R] whose products come closest to the target on the inputs.

    Groups whose inputs were always 0 keep the nearest codes.
    """
    codes, steps = groups.nearest(), groups.steps.copy()
    alive = _mean_diagonal(groups.moments) > 0.0
    if alive.any():
        codes[alive], steps[alive] = _rounded(groups.of(alive), target[alive], search)
    return codes, steps


def _rounded(groups: Groups, target: F64, search: Search) -> tuple[F64, F64]:
    mean = _mean_diagonal(groups.moments)
    damped = _damped(groups.moments, search.damping * mean)
    # Inputs that carry most come first: later columns can still make up for their errors.
    order = np.argsort(-np.diagonal(damped, axis1=1, axis2=2), axis=1, kind="stable")
    back = np.argsort(order, axis=1)
    factor = _factor(damped, order)
    wanted = target @ damped
    best_codes, best_steps = groups.nearest(), groups.steps
    least = _errors(best_codes, best_steps, damped, wanted)
    steps = groups.steps
    for _ in range(search.rounds):
        codes = np.zeros_like(target)
        rounding.feed_back(_columns(target, order), factor, steps, groups.ends, codes)
        codes = _columns(codes, back)
        codes, steps = _polished(codes, steps, (damped, wanted), groups.ends, search)
        errors = _errors(codes, steps, damped, wanted)
        better = errors < least
        best_codes[better], least = codes[better], np.minimum(errors, least)
        best_steps = np.where(better, steps, best_steps)
        if not search.free_steps:
            break
    return best_codes, best_steps


def _factor(moments: F64, order: npt.NDArray[np.intp]) -> F64:
    """Upper triangular U with U^T U = H^-1 of the moments with inputs in this order, [G, K, K]."""
    rows = np.take_along_axis(moments, order[:, :, None], axis=1)
    inverse = np.linalg.inv(np.take_along_axis(rows, order[:, None, :], axis=2))
    return np.ascontiguousarray(_turned(np.linalg.cholesky(inverse)), np.float64)


def _columns(rows: F64, order: npt.NDArray[np.intp]) -> F64:
    """Rows [G, R, K] with their columns in another order."""
    return np.ascontiguousarray(np.take_along_axis(rows, order[:, None, :], axis=2))


def _polished(
    codes: F64, steps: F64, quadratic: tuple[F64, F64], ends: F64, search: Search
) -> tuple[F64, F64]:
    """Descend over the codes and choose best steps in turn until nothing moves."""
    moments, wanted = quadratic
    for _ in range(REFITS):
        slopes = wanted - steps[..., None] * (codes @ moments)
        moved = rounding.descend(codes, slopes, moments, steps, ends, search.sweeps)
        if not search.free_steps:
            break
        square = np.einsum("grk,grk->gr", codes @ moments, codes)
        product = np.einsum("grk,grk->gr", codes, wanted)
        usable = (square > 0.0) & (product > 0.0)
        steps = np.where(usable, product / np.where(usable, square, 1.0), steps)
        if not moved:
            break
    return codes, steps


def _errors(codes: F64, steps: F64, moments: F64, wanted: F64) -> F64:
    """Error of each row but for a constant, [G, R]."""
    rows = codes * steps[..., None]
    square = np.einsum("grk,grk->gr", rows @ moments, rows)
    return np.asarray(square - 2.0 * np.einsum("grk,grk->gr", rows, wanted), np.float64)


def _mean_diagonal(moments: F64) -> F64:
    """Mean variance of the inputs of each group, [G]."""
    if moments.shape[1] == 0:
        return np.zeros(moments.shape[0])
    return np.asarray(np.diagonal(moments, axis1=1, axis2=2).mean(axis=1), np.float64)


def _damped(moments: F64, added: F64) -> F64:
    return moments + added[:, None, None] * np.eye(moments.shape[1])


def _turned(matrices: npt.NDArray[np.floating]) -> F64:
    return np.swapaxes(matrices, 1, 2).astype(np.float64, copy=False)
