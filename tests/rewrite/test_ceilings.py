"""Ranges above a Clip come down to it; those that serve other values too stay."""

import numpy as np
import onnx_ir as ir
import pytest

from onnxptq.recipe import Recipe
from onnxptq.rewrite.ceilings import fit_ceilings
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from tests.small_models import feeds_for, from_text, placed

RELU6 = """net (float[N, 4, 6, 6] x) => (float[N, 3, 3, 3] y)
<float zero = {0.0}, float six = {6.0}> {
  a = Conv (x, w1)
  r = Clip (a, zero, six)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r)
  y = Conv (p, w2)
}"""
TWO = """net (float[N, 4, 6, 6] x) => (float[N, 3, 6, 6] y)
<float zero = {0.0}, float six = {6.0}> {
  a = Conv (x, w1)
  r = Clip (a, zero, six)
  b = Conv (x, w2)
  s = Relu (b)
  c = Concat <axis = 1> (r, s)
  y = Conv (c, w3)
}"""


def too_wide(model: ir.Model, rng: np.random.Generator, name: str) -> Recipe:
    """A recipe whose range of `name`, and of what shares it, ends at 6.5."""
    recipe = placed(model, feeds_for(model, rng))
    root = recipe.tensors[name].tied_to or name
    return recipe.with_range(root, 0.0, 6.5, "test")


def clips(model: ir.Model, recipe: Recipe) -> list[str]:
    written = insert_qdq(model, recipe, Storage("int8"))
    return [str(node.name) for node in written.graph if node.op_type == "Clip"]


@pytest.fixture
def relu6(rng: np.random.Generator) -> ir.Model:
    return from_text(RELU6, rng, {"w1": (4, 4, 1, 1), "w2": (3, 4, 1, 1)})


def test_the_highest_code_of_relu6_means_6(relu6: ir.Model, rng: np.random.Generator):
    recipe = too_wide(relu6, rng, "r")

    fitted = fit_ceilings(relu6, recipe)

    assert clips(relu6, recipe) == ["r_Clip"]
    assert clips(relu6, fitted) == []
    assert fitted.tensors["r"].params.scale == np.float32(6 / 255)
    assert fitted.tensors["p"].params.scale == np.float32(6 / 255)


def test_a_range_below_the_ceiling_stays(relu6: ir.Model, rng: np.random.Generator):
    recipe = placed(relu6, feeds_for(relu6, rng))

    assert fit_ceilings(relu6, recipe).to_json() == recipe.to_json()


def test_a_range_that_another_value_shares_stays(rng: np.random.Generator):
    weights = {"w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1), "w3": (3, 8, 1, 1)}
    model = from_text(TWO, rng, weights)
    recipe = too_wide(model, rng, "r")

    assert fit_ceilings(model, recipe).to_json() == recipe.to_json()
