"""multiply-and-add: Div and Sub by a constant become Mul and Add, which have integer kernels."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.edit import floats, graph_of, is_op, new_constant, new_node, remove, take_over


@dataclass(frozen=True)
class MultiplyAndAdd(ir.passes.InPlacePass):
    """Turn x / c into x * (1 / c) and x - c into x + (-c), for constants c."""

    name: ClassVar[str] = "multiply-and-add"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        found = [node for node in model.graph if _is_by_constant(node)]
        for node in found:
            _replace(node)
        return ir.passes.PassResult(model, modified=bool(found))


def _is_by_constant(node: ir.Node) -> bool:
    if not is_op(node, "Div", "Sub") or node.outputs[0].dtype != ir.DataType.FLOAT:
        return False
    number = floats(node.inputs[1])
    if number is None or floats(node.inputs[0]) is not None:
        return False
    return not is_op(node, "Div") or bool((number != 0).all() and np.isfinite(1 / number).all())


def _replace(node: ir.Node) -> None:
    number, name = floats(node.inputs[1]), node.name or node.op_type.lower()
    assert number is not None
    op_type, other = ("Mul", 1 / number) if node.op_type == "Div" else ("Add", -number)
    constant = new_constant(graph_of(node), f"{name}_constant", other, node.inputs[0])
    new = new_node(node, op_type, [node.inputs[0], constant], name)
    take_over(new.outputs[0], node.outputs[0])
    remove(node)
