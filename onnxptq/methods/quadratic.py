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
class Group:
    """Rows of weights that see the same inputs.

    Attributes:
        weights: Real rows, [R, K].
        moments: Covariance of the inputs, [K, K].
        cross: Covariance of wanted outputs and inputs, [R, K].
        steps: Steps to begin with, > 0, [R].
        ends: First and last code of each row, [R, 2].
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
        if pull <= 0.0:
            return self.weights
        damped = self.moments + pull * np.eye(len(self.moments))
        solved = np.linalg.solve(damped, (self.cross + pull * self.weights).T)
        return np.asarray(solved.T, np.float64)

    def nearest(self) -> F64:
        """Codes of the weights rounded to nearest, [R, K]."""
        codes = np.rint(self.weights / self.steps[:, None])
        return np.clip(codes, self.ends[:, :1], self.ends[:, 1:])


def rounded(group: Group, target: F64, search: Search) -> tuple[F64, F64]:
    """Codes [R, K] and steps [R] whose products come closest to the target on the group's inputs.

    Inputs that were always 0 keep the nearest codes.
    """
    mean = _mean_diagonal(group.moments)
    if mean <= 0.0:
        return group.nearest(), group.steps
    damped = group.moments + search.damping * mean * np.eye(len(group.moments))
    # Inputs that carry most come first: later columns can still make up for their errors.
    order = np.argsort(-np.diag(damped), kind="stable")
    inverse = np.linalg.inv(damped[np.ix_(order, order)])
    factor = np.ascontiguousarray(np.linalg.cholesky(inverse).T, np.float64)
    wanted = target @ damped
    best_codes, best_steps = group.nearest(), group.steps
    least = _errors(best_codes, best_steps, damped, wanted)
    steps = group.steps
    for _ in range(search.rounds):
        codes = np.zeros_like(target)
        ordered = np.ascontiguousarray(target[:, order])
        rounding.feed_back(ordered, factor, steps, group.ends, codes)
        codes = np.ascontiguousarray(codes[:, np.argsort(order)])
        codes, steps = _polished(codes, steps, (damped, wanted), group.ends, search)
        errors = _errors(codes, steps, damped, wanted)
        better = errors < least
        best_codes[better], least = codes[better], np.minimum(errors, least)
        best_steps = np.where(better, steps, best_steps)
        if not search.free_steps:
            break
    return best_codes, best_steps


def _polished(
    codes: F64, steps: F64, quadratic: tuple[F64, F64], ends: F64, search: Search
) -> tuple[F64, F64]:
    """Descend over the codes and choose best steps in turn until nothing moves."""
    moments, wanted = quadratic
    for _ in range(REFITS):
        slopes = wanted - steps[:, None] * (codes @ moments)
        moved = rounding.descend(codes, slopes, moments, steps, ends, search.sweeps)
        if not search.free_steps:
            break
        square = np.einsum("rk,rk->r", codes @ moments, codes)
        product = np.einsum("rk,rk->r", codes, wanted)
        usable = (square > 0.0) & (product > 0.0)
        steps = np.where(usable, product / np.where(usable, square, 1.0), steps)
        if not moved:
            break
    return codes, steps


def _errors(codes: F64, steps: F64, moments: F64, wanted: F64) -> F64:
    """Error of each row but for a constant."""
    rows = codes * steps[:, None]
    return np.einsum("rk,rk->r", rows @ moments, rows) - 2.0 * np.einsum("rk,rk->r", rows, wanted)


def _mean_diagonal(moments: F64) -> float:
    return float(np.diag(moments).mean()) if moments.size else 0.0
