"""Codes and steps with the least quadratic error."""

import numpy as np
import numpy.typing as npt
import pytest

from onnxptq.methods.quadratic import Groups, Search, rounded

F64 = npt.NDArray[np.float64]
SEARCH = Search(damping=0.01, rounds=3, sweeps=4, free_steps=True)


def group(rows: int = 8, columns: int = 20, seed: int = 0) -> Groups:
    """One group of 2-bit rows on correlated inputs, which are the wanted outputs' own."""
    rng = np.random.default_rng(seed)
    inputs = rng.standard_normal((columns, columns)) @ rng.standard_normal((columns, 500))
    weights, moments = rng.standard_normal((1, rows, columns)), (inputs @ inputs.T / 500)[None]
    ends = np.tile([-2.0, 1.0], (1, rows, 1))
    return Groups(weights, moments, weights @ moments, np.full((1, rows), 0.8), ends)


def joined(*parts: Groups) -> Groups:
    names = ("weights", "moments", "cross", "steps", "ends")
    return Groups(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


def error(of: Groups, codes: F64, steps: F64) -> F64:
    left = of.weights - steps[..., None] * codes
    return np.einsum("grk,gkj,grj->gr", left, of.moments, left)


def test_it_beats_rounding_to_nearest_by_far() -> None:
    made = group()

    codes, steps = rounded(made, made.weights, SEARCH)

    nearest = error(made, made.nearest(), made.steps)
    assert error(made, codes, steps).sum() < 0.5 * nearest.sum()
    assert set(np.unique(codes)) <= {-2.0, -1.0, 0.0, 1.0}


def test_best_steps_help() -> None:
    made = group()

    fixed = rounded(made, made.weights, Search(0.01, 3, 4, free_steps=False))
    free = rounded(made, made.weights, SEARCH)

    np.testing.assert_array_equal(fixed[1], made.steps)
    assert error(made, *free).sum() < error(made, *fixed).sum()


def test_the_target_makes_up_for_what_the_inputs_are_off_by() -> None:
    """Inputs that come in at nine tenths of their size want weights ten ninths as large."""
    made = group()
    shrunk = Groups(made.weights, 0.81 * made.moments, 0.9 * made.cross, made.steps, made.ends)

    target = shrunk.target(1e-9)

    np.testing.assert_allclose(target, made.weights / 0.9, rtol=1e-3)


def test_a_strong_pull_leaves_the_weights() -> None:
    made = group()
    shrunk = Groups(made.weights, 0.81 * made.moments, 0.9 * made.cross, made.steps, made.ends)

    np.testing.assert_allclose(shrunk.target(1e9), made.weights, rtol=1e-6)


@pytest.mark.parametrize("columns", [1, 9])
def test_inputs_that_never_change_keep_weights_and_nearest_codes(columns: int) -> None:
    made = group(columns=columns)
    none = np.zeros((1, columns, columns))
    dead = Groups(made.weights, none, 0.0 * made.cross, made.steps, made.ends)

    codes, steps = rounded(dead, dead.target(0.01), SEARCH)

    np.testing.assert_array_equal(codes, dead.nearest())
    np.testing.assert_array_equal(steps, dead.steps)


def test_groups_do_not_feel_each_other() -> None:
    first, second = group(seed=1), group(seed=2)
    dead = Groups(first.weights, 0 * first.moments, 0 * first.cross, first.steps, first.ends)
    together = joined(first, dead, second)

    found = rounded(together, together.target(0.1), SEARCH)

    for place, one in enumerate((first, dead, second)):
        alone = rounded(one, one.target(0.1), SEARCH)
        np.testing.assert_array_equal(found[0][place], alone[0][0])
        np.testing.assert_allclose(found[1][place], alone[1][0], rtol=1e-12)
