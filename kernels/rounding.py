"""Numba for rounding weights: error feedback (GPTQ) and coordinate descent on a quadratic error.

One row is one output channel with its own step; the R rows of one of G groups see the same K
inputs. The error of codes q at step s against real weights w is (w - s q)^T H (w - s q), H the
second moments of the group's inputs [K, K]. Codes are held in float64, where all of them are exact.
Nothing here runs a network.
"""

import numpy as np
import numpy.typing as npt

from onnxptq.kernels.jit import jit

F64 = npt.NDArray[np.float64]


def feed_back_naive(weights: F64, factor: F64, steps: F64, ends: F64, codes: F64) -> None:
    """Specification of `feed_back`: one column after the other, all rows at a time."""
    rest = weights.copy()
    for j in range(weights.shape[2]):
        codes[..., j] = np.clip(np.rint(rest[..., j] / steps), ends[..., 0], ends[..., 1])
        error = (rest[..., j] - codes[..., j] * steps) / factor[:, None, j, j]
        rest[..., j + 1 :] -= error[..., None] * factor[:, None, j, j + 1 :]


@jit
def feed_back(weights: F64, factor: F64, steps: F64, ends: F64, codes: F64) -> None:
    """Round each row from left to right; what a code leaves over moves into the later weights.

    Args:
        weights: Real weights, changed in place, [G, R, K].
        factor: Upper triangular U with U^T U = H^-1, [G, K, K].
        steps: Step of each row, > 0, [G, R].
        ends: First and last code of each row, [G, R, 2].
        codes: Filled with the codes, [G, R, K].

    Source:
        Frantar et al. 2022, GPTQ (arXiv:2210.17323), section 3.
    """
    for g in range(weights.shape[0]):
        for r in range(weights.shape[1]):
            step, lo, hi = steps[g, r], ends[g, r, 0], ends[g, r, 1]
            row = weights[g, r]
            for j in range(row.size):
                code = min(max(np.rint(row[j] / step), lo), hi)
                codes[g, r, j] = code
                error = (row[j] - code * step) / factor[g, j, j]
                for k in range(j + 1, row.size):
                    row[k] -= error * factor[g, j, k]


def descend_naive(codes: F64, slopes: F64, moments: F64, steps: F64, ends: F64, sweeps: int) -> int:
    """Specification of `descend`, for one row after the other with numpy."""
    moves = 0
    for g, r in np.ndindex(*steps.shape):
        for _ in range(sweeps):
            before = moves
            for j in np.flatnonzero(np.diag(moments[g]) > 0):
                ideal = codes[g, r, j] + slopes[g, r, j] / (steps[g, r] * moments[g, j, j])
                change = np.clip(np.rint(ideal), *ends[g, r]) - codes[g, r, j]
                if change != 0.0:
                    codes[g, r, j] += change
                    slopes[g, r] -= steps[g, r] * change * moments[g, j]
                    moves += 1
            if moves == before:
                break
    return moves


@jit
def descend(codes: F64, slopes: F64, moments: F64, steps: F64, ends: F64, sweeps: int) -> int:
    """Move one code after the other to where the error is least, until none moves.

    Args:
        codes: Codes, changed in place, [G, R, K].
        slopes: H (w - s q) of each row, kept up to date, [G, R, K].
        moments: H, symmetric, [G, K, K].
        steps: Step of each row, > 0, [G, R].
        ends: First and last code of each row, [G, R, 2].
        sweeps: At most so many passes over a row.

    Returns:
        How many codes were moved.

    Source:
        Zhang et al. 2024, COMQ (arXiv:2403.07134), the cyclic order.
    """
    moves = 0
    for g in range(codes.shape[0]):
        for r in range(codes.shape[1]):
            row, slope, step = codes[g, r], slopes[g, r], steps[g, r]
            lo, hi = ends[g, r, 0], ends[g, r, 1]
            for _ in range(sweeps):
                before = moves
                for j in range(row.size):
                    if moments[g, j, j] <= 0.0:
                        continue
                    ideal = row[j] + slope[j] / (step * moments[g, j, j])
                    change = min(max(np.rint(ideal), lo), hi) - row[j]
                    if change != 0.0:
                        row[j] += change
                        for k in range(row.size):
                            slope[k] -= step * change * moments[g, j, k]
                        moves += 1
                if moves == before:
                    break
    return moves
