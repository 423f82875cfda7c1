"""knapsack: as good as trying everything, by both solvers; limits hold; what cannot be is None."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from onnxptq.methods.knapsack import Limit, best_choice, many_limits, one_limit

F64 = npt.NDArray[np.float64]


def tried(values: F64, limits: list[Limit]) -> float | None:
    """The least sum of values of all choices that fit."""
    choices = itertools.product(range(values.shape[1]), repeat=len(values))
    fitting = [choice for choice in choices if all(limit.fits(choice) for limit in limits)]
    return min((value_of(values, choice) for choice in fitting), default=None)


def value_of(values: F64, chosen: tuple[int, ...]) -> float:
    return float(values[np.arange(len(chosen)), list(chosen)].sum())


def instance(seed: int, resources: int) -> tuple[F64, list[Limit]]:
    """Values that fall and costs that rise, but not always; some candidates are missing."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 6)), int(rng.integers(1, 5)))
    values = rng.exponential(size=shape) * 10.0 ** rng.uniform(-4, 2, (shape[0], 1))
    if seed % 2:
        values = -np.sort(-values, axis=1)
    values[1:, :-1][rng.random((shape[0] - 1, shape[1] - 1)) < 0.2] = np.inf
    limits: list[Limit] = []
    for _ in range(resources):
        costs = np.sort(rng.integers(1, 50, shape), axis=1).astype(np.float64)
        share = rng.uniform(-0.1, 1.1)
        ends = costs.min(axis=1).sum(), costs.max(axis=1).sum()
        limits.append(Limit(costs, float(ends[0] + share * (ends[1] - ends[0]))))
    return values, limits


@pytest.mark.parametrize("seed", range(60))
def test_dynamic_programming_finds_what_trying_everything_finds(seed: int) -> None:
    values, (limit,) = instance(seed, 1)
    expected = tried(values, [limit])
    expected = expected if expected is not None and np.isfinite(expected) else None

    chosen = one_limit(values, limit)

    assert (chosen is None) == (expected is None)
    if chosen is not None:
        assert limit.fits(chosen)
        assert value_of(values, chosen) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("resources", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_the_integer_program_finds_what_trying_everything_finds(seed: int, resources: int) -> None:
    values, limits = instance(seed, resources)
    expected = tried(values, limits)
    expected = expected if expected is not None and np.isfinite(expected) else None

    chosen = many_limits(values, limits)

    assert (chosen is None) == (expected is None)
    if chosen is not None:
        assert all(limit.fits(chosen) for limit in limits)
        # HiGHS stops at 1e-6 of the largest value.
        assert value_of(values, chosen) == pytest.approx(
            expected, abs=1e-5 * np.abs(values[np.isfinite(values)]).max()
        )


def test_many_items_with_costs_without_a_common_divisor_are_solved() -> None:
    """A table over all costs would have 10^8 entries here; both solvers agree."""
    rng = np.random.default_rng(5)
    sizes = rng.integers(10_000, 2_000_000, 60).astype(np.float64)
    costs = np.rint(sizes[:, None] * np.arange(2, 9) / 8 + rng.integers(0, 900, (60, 7)))
    values = rng.exponential(size=(60, 1)) * 4.0 ** -np.arange(2, 9)
    limit = Limit(costs, float(costs.sum(axis=0)[2]))

    chosen, other = one_limit(values, limit), many_limits(values, [limit])

    assert chosen is not None
    assert other is not None
    assert limit.fits(chosen)
    assert value_of(values, chosen) <= value_of(values, other) * (1 + 1e-9)
    assert value_of(values, chosen) == pytest.approx(value_of(values, other), rel=1e-3)


def test_without_items_there_is_nothing_to_choose() -> None:
    assert best_choice(np.zeros((0, 3)), [Limit(np.zeros((0, 3)), 1.0)]) == ()


def test_one_limit_and_several_are_told_apart() -> None:
    values, limits = instance(3, 1)

    assert best_choice(values, limits) == one_limit(values, limits[0])
    assert best_choice(values, [*limits, *limits]) == best_choice(values, limits)
