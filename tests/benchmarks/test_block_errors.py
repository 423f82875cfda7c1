"""What is said of rounding a network's own sums."""

import numpy as np
import onnx_ir as ir
import pytest

from benchmarks import block_errors


def test_values_on_a_grid_lose_nothing() -> None:
    values = np.repeat(np.array([0.0, 1.0, 2.0, 3.0], np.float32), 5)

    assert block_errors.floor(values, levels=3) == pytest.approx(0.0, abs=1e-12)


def test_the_floor_of_even_values_is_a_twelfth_of_a_step() -> None:
    values = np.linspace(0, 1, 100_001, dtype=np.float32)

    # Rounded to 0, s, 2s and 3s with s = 2/7, all cells are as wide: the error is s^2 / 12 but for
    # the half cell at 0, which has that too; the mean square is 1/3.
    assert block_errors.floor(values, levels=3) == pytest.approx((2 / 7) ** 2 / 12 * 3, rel=1e-3)


def test_of_a_sum_that_is_clamped_what_comes_out_is_compared() -> None:
    total = ir.node("Add", [ir.val("a"), ir.val("b")], outputs=[ir.val("total")])
    relu = ir.node("Relu", total.outputs, outputs=[ir.val("clamped")])
    plain = ir.node("Add", [relu.outputs[0], ir.val("c")], outputs=[ir.val("plain")])

    assert [block_errors.coded(node) for node in (total, plain)] == ["clamped", "plain"]
