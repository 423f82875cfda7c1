"""MatMul: QLinearMatMul, or MatMulIntegerToFloat where nothing after it is quantized."""

import onnx_ir as ir

from onnxptq.ops import products
from onnxptq.ops.nodes import constant, input_at, rank
from onnxptq.ops.op import Case, Fusion, Op, QuantRule


def _refuse(node: ir.Node) -> str | None:
    first = input_at(node, 0)
    if constant(first) is not None:
        return "its first input is a constant"
    if rank(first) == 1 or rank(input_at(node, 1)) == 1:
        return "onnxruntime's integer MatMul takes no vectors"
    return None


def weight_axis(node: ir.Node) -> int | None:
    """Columns of a matrix; a stack of matrices gets one scale in all."""
    return 1 if rank(input_at(node, 1)) == 2 else None


MAT_MUL = Op(
    type="MatMul",
    since=1,
    rule=QuantRule(activations=(0, 1), weight=1, weight_axis=weight_axis, matmul=True),
    fusion=Fusion.QLINEAR,
    gradient="functions:mat_mul",
    refuse=_refuse,
    lowerings={
        "QLinearMatMul": products.qlinear_matmul,
        "MatMulInteger": products.matmul_integer,
        "MatMulIntegerToFloat": products.matmul_integer_to_float,
    },
    cases=(
        Case((4, 12), {}, {1: (12, 9)}),
        Case((2, 3, 12), {}, {1: (12, 8)}),
        Case((2, 5, 6), {}, {1: (2, 6, 4)}),
    ),
)
