"""Searches of kernels/numeric.py, whose results may differ from the twin's by equally good ones."""

import numpy as np
import pytest

from onnxptq.kernels import numeric

SHRINKS = np.append(np.linspace(1.0, 0.05, 96), 0.5).astype(np.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [9, 64, 577])
def test_weight_search_is_as_good_as_trying_everything(bits: int, size: int) -> None:
    rows = np.random.default_rng(bits).standard_normal((20, size)).astype(np.float32)
    top = 127 if bits == 8 else (1 << (bits - 1)) - 1
    grids = np.asarray([[-top - 1, top], [-top, top + 1]], np.int32)[: 1 if bits == 8 else 2]
    results = []
    for search in (numeric.search_weights, numeric.search_weights_naive):
        scales, chosen = np.empty(20, np.float32), np.empty(20, np.int32)
        search(rows, SHRINKS, grids, 2.4, scales, chosen)
        low, high = grids[chosen, 0], grids[chosen, 1]
        codes = np.clip(np.rint(rows / scales[:, None]), low[:, None], high[:, None])
        results.append((np.abs(rows - codes * scales[:, None]).astype(np.float64) ** 2.4).sum())

    fast, all_tried = results

    # Every third shrink, then the neighbours: the curve has small dents where K is small.
    assert fast <= all_tried * (1.02 if size > 9 else 1.3)


def test_divergence_search_takes_the_larger_of_equal_reaches() -> None:
    counts = np.zeros(64)
    counts[30:34] = 1.0

    reach = numeric.search_divergence(counts, 32, np.array([4, 8, 16, 32]), 256)

    assert reach == 32


@pytest.mark.parametrize("top", [0.0, 1e-45, 1e-30, 0.9999, 1.0, 1.0001, 3.4e38])
def test_exponent_is_the_smallest_whose_bins_reach_the_value(top: float) -> None:
    exponent = numeric.exponent_for(top, 64)

    assert top < 64 * 2.0**exponent
    assert exponent == numeric.LOWEST_EXPONENT or top >= 64 * 2.0 ** (exponent - 1)
