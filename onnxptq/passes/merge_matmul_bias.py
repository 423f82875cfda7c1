"""merge-matmul-bias: MatMul and Add of a constant become Gemm where the input is a matrix."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.affine import linear
from onnxptq.passes.edit import (
    feeds_only,
    floats,
    graph_of,
    is_op,
    new_constant,
    new_node,
    rank,
    remove,
    take_over,
)


@dataclass(frozen=True)
class MergeMatmulBias(ir.passes.InPlacePass):
    """Turn MatMul + Add of a bias into Gemm, which onnxruntime runs as one integer kernel."""

    name: ClassVar[str] = "merge-matmul-bias"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        adds = [node for node in model.graph if is_op(node, "Add")]
        merged = [_merge(node, *pair) for node in adds for pair in _orders(node)]
        return ir.passes.PassResult(model, modified=any(merged))


def _orders(add: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    left, right = add.inputs
    return [] if left is None or right is None else [(left, right), (right, left)]


def _merge(add: ir.Node, product: ir.Value, bias: ir.Value) -> bool:
    matmul, numbers = product.producer(), floats(bias)
    if matmul is None or not is_op(matmul, "MatMul") or numbers is None:
        return False
    target = linear(matmul)
    if target is None or rank(matmul.inputs[0]) != 2 or not feeds_only(product, add):
        return False
    channels = target.channels
    if numbers.shape not in ((), (1,), (channels,), (1, 1), (1, channels)):
        return False
    flat = bias
    if numbers.shape != (channels,):
        row = np.broadcast_to(numbers.reshape(-1), (channels,))
        flat = new_constant(graph_of(add), f"{bias.name}_row", row, bias)
    name = matmul.name or "gemm"
    gemm = new_node(add, "Gemm", [*matmul.inputs, flat], name)
    take_over(gemm.outputs[0], add.outputs[0])
    remove(add)
    remove(matmul)
    return True
