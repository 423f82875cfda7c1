"""Gemm: QGemm, with codes or with real numbers as output."""

import onnx_ir as ir

from onnxptq.ops import products
from onnxptq.ops.nodes import (
    constant,
    fits_channels,
    float_attribute,
    input_at,
    int_attribute,
)
from onnxptq.ops.op import Case, Fusion, Op, QuantRule


def weight_axis(node: ir.Node) -> int:
    """The output-channel axis: rows of B when it is transposed, else columns."""
    return 0 if int_attribute(node, "transB", 0) else 1


def _refuse(node: ir.Node) -> str | None:
    weight = constant(input_at(node, 1))
    if weight is None:
        return "its weight is computed at run time"
    if int_attribute(node, "transA", 0):
        return "onnxruntime's integer Gemm does not transpose its first input"
    if float_attribute(node, "alpha", 1.0) != 1.0 or float_attribute(node, "beta", 1.0) != 1.0:
        return "alpha or beta is not 1"
    if input_at(node, 2) is None:
        return None
    bias = constant(node.inputs[2])
    if bias is None or not fits_channels(bias, weight.shape[weight_axis(node)]):
        return "its bias is not one constant per output channel"
    return None


GEMM = Op(
    type="Gemm",
    since=7,
    rule=QuantRule(weight=1, bias=2, weight_axis=weight_axis, matmul=True),
    fusion=Fusion.QLINEAR,
    gradient="functions:gemm",
    refuse=_refuse,
    lowerings={"QGemm": products.qgemm},
    cases=(
        Case((3, 20), {"transB": 1}, {1: (10, 20), 2: (10,)}),
        Case((1, 20), {}, {1: (20, 7), 2: (7,)}),
        Case((2, 16), {"transB": 1}, {1: (5, 16)}),
    ),
)
