"""HardSigmoid on codes: the window it lets through, and the range its input needs."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxptq import ort
from onnxptq.quant import QParams, QuantSpec
from onnxptq.rewrite.gates import fit_gates, gate_codes
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from tests.cpus import needs_vnni
from tests.small_models import feeds_for, from_text, placed, sqnr_db

UINT8 = QuantSpec(8, signed=False)


def gate(alpha: float, beta: float) -> ir.Node:
    return ir.node("HardSigmoid", [ir.val("x")], {"alpha": alpha, "beta": beta}, name="gate")


def through_the_gate(node: ir.Node, x: QParams, codes: np.ndarray) -> np.ndarray:
    """What the codes of its input are worth behind the gate: clipped, and read anew."""
    found = gate_codes(node, x)
    clipped = np.clip(codes, int(found.params.code_lo), found.code_hi)
    return found.params.dequantize(clipped.astype(np.uint8))


@given(
    alpha=st.sampled_from([1 / 6, 0.2, 0.5, 1.0]),
    beta=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    lo=st.floats(-20, 0),
    hi=st.floats(0.5, 20),
)
def test_a_gate_on_codes_is_off_by_one_step_at_most(
    alpha: float, beta: float, lo: float, hi: float
):
    opens = -beta / alpha
    x = QParams.from_range(min(lo, opens), hi, UINT8)
    codes = np.arange(256)

    found = through_the_gate(gate(alpha, beta), x, codes)

    real = x.dequantize(codes.astype(np.uint8)).astype(np.float64)
    expected = np.clip(alpha * real + beta, 0, 1)
    step = alpha * float(x.scale)
    # Half a step each from the zero point and from where the gate is fully open.
    assert np.abs(found - expected).max() <= step * (1 + 1e-5)


def test_a_closed_gate_gives_exactly_zero():
    x = QParams.from_range(-8.0, 8.0, UINT8)

    found = through_the_gate(gate(1 / 6, 0.5), x, np.arange(40))

    assert set(found.tolist()) == {0.0}


def test_onnx_defaults_are_those_of_the_operator():
    bare = ir.node("HardSigmoid", [ir.val("x")], name="gate")
    x = QParams.from_range(-5.0, 5.0, UINT8)

    default, written = gate_codes(bare, x), gate_codes(gate(0.2, 0.5), x)

    assert int(default.params.zero_point) == int(written.params.zero_point)
    assert default.code_hi == written.code_hi


@pytest.mark.parametrize(
    ("lo", "hi", "widened"), [(-1.0, 4.0, True), (0.0, 4.0, True), (-5.0, 4.0, False)]
)
def test_an_input_range_reaches_to_where_the_gate_opens(
    lo: float, hi: float, widened: bool, rng: np.random.Generator
):
    model = from_text(
        """gate (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y) {
          a = Conv (x, w1)
          h = HardSigmoid <alpha = 0.2, beta = 0.5> (a)
          m = Mul (a, h)
          y = Conv (m, w2)
        }""",
        rng,
        {"w1": (4, 4, 1, 1), "w2": (3, 4, 1, 1)},
    )
    recipe = place(model, Placing()).with_range("a", lo, hi, "by hand")

    params = fit_gates(model, recipe).tensors["a"].params

    step = float(params.scale)
    assert abs(float(params.lo) - (-2.5 if widened else lo)) <= step
    assert abs(float(params.hi) - hi) <= step


def test_what_is_tied_to_a_gates_input_is_widened_with_it(rng: np.random.Generator):
    model = from_text(
        """gate (float[N, 4, 6, 6] x) => (float[N, 3, 3, 3] y) {
          a = Conv (x, w1)
          r = Relu (a)
          p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
          h = HardSigmoid <alpha = 0.2, beta = 0.5> (p)
          m = Mul (p, h)
          y = Conv (m, w2)
        }""",
        rng,
        {"w1": (4, 4, 1, 1), "w2": (3, 4, 1, 1)},
    )
    feeds = {"x": rng.normal(size=(2, 4, 6, 6)).astype(np.float32)}

    recipe = placed(model, feeds)

    pooled, made = recipe.tensors["p"].params, recipe.tensors["r"].params
    assert float(pooled.scale) == float(made.scale)
    assert int(pooled.zero_point) == int(made.zero_point)
    assert abs(float(pooled.lo) + 2.5) <= float(pooled.scale)


def test_a_gates_output_has_no_entry_of_its_own(rng: np.random.Generator):
    model = from_text(
        """gate (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y) {
          a = Conv (x, w1)
          h = HardSigmoid (a)
          m = Mul (a, h)
          y = Conv (m, w2)
        }""",
        rng,
        {"w1": (4, 4, 1, 1), "w2": (3, 4, 1, 1)},
    )

    assert set(place(model, Placing()).tensors) == {"x", "a", "m", "y", "w1", "w2"}


@needs_vnni
@pytest.mark.parametrize(
    "moved",
    [
        "r = Reshape (h, shape)",
        "r = Unsqueeze (h, axes)",
        "k = Unsqueeze (h, axes)\n r = Clip (k, zero, half)",
        "j = Concat <axis = 0> (h, h)\n k = Reshape (j, shape)\n r = Slice (k, zero64, one64)",
        "k = Gemm (h, w2)\n r = Reshape (k, shape)",
        "k = HardSigmoid (h)\n r = Reshape (k, shape)",
    ],
)
def test_a_gate_that_is_moved_before_it_is_used_stays_in_float(
    moved: str, rng: np.random.Generator
):
    model = from_text(
        f"""se (float[1, 4, 6, 6] x) => (float[1, 3, 6, 6] y)
        <int64[4] shape = {{-1, 4, 1, 1}}, int64[2] axes = {{2, 3}}, float zero = {{0.0}},
         float half = {{0.5}}, int64[1] zero64 = {{0}}, int64[1] one64 = {{1}}> {{
          a = Conv (x, w1)
          g = GlobalAveragePool (a)
          f = Flatten (g)
          s = Gemm (f, w2)
          h = HardSigmoid <alpha = 0.2, beta = 0.5> (s)
          {moved}
          m = Mul (a, r)
          y = Conv (m, w3)
        }}""",
        rng,
        {"w1": (4, 4, 1, 1), "w2": (4, 4), "w3": (3, 4, 1, 1)},
    )
    feeds = feeds_for(model, rng)
    recipe = placed(model, feeds)

    quantized = insert_qdq(model, recipe, Storage("int8"))

    assert any("moved or joined" in why for why in recipe.float_nodes.values())
    expected = ort.session(model).run(feeds)["y"]
    assert sqnr_db(expected, ort.session(quantized).run(feeds)["y"]) > 25
