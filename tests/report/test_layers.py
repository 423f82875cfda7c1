import numpy as np
import onnx_ir as ir
import pytest

from onnxptq.graph.text import from_text
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe, Role, TensorQuant
from onnxptq.report.layers import layer_rows
from onnxptq.report.measure import Closeness

U8, S4 = QuantSpec(8, signed=False), QuantSpec(4, signed=True, axis=0)
FLOAT = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N, 4] x) => (float[N, 4] y)
<float[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
{
   [first] g = Gemm <transB = 1> (x, w)
   [clamp] h = Relu (g)
   [act] y = Sigmoid (h)
}
"""
QUANTIZED = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N, 4] x) => (float[N, 4] y)
<float s = {0.01}, uint8 z = {0},
 float[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
{
   [first] g = Gemm <transB = 1> (x, w)
   [h_Q] h_q = QuantizeLinear (g, s, z)
   [h_DQ] h_d = DequantizeLinear (h_q, s, z)
   [act] y = Sigmoid (h_d)
}
"""


def recipe() -> Recipe:
    h = TensorQuant("h", Role.ACTIVATION, QParams.from_range(0.0, 2.55, U8), set_by="minmax")
    x = TensorQuant("x", Role.INPUT, QParams.from_range(-1.0, 1.0, U8), set_by="minmax")
    weight = QParams.from_range(np.zeros(4), np.ones(4), S4)
    w = TensorQuant("w", Role.WEIGHT, weight, set_by="mse")
    return Recipe("digest", {"h": h, "x": x, "w": w}, float_nodes={"act": "not wanted"})


def models() -> tuple[ir.Model, ir.Model]:
    quantized = from_text(QUANTIZED)
    next(node for node in quantized.graph if node.name == "h_DQ").name = "h_DequantizeLinear"
    return from_text(FLOAT), quantized


def test_a_layer_is_measured_behind_its_codes_and_its_clamp(rng: np.random.Generator) -> None:
    x = rng.uniform(-1.0, 1.0, (16, 4)).astype(np.float32)
    model, quantized = models()

    (row,) = layer_rows(model, quantized, recipe(), [{"x": x}])

    expected, scale = Closeness(), np.float32(0.01)
    expected.update(np.maximum(x, 0), np.maximum(np.rint(x / scale), 0).astype(np.float32) * scale)
    assert row.sqnr_db == pytest.approx(expected.sqnr_db, abs=1e-3)  # float32 sums inside Gemm


def test_a_row_tells_bits_bytes_and_who_decided(rng: np.random.Generator) -> None:
    x = rng.uniform(-1.0, 1.0, (1, 4)).astype(np.float32)
    model, quantized = models()

    (row,) = layer_rows(model, quantized, recipe(), [{"x": x}])

    assert (row.op, row.w_bits, row.a_bits, row.set_by) == ("Gemm", 4, 8, "minmax; mse")
    assert (row.weight_bytes, row.weight_bytes_float) == (8, 64)


def test_float_nodes_and_clamps_that_vanished_have_no_row() -> None:
    model, quantized = models()

    rows = layer_rows(model, quantized, recipe(), [])

    assert [row.node for row in rows] == ["first"]


def test_without_batches_nothing_is_claimed() -> None:
    model, quantized = models()

    (row,) = layer_rows(model, quantized, recipe(), [])

    assert (row.sqnr_db, row.cosine) == (None, None)
