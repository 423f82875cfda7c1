"""The written model is what the recipe says, and onnxruntime runs it in integers."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq import ort
from onnxptq.errors import SpecError
from onnxptq.graph import io, verify
from onnxptq.ops.nodes import scalar
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import place
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from onnxptq.rewrite.strip import strip
from onnxptq.rewrite.weights import fit_scales
from onnxptq.runtime.lint import lint
from tests.small_models import feeds_for, from_text, placed, sqnr_db

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


def codes_read_by(layer: ir.Node) -> str:
    """Name of the codes behind the DequantizeLinear in front of a layer."""
    dequantize = layer.predecessors()[0]
    assert dequantize.inputs[0] is not None
    return str(dequantize.inputs[0].name)


def op_types(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


@pytest.mark.parametrize("bits", ["w8a8", "w4a8", "w4a4", "w3a5", "w2a2"])
@pytest.mark.parametrize("storage", ["packed", "int8"])
def test_a_residual_network_runs_wholly_in_integers(
    residual: ir.Model, rng: np.random.Generator, bits: str, storage: str
):
    recipe = placed(residual, feeds_for(residual, rng), bits=bits)

    quantized = insert_qdq(residual, recipe, Storage.for_target(storage, None))

    verify.check(quantized)
    assert lint(quantized).float_nodes == ()
    assert "Relu" not in op_types(quantized)


@pytest.mark.parametrize("bits", ["w4a8", "w3a3", "w7a5"])
def test_packed_and_plain_storage_give_equal_outputs(
    residual: ir.Model, rng: np.random.Generator, bits: str
):
    feeds = feeds_for(residual, rng)
    recipe = placed(residual, feeds, bits=bits)

    packed, plain = (
        ort.session(insert_qdq(residual, recipe, Storage.for_target(kind, None))).run(feeds)
        for kind in ("packed", "int8")
    )

    np.testing.assert_array_equal(packed["logits"], plain["logits"])


def test_eight_bits_stay_close_to_float(residual: ir.Model, rng: np.random.Generator):
    feeds = feeds_for(residual, rng, batch=16)
    recipe = placed(residual, feeds)

    quantized = insert_qdq(residual, recipe, INT8)

    expected = ort.session(residual).run(feeds)["logits"]
    assert sqnr_db(expected, ort.session(quantized).run(feeds)["logits"]) > 30


def test_every_code_a_layer_reads_lies_in_its_window(residual: ir.Model, rng: np.random.Generator):
    feeds = feeds_for(residual, rng, batch=16)
    recipe = placed(residual, feeds, bits="w4a4", keep_first_last=False)
    quantized = insert_qdq(residual, recipe, INT8)
    read = [codes_read_by(node) for node in quantized.graph if node.op_type in ("Conv", "Gemm")]

    # Larger inputs than the calibration saw: only the window keeps the codes low.
    larger = {name: 3 * array for name, array in feeds.items()}
    codes = ort.session(ort.with_outputs(quantized, read)).run(larger, read)

    assert len(codes) == 5
    assert all(array.dtype == np.uint8 for array in codes.values())
    assert max(int(array.max()) for array in codes.values()) == 15


def test_a_window_away_from_the_ends_of_the_container_stays_fused(
    residual: ir.Model, rng: np.random.Generator
):
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
    assert [scalar(bound) for bound in clip.inputs[1:]] == [40, 55]


def test_first_and_last_layer_keep_8_bits_unless_told_otherwise(residual: ir.Model):
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


def test_brecqs_convention_keeps_the_second_input_at_8_bits(residual: ir.Model):
    recipe = place(residual, Placing(bits="w4a4", second_input_8=True))

    assert recipe.tensors["ar"].params.spec.bits == 8
    assert recipe.tensors["cr"].params.spec.bits == 4


def test_a_pattern_sets_the_bits_of_one_layer(residual: ir.Model):
    name = next(str(node.name) for node in residual.graph if node.outputs[0].name == "c")

    recipe = place(residual, Placing(bits="w8a8", layer_bits=(f"{name}=w3a5", "e=a6")))

    assert recipe.tensors["w1"].params.spec.bits == 3
    assert recipe.tensors["ar"].params.spec.bits == 5
    assert recipe.tensors["w2"].params.spec.bits == 8


def test_a_pattern_that_matches_nothing_is_refused(residual: ir.Model):
    with pytest.raises(SpecError, match="layer bits pattern 'conv9' matches no node"):
        place(residual, Placing(layer_bits=("conv9=w4",)))
    with pytest.raises(SpecError, match="float pattern 'Conf' matches no node name"):
        place(residual, Placing(float_patterns=("Conf",)))


def test_a_layer_asked_to_stay_in_float_does(residual: ir.Model, rng: np.random.Generator):
    feeds = feeds_for(residual, rng)
    name = next(str(node.name) for node in residual.graph if node.outputs[0].name == "c")
    recipe = placed(residual, feeds, float_patterns=(name,))

    quantized = insert_qdq(residual, recipe, INT8)

    found = lint(quantized)
    assert [(row.node, row.op) for row in found.float_nodes] == [(name, "Conv")]
    assert found.float_nodes[0].why == f"asked for by --float {name}"


def test_the_way_back_gives_the_same_bytes(residual: ir.Model, rng: np.random.Generator):
    for bits in ("w8a8", "w4a4", "w3a8"):
        recipe = placed(residual, feeds_for(residual, rng), bits=bits)
        quantized = insert_qdq(residual, recipe, Storage("packed"))

        float_model, found = strip(quantized)

        assert io.to_bytes(insert_qdq(float_model, found, Storage("packed"))) == io.to_bytes(
            quantized
        )


def test_a_saved_recipe_gives_the_same_bytes(residual: ir.Model, rng: np.random.Generator):
    recipe = placed(residual, feeds_for(residual, rng), bits="w4a4")

    loaded = Recipe.from_json(recipe.to_json())

    assert loaded.to_json() == recipe.to_json()
    assert io.to_bytes(insert_qdq(residual, loaded, INT8)) == io.to_bytes(
        insert_qdq(residual, recipe, INT8)
    )


def test_a_recipe_for_another_model_is_refused(residual: ir.Model, rng: np.random.Generator):
    recipe = placed(residual, feeds_for(residual, rng))

    with pytest.raises(SpecError, match="the recipe was made for another model"):
        insert_qdq(residual, replace(recipe, model_digest="0" * 64), INT8)


def test_a_recipe_without_ranges_is_refused(residual: ir.Model):
    with pytest.raises(SpecError, match="the recipe has no range for"):
        insert_qdq(residual, place(residual, Placing()), INT8)


def test_fit_scales_leaves_ordinary_layers_alone(residual: ir.Model, rng: np.random.Generator):
    recipe = placed(residual, feeds_for(residual, rng))

    again = fit_scales(residual, recipe)

    assert again.to_json() == recipe.to_json()


def test_uint8_is_what_activations_are_and_int8_what_weights_are(residual: ir.Model):
    recipe = place(residual, Placing())

    assert all(t.params.spec == QuantSpec(8, signed=False) for t in recipe.activations())
    assert {t.params.spec.signed for t in recipe.weights()} == {True}
    assert {t.value: t.params.spec.axis for t in recipe.weights()}["w4"] == 0
