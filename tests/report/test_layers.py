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
   [first] h = Gemm <transB = 1> (x, w)
   [act] y = Sigmoid (h)
}
"""
QUANTIZED = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N, 4] x) => (float[N, 4] y)
<float s = {0.01}, uint8 z = {128}, uint8 lo = {0}, uint8 hi = {255},
 float[4, 4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
{
   [first] h = Gemm <transB = 1> (x, w)
   [h_Q] h_q = QuantizeLinear (h, s, z)
   [h_clip] h_c = Clip (h_q, lo, hi)
   [h_DQ] h_d = DequantizeLinear (h_c, s, z)
   [act] y = Sigmoid (h_d)
}
"""


def recipe() -> Recipe:
    h = TensorQuant("h", Role.ACTIVATION, QParams.from_range(-1.28, 1.27, U8), set_by="minmax")
    x = TensorQuant("x", Role.INPUT, QParams.from_range(-1.0, 1.0, U8), set_by="minmax")
    weight = QParams.from_range(np.zeros(4), np.ones(4), S4)
    w = TensorQuant("w", Role.WEIGHT, weight, set_by="mse")
    return Recipe("digest", {"h": h, "x": x, "w": w}, float_nodes={"act": "not wanted"})


def models() -> tuple[ir.Model, ir.Model]:
    return from_text(FLOAT), from_text(QUANTIZED)


def test_a_layer_is_measured_behind_its_codes(rng: np.random.Generator) -> None:
    x = rng.uniform(-1.0, 1.0, (16, 4)).astype(np.float32)
    model, quantized = models()

    (row,) = layer_rows(model, quantized, recipe(), [{"x": x}])

    expected = Closeness()
    rounded = (np.rint(x / np.float32(0.01)) * np.float32(0.01)).astype(np.float32)
    expected.update(x, rounded)
    assert row.sqnr_db == pytest.approx(expected.sqnr_db, abs=1e-3)  # float32 sums inside Gemm
    assert row.node == "first"


def test_a_row_tells_bits_bytes_and_who_decided(rng: np.random.Generator) -> None:
    x = rng.uniform(-1.0, 1.0, (1, 4)).astype(np.float32)
    model, quantized = models()

    (row,) = layer_rows(model, quantized, recipe(), [{"x": x}])

    assert (row.op, row.w_bits, row.a_bits, row.set_by) == ("Gemm", 4, 8, "minmax; mse")
    assert (row.weight_bytes, row.weight_bytes_float) == (8, 64)


def test_a_float_node_has_no_row() -> None:
    model, quantized = models()

    rows = layer_rows(model, quantized, recipe(), [])

    assert [row.node for row in rows] == ["first"]


def test_without_batches_nothing_is_claimed() -> None:
    model, quantized = models()

    (row,) = layer_rows(model, quantized, recipe(), [])

    assert (row.sqnr_db, row.cosine) == (None, None)
