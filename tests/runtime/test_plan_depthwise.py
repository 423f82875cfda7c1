"""Depthwise layers whose scales are too large for the kernel's usual fixed point."""

import numpy as np
import pytest

from onnxptq import formulas, requant
from tests.runtime.small_programs import F, run_one

CHANNELS = 40


def sums(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Accumulators of 3x3 windows without pads, channels last."""
    h, w = x.shape[1] - 2, x.shape[2] - 2
    total = np.zeros((1, h, w, CHANNELS), np.int64)
    for i, j in np.ndindex(3, 3):
        total += x[:, i : i + h, j : j + w].astype(np.int64) * weight[:, 0, i, j]
    return total


@pytest.mark.parametrize("scale", [0.01, 0.49, 0.6, 1.0, 3.0, 7.0])
@pytest.mark.parametrize("most", [7, 127], ids=["weights with room", "weights without"])
@pytest.mark.parametrize("hi", [15, 255])
def test_codes_equal_the_formula(
    scale: float, most: int, hi: int, rng: np.random.Generator
) -> None:
    x = rng.integers(0, 16, (1, 5, 6, CHANNELS)).astype(np.uint8)
    weight = rng.integers(-most, most + 1, (CHANNELS, 1, 3, 3)).astype(np.int8)
    bias = rng.integers(-50, 50, CHANNELS).astype(np.int32)
    scales = F(scale) * rng.uniform(0.9, 1.0, CHANNELS).astype(F)
    reach = 15 * 9 * most + 50
    found = requant.find(scales, 3, 0, hi, -reach, reach)

    y = run_one(
        "conv",
        x,
        "uint8",
        attrs={"group": CHANNELS, "x_zero": 0, "channels_last": 1},
        arrays={"weight": weight, "weight_zero": np.zeros(1, np.int8), "bias": bias},
        requant=found,
    )

    acc = sums(x, weight) + bias
    np.testing.assert_array_equal(y, formulas.requantized(acc, scales, 3, 0, hi))
