"""What runs on integers and what does not, with the reason that people read."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.regions import AFTER_LAST, BETWEEN_FLOAT, split
from tests.small_models import array_of, from_text

INTEGER = "integer"


def fates(
    model: ir.Model, unusable: Mapping[str, str] | None = None, **choices: Any
) -> dict[str, str]:
    """First output of each node to the reason why it stays in float, or to INTEGER."""
    regions = split(model, Placing(**choices), unusable or {})
    fate = dict.fromkeys(regions.integer, INTEGER) | regions.reasons
    return {
        str(node.outputs[0].name): fate[str(node.name)]
        for node in model.graph
        if str(node.name) in fate
    }


@pytest.fixture
def chain(rng: np.random.Generator) -> ir.Model:
    return from_text(
        """chain (float[N, 4, 8, 8] x) => (float[N, 4, 4, 4] y) {
          a = Conv (x, w)
          r = Relu (a)
          p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
          y = Conv (p, w)
        }""",
        rng,
        {"w": (4, 4, 1, 1)},
    )


def test_a_chain_of_layers_is_wholly_integer(chain: ir.Model):
    assert set(fates(chain).values()) == {INTEGER}


@pytest.mark.parametrize("pattern", ["MaxPool", "Max*", "MaxPool_0"])
def test_what_the_user_asks_for_stays_in_float(pattern: str, chain: ir.Model):
    assert fates(chain, float_patterns=(pattern,)) == {
        "a": INTEGER,
        "r": INTEGER,
        "p": f"asked for by --float {pattern}",
        "y": INTEGER,
    }


def test_nodes_around_an_unusable_value_stay_in_float(chain: ir.Model):
    assert fates(chain, {"p": "value 'p' was NaN during calibration"}) == {
        "a": INTEGER,
        "r": INTEGER,
        "p": "value 'p' was NaN during calibration",
        "y": "value 'p' was NaN during calibration",
    }


def test_nothing_is_integer_where_all_layers_are_float(chain: ir.Model):
    asked = "asked for by --float Conv"

    found = fates(chain, float_patterns=("Conv",))

    assert found == {"a": asked, "r": BETWEEN_FLOAT, "p": BETWEEN_FLOAT, "y": asked}


def test_a_pool_without_any_layer_runs_on_codes(rng: np.random.Generator):
    model = from_text(
        """pool (float[N, 4, 8, 8] x) => (float[N, 4, 4, 4] y) {
          y = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
        }""",
        rng,
        {},
    )

    assert fates(model) == {"y": INTEGER}


def test_the_tail_behind_the_last_layer_stays_in_float(rng: np.random.Generator):
    model = from_text(
        """tail (float[N, 4] x) => (float[N, 4] y) {
          a = Gemm (x, w, b)
          s = Sigmoid (a)
          m = Mul (s, x)
          p = Softmax <axis = 1> (m)
          e = Exp (p)
          y = Sqrt (e)
        }""",
        rng,
        {"w": (4, 4), "b": (4,)},
    )

    assert fates(model) == {
        "a": INTEGER,
        "s": AFTER_LAST,
        "m": AFTER_LAST,
        "p": AFTER_LAST,
        "e": "onnxruntime has no integer kernel for Exp",
        "y": "onnxruntime has no integer kernel for Sqrt",
    }


def test_a_relu_behind_the_last_convolution_vanishes_into_its_codes(rng: np.random.Generator):
    model = from_text(
        """clamp (float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y) {
          a = Conv (x, w)
          y = Relu (a)
        }""",
        rng,
        {"w": (4, 4, 1, 1)},
    )

    assert fates(model) == {"a": INTEGER, "y": INTEGER}


def test_a_squeeze_and_excitation_block_is_wholly_integer(rng: np.random.Generator):
    model = from_text(
        """excite (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y) {
          a = Conv (x, w1)
          r = Relu (a)
          g = GlobalAveragePool (r)
          d = Conv (g, w2)
          dr = Relu (d)
          u = Conv (dr, w3)
          h = Sigmoid (u)
          m = Mul (r, h)
          y = Conv (m, w4)
        }""",
        rng,
        {"w1": (4, 4, 1, 1), "w2": (2, 4, 1, 1), "w3": (4, 2, 1, 1), "w4": (3, 4, 1, 1)},
    )

    assert set(fates(model).values()) == {INTEGER}


def test_layer_normalization_in_pieces_stays_in_float(rng: np.random.Generator):
    model = from_text(
        """norm (float[N, 6, 8] x) => (float[N, 6, 8] y) {
          a = MatMul (x, w1)
          axes = Constant <value_ints = [-1]> ()
          mean = ReduceMean <keepdims = 1> (a, axes)
          d = Sub (a, mean)
          two = Constant <value_float = 2.0> ()
          q = Pow (d, two)
          var = ReduceMean <keepdims = 1> (q, axes)
          tiny = Constant <value_float = 0.00001> ()
          e = Add (var, tiny)
          r = Sqrt (e)
          n = Div (d, r)
          m = Mul (n, gamma)
          z = Add (m, beta)
          y = MatMul (z, w2)
        }""",
        rng,
        {"w1": (8, 8), "w2": (8, 8), "gamma": (8,), "beta": (8,)},
    )

    found = fates(model)

    assert {name for name, fate in found.items() if fate == INTEGER} == {"a", "y"}
    for name, op in (("mean", "ReduceMean"), ("d", "Sub"), ("r", "Sqrt"), ("n", "Div")):
        assert found[name] == f"onnxruntime has no integer kernel for {op}"
    assert found["e"] == BETWEEN_FLOAT


def test_without_any_layer_arithmetic_is_the_core(rng: np.random.Generator):
    model = from_text(
        """sums (float[N, 4, 6, 6] x, float[N, 4, 6, 6] z) => (float[N, 4, 1, 1] y) {
          a = Add (x, z)
          r = Relu (a)
          y = GlobalAveragePool (r)
        }""",
        rng,
        {},
    )

    assert set(fates(model).values()) == {INTEGER}


def test_data_movers_alone_are_not_worth_it(rng: np.random.Generator):
    model = from_text(
        """moves (float[N, 4, 6, 6] x) => (float[N, 6, 6, 4] y) {
          r = Relu (x)
          y = Transpose <perm = [0, 2, 3, 1]> (r)
        }""",
        rng,
        {},
    )

    assert fates(model) == {"r": BETWEEN_FLOAT, "y": BETWEEN_FLOAT}


@pytest.mark.parametrize(
    ("body", "inputs", "why"),
    [
        ("y = Conv (x, w)", "float[2, 4, 1, 1] w", "its weight is computed at run time"),
        ("y = Conv (x, k, w)", "float[2] w", "its bias is computed at run time"),
        ("y = Clip (x, w)", "float w", "its bounds are computed at run time"),
        ("y = Exp (x)", "float w", "onnxruntime has no integer kernel for Exp"),
    ],
)
def test_a_node_that_cannot_be_integer_says_why(
    body: str, inputs: str, why: str, rng: np.random.Generator
):
    text = f"refused (float[1, 4, 5, 5] x, {inputs}) => (float[A, B, C, D] y) {{ {body} }}"
    model = from_text(text, rng, {"k": (2, 4, 1, 1)})

    assert fates(model) == {"y": why}


def test_double_precision_stays_in_float(rng: np.random.Generator):
    model = from_text(
        """double (double[N, 4] x) => (double[N, 4] y) {
          y = Add (x, x)
        }""",
        rng,
        {},
    )

    assert fates(model) == {"y": "its input 'x' is double, not float32"}


def set_infinite(model: ir.Model, name: str) -> None:
    array = array_of(model, name).copy()
    array.flat[1] = -np.inf
    model.graph.initializers[name].const_value = ir.tensor(array, name=name)


def test_an_infinite_constant_keeps_its_reader_in_float(rng: np.random.Generator):
    model = from_text(
        """masked (float[N, 6, 4] x) => (float[N, 6, 4] y) {
          a = MatMul (x, w)
          m = Add (a, mask)
          y = MatMul (m, w)
        }""",
        rng,
        {"w": (4, 4), "mask": (6, 1)},
    )
    set_infinite(model, "mask")

    why = "a constant it reads is infinite or NaN"
    assert fates(model) == {"a": INTEGER, "m": why, "y": INTEGER}


def test_an_infinite_bias_keeps_its_layer_in_float(rng: np.random.Generator):
    model = from_text(
        "biased (float[N, 4] x) => (float[N, 4] y) { y = Gemm (x, w, b) }",
        rng,
        {"w": (4, 4), "b": (4,)},
    )
    set_infinite(model, "b")

    assert fates(model) == {"y": "a constant it reads is infinite or NaN"}


def test_bodies_stay_in_float_and_do_not_stop_their_neighbours(rng: np.random.Generator):
    model = from_text(
        """branch (float[1, 4, 5, 5] x, bool flag) => (float[1, 4, 5, 5] y) {
          a = Conv (x, w)
          b = If (flag) <
            then_branch = yes () => (float[1, 4, 5, 5] t) { t = Exp (a) },
            else_branch = no () => (float[1, 4, 5, 5] e) { e = Identity (a) }
          >
          y = Conv (b, w)
        }""",
        rng,
        {"w": (4, 4, 1, 1)},
    )

    assert fates(model) == {"a": INTEGER, "b": "its body stays in float", "y": INTEGER}


def test_whole_numbers_are_no_business_of_ours(rng: np.random.Generator):
    model = from_text(
        """shape (float[N, 4, H, W] x) => (float[N, 4, H, W] y, int64[4] z) {
          z = Shape (x)
          y = Conv (x, w)
        }""",
        rng,
        {"w": (4, 4, 1, 1)},
    )

    assert fates(model) == {"y": INTEGER}
