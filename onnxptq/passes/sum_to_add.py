"""sum-to-add: Sum of several values becomes a chain of Add."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxptq.passes.edit import is_op, new_node, remove, take_over


@dataclass(frozen=True)
class SumToAdd(ir.passes.InPlacePass):
    """Turn Sum into Add, for which onnxruntime has an integer kernel; the order stays."""

    name: ClassVar[str] = "sum-to-add"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        sums = [node for node in model.graph if is_op(node, "Sum") and len(node.inputs) > 1]
        for node in sums:
            _replace(node)
        return ir.passes.PassResult(model, modified=bool(sums))


def _replace(node: ir.Node) -> None:
    name = node.name or "sum"
    total, *others = node.inputs
    last = len(others) - 1
    for position, other in enumerate(others):
        step = name if position == last else f"{name}_{position}"
        total = new_node(node, "Add", [total, other], step).outputs[0]
    assert total is not None
    take_over(total, node.outputs[0])
    remove(node)
