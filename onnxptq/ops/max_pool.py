"""MaxPool: picks the largest code, so it never leaves the integers."""

import onnx_ir as ir

from onnxptq.ops import pools
from onnxptq.ops.op import Case, Fusion, Op, QuantRule


def _refuse(node: ir.Node) -> str | None:
    indices = node.outputs[1] if len(node.outputs) > 1 else None
    if indices is not None and (indices.uses() or indices.is_graph_output()):
        return "its indices are used"
    return None


MAX_POOL = Op(
    type="MaxPool",
    since=12,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="functions:max_pool",
    refuse=_refuse,
    lowerings={"MaxPool": pools.max_pool, "NhwcMaxPool": pools.max_pool},
    cases=(
        Case((1, 3, 8, 8), {"kernel_shape": [2, 2], "strides": [2, 2]}),
        Case((2, 5, 7, 9), {"kernel_shape": [3, 3], "pads": [1, 0, 1, 2]}),
    ),
)
