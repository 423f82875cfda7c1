"""Products whose bias is as large as sums allow."""

import numpy as np
import pytest

from onnxptq import formulas, requant
from tests.runtime.small_programs import F, run_one

SHAPES = {"dense": (1, 24), "grouped": (2, 12), "depthwise": (24, 1)}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("side", [-1, 1])
def test_a_bias_near_the_end_of_int32_gives_the_codes_of_its_sums(
    name: str, side: int, rng: np.random.Generator
) -> None:
    groups, group_in = SHAPES[name]
    x = rng.integers(0, 256, (1, 4, 5, groups * group_in)).astype(np.uint8)
    filters, zero = groups * (1 if name == "depthwise" else 18), 200
    # Taking the zero point off takes the bias to the very end of int32.
    weight = np.full((filters, group_in, 1, 1), -side * 100, np.int8)
    reach = zero * 100 * group_in
    bias = np.full(filters, side * (2**31 - 1 - reach), np.int32)
    scale = F(2.0**-31 * 97.3) * np.ones(filters, F)
    found = requant.find(
        scale, 128, 0, 255, *sorted((bias[0] + side * reach, bias[0] - side * reach))
    )
    assert (found.form == requant.Form.FIXED_POINT).all()

    y = run_one(
        "conv",
        x,
        "uint8",
        attrs={"group": groups, "x_zero": zero, "channels_last": 1},
        arrays={"weight": weight, "weight_zero": np.zeros(1, np.int8), "bias": bias},
        requant=found,
    )

    grouped = (x.astype(np.int64) - zero).reshape(1, 4, 5, groups, group_in).sum(axis=-1)
    acc = np.repeat(grouped, filters // groups, axis=-1) * (-side * 100) + bias
    np.testing.assert_array_equal(y, formulas.requantized(acc, scale, 128, 0, 255))
