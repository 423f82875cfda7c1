"""Parts of a graph as models of their own, for onnxruntime to run."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper

from onnxptq.ops.nodes import is_constant


def read_values(node: ir.Node) -> list[ir.Value]:
    """The values of the outer graph that a node reads, those read in its bodies included."""
    found = {id(value): value for value in node.inputs if value is not None}
    for attribute in node.attributes.values():
        for body in _bodies(attribute):
            found.update((id(value), value) for value in _captured(body))
    return list(found.values())


def _captured(body: ir.Graph) -> list[ir.Value]:
    """What a body reads of the graph around it."""
    nodes = list(body)
    read = [*(value for node in nodes for value in read_values(node)), *body.outputs]
    own = [*body.inputs, *body.initializers.values(), *(v for node in nodes for v in node.outputs)]
    inner = {id(value) for value in own}
    return [value for value in read if id(value) not in inner]


def _bodies(attribute: ir.Attr) -> Iterable[ir.Graph]:
    if attribute.type == ir.AttributeType.GRAPH:
        return [attribute.as_graph()]
    if attribute.type == ir.AttributeType.GRAPHS:
        return attribute.as_graphs()
    return []


def make_submodel(
    model: ir.Model,
    nodes: Sequence[ir.Node],
    inputs: Mapping[str, onnx.TypeProto],
    outputs: Sequence[str],
) -> bytes:
    """A model of some nodes of `model`, with the constants they read.

    Args:
        model: Where the nodes stand.
        nodes: In an order in which they can run.
        inputs: Names and types of what the submodel is fed with.
        outputs: Names of what it gives; their types are left to onnxruntime.
    """
    constants = {
        str(value.name): value
        for node in nodes
        for value in read_values(node)
        if is_constant(value) and value.name not in inputs
    }
    graph = onnx.GraphProto(name="part")
    graph.node.extend(ir.serde.serialize_node(node) for node in nodes)
    for name, kind in inputs.items():
        graph.input.append(onnx.ValueInfoProto(name=name, type=kind))
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
    for name, value in constants.items():
        assert value.const_value is not None
        tensor = ir.serde.serialize_tensor(value.const_value)
        tensor.name = name
        graph.initializer.append(tensor)
    proto = onnx.ModelProto(ir_version=model.ir_version, graph=graph)
    for domain, version in model.graph.opset_imports.items():
        proto.opset_import.append(helper.make_opsetid(domain, version))
    return proto.SerializeToString()


def tensor_type(dtype: str) -> onnx.TypeProto:
    """The ONNX type of a tensor of a numpy type, its shape free."""
    kind = onnx.TypeProto()
    kind.tensor_type.elem_type = ir.DataType.from_numpy(np.dtype(dtype)).value
    return kind
