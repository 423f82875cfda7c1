"""Rounding with error feedback and by coordinate descent."""

import numpy as np
import numpy.typing as npt
import pytest

from onnxptq.kernels import rounding

F64 = npt.NDArray[np.float64]


def problem(groups: int, rows: int, columns: int, seed: int = 0) -> tuple[F64, F64, F64, F64]:
    """Weights, second moments of correlated inputs, steps, and the ends of 3-bit codes."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((groups, columns, columns))
    inputs = mix @ rng.standard_normal((groups, columns, 4 * columns))
    weights = rng.standard_normal((groups, rows, columns))
    steps = rng.uniform(0.3, 0.8, (groups, rows))
    moments = inputs @ np.swapaxes(inputs, 1, 2) / 1000
    return weights, moments, steps, np.tile([-4.0, 3.0], (groups, rows, 1))


def factor_of(moments: F64) -> F64:
    factor = np.swapaxes(np.linalg.cholesky(np.linalg.inv(moments)), 1, 2)
    return np.ascontiguousarray(factor, np.float64)


def error(weights: F64, codes: F64, moments: F64, steps: F64) -> F64:
    left = weights - steps[..., None] * codes
    return np.einsum("grk,gkj,grj->gr", left, moments, left)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 8, 27), (5, 3, 7), (12, 1, 9)])
def test_feed_back_equals_its_specification(sizes: tuple[int, int, int]) -> None:
    weights, moments, steps, ends = problem(*sizes)
    expected, found = np.zeros_like(weights), np.zeros_like(weights)

    rounding.feed_back_naive(weights, factor_of(moments), steps, ends, expected)
    rounding.feed_back(weights.copy(), factor_of(moments), steps, ends, found)

    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("sizes", [(1, 1, 1), (1, 8, 27), (5, 3, 7), (12, 1, 9)])
def test_descend_equals_its_specification(sizes: tuple[int, int, int]) -> None:
    weights, moments, steps, ends = problem(*sizes)
    expected = np.clip(np.rint(weights / steps[..., None]), -4, 3)
    found = expected.copy()
    slopes = (weights - steps[..., None] * expected) @ moments

    moves = rounding.descend_naive(expected, slopes.copy(), moments, steps, ends, 5)

    assert rounding.descend(found, slopes, moments, steps, ends, 5) == moves
    np.testing.assert_array_equal(found, expected)


def test_feedback_beats_rounding_to_nearest() -> None:
    weights, moments, steps, ends = problem(2, 16, 40)
    nearest = np.clip(np.rint(weights / steps[..., None]), -4, 3)
    codes = np.zeros_like(weights)

    rounding.feed_back(weights.copy(), factor_of(moments), steps, ends, codes)

    total = error(weights, codes, moments, steps).sum()
    assert total < 0.7 * error(weights, nearest, moments, steps).sum()


def test_descent_never_raises_the_error_and_stops_at_a_minimum() -> None:
    weights, moments, steps, ends = problem(2, 16, 40)
    codes = np.clip(np.rint(weights / steps[..., None]), -4, 3)
    before = error(weights, codes, moments, steps)
    slopes = (weights - steps[..., None] * codes) @ moments

    rounding.descend(codes, slopes, moments, steps, ends, 100)

    assert (error(weights, codes, moments, steps) <= before * (1 + 1e-12)).all()
    assert rounding.descend(codes, slopes, moments, steps, ends, 1) == 0
    assert codes.min() >= -4
    assert codes.max() <= 3


def test_inputs_that_were_always_zero_leave_their_codes() -> None:
    weights, moments, steps, ends = problem(1, 2, 5)
    moments[:, 3] = moments[:, :, 3] = 0.0
    codes = np.full_like(weights, 2.0)
    slopes = (weights - steps[..., None] * codes) @ moments

    rounding.descend(codes, slopes, moments, steps, ends, 10)

    assert (codes[..., 3] == 2.0).all()
