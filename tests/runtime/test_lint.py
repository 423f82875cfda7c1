"""lint names what runs in float and why, and what another machine or version would do."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxptq.errors import ModelError, SpecError
from onnxptq.graph import io
from onnxptq.rewrite.qdq import insert_qdq
from onnxptq.rewrite.regions import AFTER_LAST
from onnxptq.rewrite.storage import Storage
from onnxptq.runtime.lint import FloatNode, lint
from tests.small_models import feeds_for, from_text, placed

QDQ = """
<ir_version: 10, opset_import: ["": 21]>
other (float[N, 2, 5, 5] x) => (float[N, 2, 5, 5] y)
<float s = {0.05}, uint8 z = {128}, float ws = {0.01}, int8 wz = {0},
 int8[2, 2, 1, 1] w = {1, 2, 3, 4}>
{
  xq = QuantizeLinear (x, s, z)
  xd = DequantizeLinear (xq, s, z)
  wd = DequantizeLinear (w, ws, wz)
  [body]
}
"""


def written(
    text: str,
    weights: dict[str, tuple[int, ...]],
    rng: np.random.Generator,
    storage: Storage | None = None,
    **choices: Any,
) -> ir.Model:
    model = from_text(text, rng, weights)
    recipe = placed(model, feeds_for(model, rng), **choices)
    return insert_qdq(model, recipe, storage or Storage("packed"))


def by_others(body: str) -> ir.Model:
    """A file with Q/DQ that we did not write: one quantized input, and one int8 weight."""
    return io.from_proto(onnx.parser.parse_model(QDQ.replace("[body]", body)), "test")


def floats(model: ir.Model) -> list[tuple[str, str, bool]]:
    return [(row.op, row.why, row.inside) for row in lint(model).float_nodes]


CHAIN = """
chain (float[N, 4, 8, 8] x) => (float[N, 4, 4, 4] y) {
  a = Conv (x, w1)
  r = Relu (a)
  e = Elu (r)
  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (e)
  y = Conv (p, w2)
}
"""
CHAIN_WEIGHTS = {"w1": (4, 4, 1, 1), "w2": (4, 4, 1, 1)}


def test_a_node_without_integer_kernel_stands_inside(rng: np.random.Generator):
    found = lint(written(CHAIN, CHAIN_WEIGHTS, rng))

    assert found.float_nodes == (
        FloatNode("Elu_0", "Elu", "onnxruntime has no integer kernel for Elu", inside=True),
    )
    assert found.integer_nodes == ("Conv_0", "MaxPool_0", "Conv_1")
    assert not found.fused


def test_a_tail_in_float_is_not_inside(rng: np.random.Generator):
    text = """
    tail (float[N, 4] x) => (float[N, 4] y) {
      a = Gemm (x, w, b)
      s = Sigmoid (a)
      y = Exp (s)
    }
    """

    found = lint(written(text, {"w": (4, 4), "b": (4,)}, rng))

    assert [(row.op, row.why, row.inside) for row in found.float_nodes] == [
        ("Sigmoid", AFTER_LAST, False),
        ("Exp", "onnxruntime has no integer kernel for Exp", False),
    ]
    assert found.fused


def test_a_float_model_has_no_integer_node(rng: np.random.Generator):
    model = from_text(CHAIN, rng, CHAIN_WEIGHTS)

    found = lint(model)

    assert found.integer_nodes == ()
    assert [row.op for row in found.float_nodes] == ["Conv", "Relu", "Elu", "MaxPool", "Conv"]
    assert not any(row.inside for row in found.float_nodes)


def test_a_path_and_a_model_get_the_same_answer(rng: np.random.Generator, tmp_path: Path):
    model = written(CHAIN, CHAIN_WEIGHTS, rng)
    io.save(model, tmp_path / "m.onnx")

    assert lint(tmp_path / "m.onnx") == lint(model)


def test_the_model_is_not_changed(rng: np.random.Generator):
    model = written(CHAIN, CHAIN_WEIGHTS, rng)
    before = io.to_bytes(model)

    lint(model)

    assert io.to_bytes(model) == before


def test_a_file_that_onnxruntime_refuses_is_named():
    model = by_others("y = NoSuchOperator (xd)")

    with pytest.raises(ModelError, match=r"does not load the model.*NoSuchOperator"):
        lint(model)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            "y = Conv (xd, wd)",
            ("Conv", "its output 'y' is a graph output without Q/DQ", False),
        ),
        (
            "a = Conv (xd, wd)\n e = Exp (a)\n q = QuantizeLinear (e, s, z)\n"
            "y = DequantizeLinear (q, s, z)",
            ("Conv", "its output is read in float by Exp 'make_e'", True),
        ),
        (
            "e = Exp (xd)\n a = Conv (e, wd)\n q = QuantizeLinear (a, s, z)\n"
            "y = DequantizeLinear (q, s, z)",
            ("Conv", "input 0 has no Q/DQ pair (value 'e', made by Exp)", True),
        ),
        (
            "a = Conv (x, wd)\n b = Add (a, xd)\n q = QuantizeLinear (b, s, z)\n"
            "y = DequantizeLinear (q, s, z)",
            ("Conv", "input 0 has no Q/DQ pair (value 'x', a graph input)", False),
        ),
    ],
)
def test_why_onnxruntime_did_not_fuse_a_node(body: str, expected: tuple[str, str, bool]):
    model = by_others(body)
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"

    assert expected in floats(model)


def test_a_qdq_conv_of_others_is_found_to_be_integer():
    model = by_others(
        "a = Conv (xd, wd)\n q = QuantizeLinear (a, s, z)\n y = DequantizeLinear (q, s, z)"
    )

    found = lint(model)

    assert found.float_nodes == ()
    assert len(found.integer_nodes) == 1


def test_nodes_without_names_are_told_apart():
    model = by_others(
        "e = Exp (xd)\n eq = QuantizeLinear (e, s, z)\n ed = DequantizeLinear (eq, s, z)\n"
        "a = Conv (ed, wd)\n q = QuantizeLinear (a, s, z)\n y = DequantizeLinear (q, s, z)"
    )

    found = lint(model)

    assert [row.op for row in found.float_nodes] == ["Exp"]
    assert len(found.integer_nodes) == 1


# What saturates

ONE = "one (float[N, 4, 3, 3] x) => (float[N, 2, 3, 3] y) { y = Conv (x, w) }"


def with_weight(rows: list[list[float]], rng: np.random.Generator, **choices: Any) -> ir.Model:
    """One Conv with these weights, as int8 codes in the file."""
    model = from_text(ONE, rng, {"w": (2, 4, 1, 1)})
    array = np.array(rows, np.float32).reshape(2, 4, 1, 1)
    model.graph.initializers["w"].const_value = ir.tensor(array, name="w")
    return insert_qdq(model, placed(model, feeds_for(model, rng), **choices), Storage("int8"))


@pytest.mark.parametrize(
    ("rows", "bits", "risky"),
    [
        ([[1.0, 1.0, 0.0, 0.0], [0.1, 0.1, 0.1, 0.1]], "w8a8", True),
        ([[-1.0, -1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], "w8a8", True),
        ([[1.0, -1.0, 0.0, 0.0], [0.0, 0.0, -1.0, 1.0]], "w8a8", False),
        ([[1.0, 0.01, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]], "w8a8", False),
        ([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]], "w7a8", False),
        ([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]], "w8a7", False),
    ],
)
def test_two_large_weights_of_one_sign_may_saturate(
    rows: list[list[float]], bits: str, risky: bool, rng: np.random.Generator
):
    model = with_weight(rows, rng, bits=bits, keep_first_last=False)

    assert lint(model).saturation_risk == (("Conv_0",) if risky else ())


# What other versions do

SMALL = "small (float[N, 4] x) => (float[N, 3] y) { y = MatMul (x, w) }"


def small(bits: str, storage: Storage, rng: np.random.Generator) -> ir.Model:
    return written(SMALL, {"w": (4, 3)}, rng, storage, bits=bits, keep_first_last=False)


def test_int4_is_too_new_for_1_22(rng: np.random.Generator):
    model = small("w4a8", Storage("packed", int4=True), rng)

    assert lint(model, "1.22.0").target_problems == (
        "onnxruntime 1.22.0 is older than 1.23.2, the oldest one tested",
        "weights stored as INT4 need onnxruntime 1.23.2; quantize with --target-ort 1.22.0",
    )
    assert lint(model, "1.23.2").target_problems == ()
    assert lint(model).target_problems == ()


def test_int2_and_its_opset_are_too_new_for_1_23(rng: np.random.Generator):
    model = small("w2a8", Storage("packed", int2=True), rng)

    problems = lint(model, "1.23.2").target_problems

    assert len(problems) == 2
    assert problems[0].startswith("weights stored as INT2 need onnxruntime 1.")
    assert "opset 25" in problems[1]
    assert lint(model, "1.31.1").target_problems == ()


@pytest.mark.parametrize("target", ["1.23.2", "1.24.4", "1.31.1"])
@pytest.mark.parametrize("bits", ["w2a8", "w3a8", "w4a8", "w8a8"])
def test_what_is_written_for_a_version_suits_it(bits: str, target: str, rng: np.random.Generator):
    model = small(bits, Storage.for_target("packed", target), rng)

    assert lint(model, target).target_problems == ()


@pytest.mark.parametrize("target", ["latest", "1", "1.24.x"])
def test_what_is_no_version_is_refused(target: str, rng: np.random.Generator):
    model = small("w8a8", Storage("int8"), rng)

    with pytest.raises(SpecError, match=r"expected an onnxruntime version like 1\.24\.4"):
        lint(model, target)
