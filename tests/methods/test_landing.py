"""Landing: what Relu, Clip and the ends of the codes leave of a layer's output."""

import math

import numpy as np
import pytest

from onnxptq.methods.landing import Landing
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import lay_out, place, regions_of
from tests.small_models import from_text

TEXT = """
net (float[N, 4, 8, 8] x) => (float[N, 3] y) {
  a = Conv (x, w0, b0)
  r = Relu (a)
  b = Conv (r, w1, b1)
  low = Constant <value = float {-1.0}> ()
  high = Constant <value = float {6.0}> ()
  c = Clip (b, low, high)
  d = Conv (c, w2, b2)
  s = Add (d, c)
  p = GlobalAveragePool (s)
  f = Flatten (p)
  y = Gemm (f, w3, b3)
}
"""
SHAPES = {
    "w0": (5, 4, 1, 1),
    "b0": (5,),
    "w1": (5, 5, 1, 1),
    "b1": (5,),
    "w2": (5, 5, 1, 1),
    "b2": (5,),
    "w3": (5, 3),
    "b3": (3,),
}
INFINITE = (-math.inf, math.inf)


def landings() -> dict[str, Landing]:
    """Those of the layers by the name of their output; all codes reach from -2 to 4."""
    model = from_text(TEXT, np.random.default_rng(0), SHAPES)
    recipe: Recipe = place(model, Placing())
    params = QParams.from_range(-2.0, 4.0, QuantSpec(8, signed=False))
    activations = [t.value for t in recipe.activations() if t.tied_to is None]
    recipe = recipe.with_params(dict.fromkeys(activations, params), "test")
    layout = lay_out(model, regions_of(model, recipe))
    layers = {"a", "b", "d", "y"}
    made = {str(n.outputs[0].name): n for n in model.graph}
    return {name: Landing.of(made[name], recipe, layout) for name in layers}


def test_each_layer_lands_behind_the_clamp_that_follows_it() -> None:
    found = landings()

    assert found["a"].bounds == (0.0, math.inf)
    assert found["b"].bounds == (-1.0, 6.0)
    assert found["d"].bounds == INFINITE
    for name in "abd":
        assert found[name].codes == pytest.approx((-2.0, 4.0), abs=0.02)


def test_an_output_that_stays_real_is_not_clamped() -> None:
    assert landings()["y"] == Landing(INFINITE, INFINITE)


def test_what_is_wanted_is_clamped_by_the_network_and_what_is_found_by_codes_too() -> None:
    landing = Landing((0.0, math.inf), (-1.0, 4.0))
    real = np.array([-3.0, 2.0, 5.0], np.float32)

    assert landing.wanted(real).tolist() == [0.0, 2.0, 5.0]
    assert landing.found(real).tolist() == [0.0, 2.0, 4.0]
