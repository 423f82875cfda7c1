"""lift-constants: Constant nodes become initializers."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.edit import is_op, remove

_NUMBERS = {"value_float": np.float32, "value_floats": np.float32}
_NUMBERS |= {"value_int": np.int64, "value_ints": np.int64}  # type: ignore[dict-item]


@dataclass(frozen=True)
class LiftConstants(ir.passes.InPlacePass):
    """Turn the main graph's Constant nodes into initializers, and drop fallback values of inputs.

    Up to IR version 3 every initializer had to be listed among the graph inputs, so those that are
    listed there are taken as plain initializers. Bodies of If, Loop and Scan are left alone, and so
    are a Constant that is a graph output and one of a sparse or string value.
    """

    name: ClassVar[str] = "lift-constants"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        graph = model.graph
        listed = [value for value in graph.inputs if value.name in graph.initializers]
        for value in listed:
            graph.inputs.remove(value)
            model.ir_version = max(model.ir_version, 4)
        constants = [node for node in graph if is_op(node, "Constant")]
        lifted = [_lift(node) for node in constants if not node.outputs[0].is_graph_output()]
        return ir.passes.PassResult(model, modified=bool(listed) or any(lifted))


def _lift(node: ir.Node) -> bool:
    tensor = _tensor(node)
    if tensor is None:
        return False
    old = node.outputs[0]
    value = ir.Value(
        name=old.name,
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
    old.replace_all_uses_with(value)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    remove(node)
    old.name = None
    graph.register_initializer(value)
    return True


def _tensor(node: ir.Node) -> ir.TensorProtocol | None:
    name = node.outputs[0].name
    if "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
        tensor.name = name
        return tensor
    for attribute, dtype in _NUMBERS.items():
        if attribute in node.attributes:
            return ir.tensor(np.asarray(node.attributes[attribute].value, dtype), name=name)
    return None
