"""Invariants that hold after every pass."""

from collections.abc import Iterable

import onnx_ir as ir

from onnxptq.errors import ModelError
from onnxptq.graph.text import where


def check(model: ir.Model) -> None:
    """Check what every pass must leave intact.

    Node and value names are unique and not empty, every value that is read is defined before, every
    output is produced, no initializer lost its data, every operator's opset is imported.

    Raises:
        ModelError: Naming the node or value and the invariant that it breaks.
    """
    _check_graph(model.graph, set(), set())
    for domain in _used_domains(model):
        if domain not in model.graph.opset_imports:
            raise ModelError(f"operators of domain {domain!r} are used but no opset is imported")


def _check_graph(graph: ir.Graph, outer: set[ir.Value], names: set[str]) -> None:
    defined = set(outer)
    for value in dict.fromkeys((*graph.inputs, *graph.initializers.values())):
        _define(value, names, f"input or initializer of graph {graph.name!r}")
        defined.add(value)
    _check_initializers(graph)
    node_names: set[str] = set()
    for node in graph:
        _check_node(node, defined, node_names)
        for body in _bodies(node):
            _check_graph(body, defined, set(names))
        for value in node.outputs:
            if value.name != "" or value.uses():  # an optional output may be left out
                _define(value, names, where(node))
                defined.add(value)
    for value in graph.outputs:
        if value not in defined:
            raise ModelError(f"output {value.name!r} of graph {graph.name!r} is not produced")


def _check_initializers(graph: ir.Graph) -> None:
    for name, value in graph.initializers.items():
        if value.const_value is None and not value.is_graph_input():
            raise ModelError(f"initializer {name!r} has no data")


def _check_node(node: ir.Node, defined: set[ir.Value], node_names: set[str]) -> None:
    if not node.name:
        raise ModelError(f"{where(node)} has no name")
    if node.name in node_names:
        raise ModelError(f"{where(node)}: another node has the same name")
    node_names.add(node.name)
    for value in node.inputs:
        if value is not None and value not in defined:
            raise ModelError(f"{where(node)} reads {value.name!r}, which is not defined before it")


def _define(value: ir.Value, names: set[str], by: str) -> None:
    if not value.name:
        raise ModelError(f"{by} defines a value without a name")
    if value.name in names:
        raise ModelError(f"{by} defines {value.name!r}, which another one defines already")
    names.add(value.name)


def _bodies(node: ir.Node) -> Iterable[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH and attribute.value is not None:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS and attribute.value is not None:
            yield from attribute.as_graphs()


def _used_domains(model: ir.Model) -> set[str]:
    return {node.domain for node in model.graph.all_nodes()}
