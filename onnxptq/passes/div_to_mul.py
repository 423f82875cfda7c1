"""div-to-mul: division by a constant becomes multiplication."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.edit import (
    floats,
    graph_of,
    input_at,
    is_op,
    new_constant,
    new_node,
    remove,
    take_over,
)


@dataclass(frozen=True)
class DivToMul(ir.passes.InPlacePass):
    """Turn x / c into x * (1 / c): onnxruntime has an integer kernel for Mul and none for Div.

    The quotient may differ in the last digit of float32.
    """

    name: ClassVar[str] = "div-to-mul"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        divisions = [node for node in model.graph if is_op(node, "Div")]
        modified = [_replace(node) for node in divisions]
        return ir.passes.PassResult(model, modified=any(modified))


def _replace(node: ir.Node) -> bool:
    divisor = floats(input_at(node, 1))
    if divisor is None or floats(node.inputs[0]) is not None or not divisor.all():
        return False
    factor = 1 / divisor
    # Below float32's (and float16's) normal range a reciprocal loses digits or overflows.
    if not (np.isfinite(factor).all() and (np.abs(np.log2(np.abs(divisor))) < 14).all()):
        return False
    name = node.name or "div"
    value = new_constant(graph_of(node), f"{name}_reciprocal", factor, node.inputs[1])
    new = new_node(node, "Mul", [node.inputs[0], value], name)
    take_over(new.outputs[0], node.outputs[0])
    remove(node)
    return True
