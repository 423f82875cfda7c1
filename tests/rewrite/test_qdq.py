"""The written model is what the recipe says, and onnxruntime runs it in integers."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq import ort
from onnxptq.errors import ProgramError, SpecError
from onnxptq.graph import io, verify
from onnxptq.ops.nodes import constant
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from onnxptq.rewrite.strip import strip
from onnxptq.rewrite.weights import fit_scales
from onnxptq.runtime.lint import lint
from tests.models import feeds_for, from_text, placed, sqnr_db

INT8 = Storage("int8")

RESIDUAL = """
residual (float[N, 3, 8, 8] x) => (float[N, 10] logits) {
  a = Conv <pads = [1, 1, 1, 1]> (x, w0, b0)
  ar = Relu (a)
  c = Conv <pads = [1, 1, 1, 1]> (ar, w1, b1)
  cr = Relu (c)
  d = Conv (cr, w2)
  s = Add (d, ar)
  sr = Relu (s)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (sr)
  e = Conv <group = 16, pads = [1, 1, 1, 1]> (p, w3, b3)
  six = Constant <value_float = 6.0> ()
  zero = Constant <value_float = 0.0> ()
  er = Clip (e, zero, six)
  g = GlobalAveragePool (er)
  f = Flatten (g)
  logits = Gemm <transB = 1> (f, w4, b4)
}
"""
RESIDUAL_WEIGHTS = {
    "w0": (16, 3, 3, 3), "b0": (16,), "w1": (16, 16, 3, 3), "b1": (16,), "w2": (16, 16, 1, 1),
    "w3": (16, 1, 3, 3), "b3": (16,), "w4": (10, 16), "b4": (10,),
}  # fmt: skip


@pytest.fixture
def residual(rng: np.random.Generator) -> ir.Model:
    return from_text(RESIDUAL, rng, RESIDUAL_WEIGHTS)


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4", "w3a5", "w2a2"])
@pytest.mark.parametrize("storage", ["packed", "int8"])
def test_a_residual_network_runs_wholly_in_integers(residual, rng, bits: str, storage: str):
    recipe = placed(residual, feeds_for(residual, rng), bits=bits)

    quantized = insert_qdq(residual, recipe, Storage(storage))  # type: ignore[arg-type]

    verify.check(quantized)
    assert lint(quantized).float_nodes == ()
    assert "Relu" not in op_types(quantized)


@pytest.mark.parametrize("bits", ["w4a8", "w3a3", "w7a5"])
def test_packed_and_plain_storage_give_equal_outputs(residual, rng, bits: str):
    feeds = feeds_for(residual, rng)
    recipe = placed(residual, feeds, bits=bits)

    packed, plain = (
        ort.session(insert_qdq(residual, recipe, Storage(kind))).run(feeds)["logits"]  # type: ignore[arg-type]
        for kind in ("packed", "int8")
    )

    np.testing.assert_array_equal(packed, plain)


def test_eight_bits_stay_close_to_float(residual, rng):
    feeds = feeds_for(residual, rng, batch=16)
    recipe = placed(residual, feeds)

    quantized = insert_qdq(residual, recipe, INT8)

    expected = ort.session(residual).run(feeds)["logits"]
    assert sqnr_db(expected, ort.session(quantized).run(feeds)["logits"]) > 30


def test_every_code_a_layer_reads_lies_in_its_window(residual, rng):
    feeds = feeds_for(residual, rng, batch=16)
    recipe = placed(residual, feeds, bits="w4a4", keep_first_last=False)
    quantized = insert_qdq(residual, recipe, INT8)
    read = [
        str(node.inputs[0].producer().inputs[0].name)
        for node in quantized.graph
        if node.op_type in ("Conv", "Gemm")
    ]

    # Larger inputs than the calibration saw: only the window keeps the codes low.
    larger = {name: 3 * array for name, array in feeds.items()}
    codes = ort.session(ort.with_outputs(quantized, read)).run(larger, read)

    assert len(codes) == 5
    assert all(array.dtype == np.uint8 for array in codes.values())
    assert max(int(array.max()) for array in codes.values()) == 15


def test_a_window_away_from_the_ends_of_the_container_stays_fused(residual, rng):
    feeds = feeds_for(residual, rng)
    recipe = placed(residual, feeds, bits="w4a4")
    tuned = recipe.tensors["cr"].params
    moved = QParams(
        tuned.spec, tuned.scale, np.int32(32) + 0 * tuned.zero_point, tuned.code_lo + 40
    )
    recipe = recipe.with_params({"cr": moved}, "by hand")

    quantized = insert_qdq(residual, recipe, INT8)

    assert lint(quantized).float_nodes == ()
    clip = next(node for node in quantized.graph if node.name == "cr_Clip")
    assert [int(constant(bound)) for bound in clip.inputs[1:]] == [40, 55]


def test_first_and_last_layer_keep_8_bits_unless_told_otherwise(residual):
    kept = place(residual, Placing(bits="w4a4"))
    low = place(residual, Placing(bits="w4a4", keep_first_last=False))

    def bits(recipe: Recipe) -> dict[str, int]:
        return {name: tensor.params.spec.bits for name, tensor in recipe.tensors.items()}

    assert bits(kept) == {
        "x": 8, "w0": 8, "ar": 4, "w1": 4, "cr": 4, "w2": 4, "d": 8, "sr": 4, "p": 4, "w3": 4,
        "er": 8, "g": 8, "f": 8, "w4": 8,
    }  # fmt: skip
    assert bits(low) == {
        "x": 4, "w0": 4, "ar": 4, "w1": 4, "cr": 4, "w2": 4, "d": 8, "sr": 4, "p": 4, "w3": 4,
        "er": 8, "g": 4, "f": 4, "w4": 4,
    }  # fmt: skip


def test_brecqs_convention_keeps_the_second_input_at_8_bits(residual):
    recipe = place(residual, Placing(bits="w4a4", second_input_8=True))

    assert recipe.tensors["ar"].params.spec.bits == 8
    assert recipe.tensors["cr"].params.spec.bits == 4


def test_a_pattern_sets_the_bits_of_one_layer(residual):
    name = next(str(node.name) for node in residual.graph if node.outputs[0].name == "c")

    recipe = place(residual, Placing(bits="w8a8", layer_bits=(f"{name}=w3a5", "e=a6")))

    assert recipe.tensors["w1"].params.spec.bits == 3
    assert recipe.tensors["ar"].params.spec.bits == 5
    assert recipe.tensors["w2"].params.spec.bits == 8


def test_a_pattern_that_matches_nothing_is_refused(residual):
    with pytest.raises(SpecError, match="layer bits pattern 'conv9' matches no node"):
        place(residual, Placing(layer_bits=("conv9=w4",)))
    with pytest.raises(SpecError, match="float pattern 'Conf' matches no node name"):
        place(residual, Placing(float_patterns=("Conf",)))


def test_a_layer_asked_to_stay_in_float_does(residual, rng):
    feeds = feeds_for(residual, rng)
    name = next(str(node.name) for node in residual.graph if node.outputs[0].name == "c")
    recipe = placed(residual, feeds, float_patterns=(name,))

    quantized = insert_qdq(residual, recipe, INT8)

    found = lint(quantized)
    assert [(row.node, row.op) for row in found.float_nodes] == [(name, "Conv")]
    assert found.float_nodes[0].why == f"asked for by --float {name}"


def test_the_way_back_gives_the_same_bytes(residual, rng):
    for bits in ("w8a8", "w4a4", "w3a8"):
        recipe = placed(residual, feeds_for(residual, rng), bits=bits)
        quantized = insert_qdq(residual, recipe, Storage("packed"))

        float_model, found = strip(quantized)

        assert io.to_bytes(insert_qdq(float_model, found, Storage("packed"))) == io.to_bytes(
            quantized
        )


def test_a_saved_recipe_gives_the_same_bytes(residual, rng):
    recipe = placed(residual, feeds_for(residual, rng), bits="w4a4")

    loaded = Recipe.from_json(recipe.to_json())

    assert loaded.to_json() == recipe.to_json()
    assert io.to_bytes(insert_qdq(residual, loaded, INT8)) == io.to_bytes(
        insert_qdq(residual, recipe, INT8)
    )


def test_a_recipe_for_another_model_is_refused(residual, rng):
    recipe = placed(residual, feeds_for(residual, rng))

    with pytest.raises(SpecError, match="the recipe was made for another model"):
        insert_qdq(residual, replace(recipe, model_digest="0" * 64), INT8)


def test_a_recipe_without_ranges_is_refused(residual):
    with pytest.raises(SpecError, match="the recipe has no range for"):
        insert_qdq(residual, place(residual, Placing()), INT8)


def test_a_dead_channel_holds_its_bias(rng):
    model = from_text(
        "dead (float[1, 4, 5, 5] x) => (float[1, 2, 5, 5] y) { y = Conv (x, w, b) }",
        rng,
        {"w": (2, 4, 1, 1), "b": (2,)},
    )
    weight = constant(model.graph.initializers["w"]).copy()
    weight[0] = 0
    for name, array in (("w", weight), ("b", np.array([0.5, -0.25], np.float32))):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    feeds = feeds_for(model, rng)
    recipe = placed(model, feeds)

    quantized = insert_qdq(model, recipe, INT8)

    found = ort.session(quantized).run(feeds)["y"]
    step = float(recipe.tensors["y"].params.scale)
    assert np.abs(found[:, 0] - 0.5).max() <= step / 2
    assert lint(quantized).float_nodes == ()


def test_a_bias_too_large_for_its_scale_raises_the_scale(rng):
    model = from_text(
        "big (float[1, 4, 5, 5] x) => (float[1, 2, 5, 5] y) { y = Conv (x, w, b) }",
        rng,
        {"w": (2, 4, 1, 1), "b": (2,)},
    )
    weight = constant(model.graph.initializers["w"]).copy()
    weight[0] *= 1e-9
    for name, array in (("w", weight), ("b", np.array([50.0, 0.0], np.float32))):
        model.graph.initializers[name].const_value = ir.tensor(array, name=name)
    feeds = feeds_for(model, rng)

    recipe = placed(model, feeds)

    x, w = recipe.tensors["x"].params, recipe.tensors["w"].params
    code = 50.0 / float(np.float32(x.scale * w.scale[0]))
    reach = int(np.abs(w.quantize(weight)[0].astype(int)).sum()) * 255
    assert 2**30 < code + reach <= 2**31 - 1
    expected = ort.session(model).run(feeds)["y"]
    found = ort.session(insert_qdq(model, recipe, INT8)).run(feeds)["y"]
    assert sqnr_db(expected, found) > 35


def test_a_bias_that_does_not_fit_is_an_error_not_a_wrap(rng):
    model = from_text(
        "big (float[1, 4, 5, 5] x) => (float[1, 2, 5, 5] y) { y = Conv (x, w, b) }",
        rng,
        {"w": (2, 4, 1, 1), "b": (2,)},
    )
    recipe = placed(model, feeds_for(model, rng))
    tiny = recipe.tensors["w"].params.with_scale(np.full(2, 1e-12))

    with pytest.raises(ProgramError, match="its bias needs the code"):
        insert_qdq(model, recipe.with_params({"w": tiny}, "by hand"), INT8)


def test_weights_and_biases_shared_by_two_layers_are_split_where_scales_differ(rng):
    model = from_text(
        """shared (float[1, 4, 5, 5] x) => (float[1, 4, 5, 5] z) {
          y = Conv (x, w, b)
          r = Relu (y)
          z = Conv (r, w, b)
        }""",
        rng,
        {"w": (4, 4, 1, 1), "b": (4,)},
    )
    feeds = feeds_for(model, rng)

    quantized = insert_qdq(model, placed(model, feeds), INT8)

    names = set(quantized.graph.initializers)
    assert len([name for name in names if name.startswith("w_quantized")]) == 1
    assert (
        len([name for name in names if name.endswith("_quantized") and name.startswith("b")]) == 2
    )
    expected = ort.session(model).run(feeds)["z"]
    assert sqnr_db(expected, ort.session(quantized).run(feeds)["z"]) > 30
    assert lint(quantized).float_nodes == ()


def test_graph_outputs_keep_their_names_and_types(rng):
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


def test_a_body_that_reads_a_quantized_value_gets_its_real_numbers(rng):
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


def test_concat_inputs_that_nobody_else_reads_share_its_parameters(rng):
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


def test_the_shortcut_of_cifar_resnets_is_written_on_codes(rng):
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


def test_what_follows_the_last_layer_stays_in_float(rng):
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


def test_fit_scales_leaves_ordinary_layers_alone(residual, rng):
    recipe = placed(residual, feeds_for(residual, rng))

    again = fit_scales(residual, recipe)

    assert again.to_json() == recipe.to_json()


def test_uint8_is_what_activations_are_and_int8_what_weights_are(residual):
    recipe = place(residual, Placing())

    assert all(t.params.spec == QuantSpec(8, signed=False) for t in recipe.activations())
    assert {t.params.spec.signed for t in recipe.weights()} == {True}
    assert {t.value: t.params.spec.axis for t in recipe.weights()}["w4"] == 0


def test_hard_swish_runs_on_codes(rng):
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


def test_a_gate_whose_input_never_closes_it_still_has_a_code_for_zero(rng):
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


def test_pads_computed_at_run_time_are_read_after_they_are_computed(rng):
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
