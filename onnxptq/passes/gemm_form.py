"""gemm-form: Gemm and MatMul in the one form that has an integer kernel."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.edit import (
    F64,
    floats,
    graph_of,
    input_at,
    is_op,
    new_constant,
    new_node,
    rank,
    remove,
    take_over,
)


@dataclass(frozen=True)
class GemmForm(ir.passes.InPlacePass):
    """Leave Gemm with alpha = beta = 1, no transposed input and a bias of one number per column.

    Constant weight and bias take alpha and beta; a transposed first input becomes a Transpose; a
    bias that differs from row to row becomes an Add. MatMul of a vector becomes MatMul of a matrix
    with one row or column.
    """

    name: ClassVar[str] = "gemm-form"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "Gemm"):
                modified |= _gemm(node)
            elif is_op(node, "MatMul"):
                modified |= _matmul(node)
        return ir.passes.PassResult(model, modified=modified)


def _gemm(node: ir.Node) -> bool:
    weight, bias = floats(node.inputs[1]), floats(input_at(node, 2))
    if weight is None or (input_at(node, 2) is not None and bias is None):
        return False
    attributes = node.attributes
    alpha, beta = attributes.get_float("alpha", 1.0), attributes.get_float("beta", 1.0)
    columns = weight.shape[0 if attributes.get_int("transB", 0) else 1]
    turned = bool(attributes.get_int("transA", 0))
    plain = bias is None or bias.shape == (columns,)
    if alpha == 1 and (beta == 1 or bias is None) and not turned and plain:
        return False
    _rewrite(node, weight * alpha, None if bias is None else bias * beta, columns)
    return True


def _rewrite(node: ir.Node, weight: F64, bias: F64 | None, columns: int) -> None:
    name, graph = node.name or "gemm", graph_of(node)
    source = node.inputs[0]
    if node.attributes.get_int("transA", 0):
        source = new_node(
            node, "Transpose", [source], f"{name}_transpose", {"perm": [1, 0]}
        ).outputs[0]
    inputs = [source, new_constant(graph, f"{name}_weight", weight, node.inputs[1])]
    by_column = bias is not None and (bias.ndim < 2 or bias.shape[0] == 1)
    if bias is not None and by_column:
        row = np.broadcast_to(bias.reshape(-1), (columns,))
        inputs.append(new_constant(graph, f"{name}_bias", row, node.inputs[2]))
    transposed = {"transB": node.attributes.get_int("transB", 0) or 0}
    last = new_node(node, "Gemm", inputs, name, transposed)
    if bias is not None and not by_column:
        constant = new_constant(graph, f"{name}_bias", bias, node.inputs[2])
        last.outputs[0].shape = node.outputs[0].shape
        last = new_node(node, "Add", [last.outputs[0], constant], f"{name}_add")
    take_over(last.outputs[0], node.outputs[0])
    remove(node)


def _matmul(node: ir.Node) -> bool:
    left, right = node.inputs
    ranks = rank(left), rank(right)
    if None in ranks or 1 not in ranks or left is None or right is None:
        return False
    if left.dtype != ir.DataType.FLOAT or floats(left) is not None:
        return False
    name = node.name or "matmul"
    drop: list[int] = []
    if ranks[0] == 1:
        left = _with_axis(node, left, 0, f"{name}_row")
        drop.append(-2)
    if ranks[1] == 1:
        right = _with_axis(node, right, 1, f"{name}_column")
        drop.append(-1)
    product = new_node(node, "MatMul", [left, right], name)
    axes = new_constant(graph_of(node), f"{name}_axes", np.array(drop, np.int64))
    last = new_node(node, "Squeeze", [product.outputs[0], axes], f"{name}_squeeze")
    take_over(last.outputs[0], node.outputs[0])
    remove(node)
    return True


def _with_axis(node: ir.Node, value: ir.Value, axis: int, name: str) -> ir.Value:
    array = floats(value)
    if array is not None:
        return new_constant(graph_of(node), name, np.expand_dims(array, axis), value)
    axes = new_constant(graph_of(node), f"{name}_axes", np.array([axis], np.int64))
    return new_node(node, "Unsqueeze", [value, axes], name).outputs[0]
