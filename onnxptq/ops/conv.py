"""Conv: QLinearConv, in 1-D, 2-D and 3-D, grouped and depthwise."""

import onnx_ir as ir

from onnxptq.ops import products
from onnxptq.ops.nodes import constant, input_at, is_constant
from onnxptq.ops.op import Case, Fusion, Op, QuantRule


def _refuse(node: ir.Node) -> str | None:
    if not is_constant(input_at(node, 1)):
        return "its weight is computed at run time"
    if input_at(node, 2) is not None and constant(node.inputs[2]) is None:
        return "its bias is computed at run time"
    return None


CONV = Op(
    type="Conv",
    since=1,
    rule=QuantRule(weight=1, bias=2, weight_axis=lambda _: 0, matmul=True),
    fusion=Fusion.QLINEAR,
    gradient="functions:conv",
    refuse=_refuse,
    lowerings={"QLinearConv": products.qlinear_conv, "ConvInteger": products.conv_integer},
    cases=(
        Case((1, 8, 9, 7), {"pads": [1, 1, 1, 1]}, {1: (16, 8, 3, 3), 2: (16,)}),
        Case((2, 3, 11, 11), {"strides": [2, 2], "pads": [0, 1, 2, 1]}, {1: (5, 3, 3, 3)}),
        Case((1, 16, 6, 6), {"group": 16, "pads": [1, 1, 1, 1]}, {1: (16, 1, 3, 3), 2: (16,)}),
        Case((1, 8, 6, 6), {"group": 4, "dilations": [2, 2]}, {1: (12, 2, 2, 2), 2: (12,)}),
        Case((2, 4, 17), {"pads": [2, 2]}, {1: (6, 4, 5), 2: (6,)}),
    ),
)
