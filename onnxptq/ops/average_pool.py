"""AveragePool: QLinearAveragePool."""

import onnx_ir as ir

from onnxptq.ops import pools
from onnxptq.ops.nodes import ints_attribute, rank
from onnxptq.ops.op import Case, Fusion, Op, QuantRule


def _refuse(node: ir.Node) -> str | None:
    if rank(node.inputs[0]) not in (None, 3, 4):
        return "onnxruntime's integer AveragePool is 1-D and 2-D"
    if any(step != 1 for step in ints_attribute(node, "dilations", ())):
        return "onnxruntime's integer AveragePool takes no dilations"
    return None


AVERAGE_POOL = Op(
    type="AveragePool",
    since=7,
    rule=QuantRule(),
    fusion=Fusion.QLINEAR,
    gradient="functions:average_pool",
    refuse=_refuse,
    lowerings={"QLinearAveragePool": pools.average_pool},
    cases=(
        Case((1, 4, 8, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}),
        Case((1, 4, 7, 7), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
    ),
)
