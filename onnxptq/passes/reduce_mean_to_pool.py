"""reduce-mean-to-pool: the mean over height and width becomes GlobalAveragePool."""

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from onnxptq.passes.edit import input_at, ints, is_op, new_node, rank, remove, take_over


@dataclass(frozen=True)
class ReduceMeanToPool(ir.passes.InPlacePass):
    """Turn ReduceMean over the spatial axes of a 4-D value into GlobalAveragePool (and Flatten).

    onnxruntime has an integer kernel for the pool and none for ReduceMean.
    """

    name: ClassVar[str] = "reduce-mean-to-pool"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        means = [node for node in model.graph if is_op(node, "ReduceMean") and _is_spatial(node)]
        for node in means:
            _replace(node)
        return ir.passes.PassResult(model, modified=bool(means))


def _is_spatial(node: ir.Node) -> bool:
    if rank(node.inputs[0]) != 4 or node.inputs[0] is None:
        return False
    if node.inputs[0].dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return False
    given = input_at(node, 1)
    axes = ints(given) if given is not None else node.attributes.get_ints("axes")
    return axes is not None and sorted(axis % 4 for axis in axes) == [2, 3]


def _replace(node: ir.Node) -> None:
    name = node.name or "mean"
    keeps = bool(node.attributes.get_int("keepdims", 1))
    pool = new_node(node, "GlobalAveragePool", [node.inputs[0]], name)
    last = pool if keeps else new_node(node, "Flatten", pool.outputs, f"{name}_flatten")
    take_over(last.outputs[0], node.outputs[0])
    remove(node)
