"""Graphs with something special in them: branches, gates, bodies, pads, heads."""

import numpy as np

from onnxptq import ort
from onnxptq.graph import io, verify
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from onnxptq.rewrite.strip import strip
from onnxptq.runtime.lint import lint
from tests.small_models import feeds_for, from_text, placed, sqnr_db

INT8 = Storage("int8")


def test_graph_outputs_keep_their_names_and_types(rng: np.random.Generator):
    model = from_text(
        """two (float[N, 4, 5, 5] x) => (float[N, 4, 5, 5] y, float[N, 4, 5, 5] z) {
          y = Conv (x, w)
          r = Relu (y)
          z = Conv (r, w)
        }""",
        rng,
        {"w": (4, 4, 1, 1)},
    )
    feeds = feeds_for(model, rng)

    quantized = insert_qdq(model, placed(model, feeds), INT8)

    session = ort.session(quantized)
    assert [(port.name, port.dtype, port.shape) for port in session.outputs] == [
        (port.name, port.dtype, port.shape) for port in ort.session(model).outputs
    ]
    assert lint(quantized).float_nodes == ()


def test_a_body_that_reads_a_quantized_value_gets_its_real_numbers(rng: np.random.Generator):
    model = from_text(
        """branch (float[1, 4, 5, 5] x, bool flag) => (float[1, 4, 5, 5] z) {
          y = Conv (x, w)
          r = Relu (y)
          z = If (flag) <
            then_branch = yes () => (float[1, 4, 5, 5] a) { a = Add (r, r) },
            else_branch = no () => (float[1, 4, 5, 5] b) { b = Identity (r) }
          >
        }""",
        rng,
        {"w": (4, 4, 1, 1)},
    )
    feeds = {"x": rng.normal(size=(1, 4, 5, 5)).astype(np.float32), "flag": np.array(True)}
    recipe = placed(model, feeds)

    quantized = insert_qdq(model, recipe, INT8)

    expected = ort.session(model).run(feeds)["z"]
    assert sqnr_db(expected, ort.session(quantized).run(feeds)["z"]) > 30
    assert list(recipe.float_nodes.values()) == ["its body stays in float"]


def test_concat_inputs_that_nobody_else_reads_share_its_parameters(rng: np.random.Generator):
    model = from_text(
        """fire (float[1, 4, 6, 6] x) => (float[1, 3, 6, 6] y) {
          a = Conv (x, w1)
          ar = Relu (a)
          b = Conv (x, w2)
          br = Relu (b)
          c = Concat <axis = 1> (ar, br)
          y = Conv (c, w3)
        }""",
        rng,
        {"w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1), "w3": (3, 8, 1, 1)},
    )

    recipe = place(model, Placing(bits="w4a4", keep_first_last=False))

    assert {name: recipe.tensors[name].tied_to for name in ("ar", "br", "c")} == {
        "ar": "c", "br": "c", "c": None,
    }  # fmt: skip


def test_the_shortcut_of_cifar_resnets_is_written_on_codes(rng: np.random.Generator):
    model = from_text(
        """shortcut (float[N, 4, 8, 8] x) => (float[N, 2, 4, 4] y) {
          a = Conv (x, w1)
          ar = Relu (a)
          starts = Constant <value_ints = [0, 0]> ()
          ends = Constant <value_ints = [99, 99]> ()
          axes = Constant <value_ints = [2, 3]> ()
          steps = Constant <value_ints = [2, 2]> ()
          cut = Slice (ar, starts, ends, axes, steps)
          pads = Constant <value_ints = [0, 2, 0, 0, 0, 2, 0, 0]> ()
          padded = Pad (cut, pads)
          b = Conv <strides = [2, 2]> (ar, w2)
          s = Add (padded, b)
          y = Conv (s, w3)
        }""",
        rng,
        {"w1": (4, 4, 1, 1), "w2": (8, 4, 1, 1), "w3": (2, 8, 1, 1)},
    )
    feeds = feeds_for(model, rng)

    quantized = insert_qdq(model, placed(model, feeds), INT8)

    assert lint(quantized).float_nodes == ()
    expected = ort.session(model).run(feeds)["y"]
    assert sqnr_db(expected, ort.session(quantized).run(feeds)["y"]) > 30


def test_what_follows_the_last_layer_stays_in_float(rng: np.random.Generator):
    model = from_text(
        """head (float[N, 4] x) => (float[N, 3] p) {
          y = Gemm (x, w, b)
          p = Softmax <axis = 1> (y)
        }""",
        rng,
        {"w": (4, 3), "b": (3,)},
    )
    feeds = feeds_for(model, rng)
    recipe = placed(model, feeds)

    found = lint(insert_qdq(model, recipe, INT8))

    assert [(row.op, row.inside) for row in found.float_nodes] == [("Softmax", False)]
    assert len(found.integer_nodes) == 1
    assert "y" not in recipe.tensors


def test_hard_swish_runs_on_codes(rng: np.random.Generator):
    model = from_text(
        """swish (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y) {
          a = Conv (x, w1)
          h = HardSwish (a)
          y = Conv (h, w2)
        }""",
        rng,
        {"w1": (4, 4, 1, 1), "w2": (3, 4, 1, 1)},
    )
    feeds = {"x": 4 * rng.normal(size=(4, 4, 6, 6)).astype(np.float32)}
    recipe = placed(model, feeds)

    quantized = insert_qdq(model, recipe, INT8)

    assert lint(quantized).float_nodes == ()
    expected = ort.session(model).run(feeds)["y"]
    assert sqnr_db(expected, ort.session(quantized).run(feeds)["y"]) > 30
    float_model, found = strip(quantized)
    assert io.to_bytes(insert_qdq(float_model, found, INT8)) == io.to_bytes(quantized)


def test_a_gate_whose_input_never_closes_it_still_has_a_code_for_zero(rng: np.random.Generator):
    model = from_text(
        """gate (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y) {
          a = Conv (x, w1)
          r = Relu (a)
          h = HardSigmoid <alpha = 0.2, beta = 0.5> (r)
          m = Mul (r, h)
          y = Conv (m, w2)
        }""",
        rng,
        {"w1": (4, 4, 1, 1), "w2": (3, 4, 1, 1)},
    )
    feeds = feeds_for(model, rng)

    recipe = placed(model, feeds)

    step = float(recipe.tensors["r"].params.scale)
    assert abs(float(recipe.tensors["r"].params.lo) - -2.5) <= step
    expected = ort.session(model).run(feeds)["y"]
    found = ort.session(insert_qdq(model, recipe, INT8)).run(feeds)["y"]
    assert sqnr_db(expected, found) > 30


def test_pads_computed_at_run_time_are_read_after_they_are_computed(rng: np.random.Generator):
    model = from_text(
        """late (float[N, 4, 6, 6] x, int64[8] more) => (float[N, 3, P, Q] y) {
          a = Conv (x, w1)
          pads = Add (more, more)
          p = Pad (a, pads)
          y = Conv (p, w2)
        }""",
        rng,
        {"w1": (4, 4, 1, 1), "w2": (3, 4, 1, 1)},
    )
    feeds = {
        "x": rng.normal(size=(2, 4, 6, 6)).astype(np.float32),
        "more": np.array([0, 0, 1, 0, 0, 0, 0, 1], np.int64),
    }

    quantized = insert_qdq(model, placed(model, feeds), INT8)

    verify.check(quantized)
    expected = ort.session(model).run(feeds)["y"]
    assert sqnr_db(expected, ort.session(quantized).run(feeds)["y"]) > 30
