"""Weights and biases as integers: dead channels, overflowing biases, what layers share."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq import ort
from onnxptq.errors import ProgramError
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from onnxptq.runtime.lint import lint
from tests.small_models import array_of, feeds_for, from_text, placed, sqnr_db

INT8 = Storage("int8")


def test_a_dead_channel_holds_its_bias(rng: np.random.Generator):
    model = from_text(
        "dead (float[1, 4, 5, 5] x) => (float[1, 2, 5, 5] y) { y = Conv (x, w, b) }",
        rng,
        {"w": (2, 4, 1, 1), "b": (2,)},
    )
    weight = array_of(model, "w").copy()
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


def test_a_bias_too_large_for_its_scale_raises_the_scale(rng: np.random.Generator):
    model = from_text(
        "big (float[1, 4, 5, 5] x) => (float[1, 2, 5, 5] y) { y = Conv (x, w, b) }",
        rng,
        {"w": (2, 4, 1, 1), "b": (2,)},
    )
    weight = array_of(model, "w").copy()
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


def test_a_bias_that_does_not_fit_is_an_error_not_a_wrap(rng: np.random.Generator):
    model = from_text(
        "big (float[1, 4, 5, 5] x) => (float[1, 2, 5, 5] y) { y = Conv (x, w, b) }",
        rng,
        {"w": (2, 4, 1, 1), "b": (2,)},
    )
    recipe = placed(model, feeds_for(model, rng))
    tiny = recipe.tensors["w"].params.with_scale(np.full(2, 1e-12))

    with pytest.raises(ProgramError, match="its bias needs the code"):
        insert_qdq(model, recipe.with_params({"w": tiny}, "by hand"), INT8)


def test_weights_and_biases_shared_by_two_layers_are_split_where_scales_differ(
    rng: np.random.Generator,
):
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
