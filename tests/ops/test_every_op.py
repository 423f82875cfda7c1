"""All rows of OPS through the claims of their records, with no test written by hand."""

import numpy as np
import pytest

from onnxptq import ort
from onnxptq.ops import OPS
from onnxptq.ops.op import Case, Op
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe, Role, TensorQuant
from onnxptq.rewrite.options import Placing
from onnxptq.rewrite.place import lay_out, place, regions_of
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.storage import Storage
from onnxptq.runtime.lint import lint
from tests.small_models import feeds_for, one_node, sqnr_db, with_ranges

ROWS = [
    pytest.param(op, case, id=f"{op.type}-{position}")
    for op in OPS.values()
    for position, case in enumerate(op.cases)
]

EIGHT_BIT_SQNR_DB = 25.0
"""Normal data in 8 bits give 30 to 45 dB; a wrong scale, zero point or axis falls below 15."""


def everything_quantized(op: Op, case: Case, rng: np.random.Generator):
    """The model of a case, its feeds, and a recipe that quantizes the node in any case."""
    model = one_node(op, case, rng)
    feeds = feeds_for(model, rng)
    proposed = place(model, Placing())
    recipe = Recipe(proposed.model_digest, proposed.tensors)
    layout = lay_out(model, regions_of(model, recipe))
    tensors = dict(recipe.tensors)
    if not tensors:
        # place leaves a lone data mover in float; here it is asked to run on codes.
        for name in layout.values:
            tied = "x" if op.rule.tied and "x" in layout.values and name != "x" else None
            unit = QParams.unit(QuantSpec(8, signed=False))
            tensors[name] = TensorQuant(name, Role.ACTIVATION, unit, tied)
        recipe = Recipe(proposed.model_digest, tensors)
    return model, feeds, with_ranges(model, recipe, feeds)


@pytest.mark.parametrize(("op", "case"), ROWS)
def test_onnxruntime_runs_the_node_on_codes(op: Op, case: Case, rng: np.random.Generator):
    model, _, recipe = everything_quantized(op, case, rng)

    found = lint(insert_qdq(model, recipe, Storage("int8")))

    assert found.float_nodes == ()
    assert len(found.integer_nodes) >= 1 or op.type in ("Relu", "Clip")


@pytest.mark.parametrize(("op", "case"), ROWS)
def test_the_quantized_node_computes_the_same_up_to_rounding(
    op: Op, case: Case, rng: np.random.Generator
):
    model, feeds, recipe = everything_quantized(op, case, rng)
    quantized = insert_qdq(model, recipe, Storage("int8"))

    expected = ort.session(model).run(feeds)
    found = ort.session(quantized).run(feeds)

    assert list(found) == list(expected)
    for name in expected:
        assert sqnr_db(expected[name], found[name]) > EIGHT_BIT_SQNR_DB


def test_the_table_is_keyed_by_onnx_names():
    assert all(name == op.type for name, op in OPS.items())
    assert all(op.cases for op in OPS.values())
