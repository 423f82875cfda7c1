"""Values that share scale and zero point."""

import onnx_ir as ir

from onnxptq.ops.nodes import is_constant
from onnxptq.rewrite.regions import Regions, activation_inputs, outer_consumers, record


class Ties:
    """Groups of value names that must have the same parameters (a union-find)."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def root(self, name: str) -> str:
        """The representative of the group, the same for all of its members."""
        parent = self._parent.setdefault(name, name)
        while parent != self._parent[parent]:
            parent = self._parent[parent] = self._parent[self._parent[parent]]
        self._parent[name] = parent
        return parent

    def join(self, first: str, second: str) -> None:
        """Put two values into one group."""
        self._parent[self.root(second)] = self.root(first)

    def groups(self, names: list[str]) -> list[list[str]]:
        """The groups of these values, members in the order of `names`."""
        members: dict[str, list[str]] = {}
        for name in names:
            members.setdefault(self.root(name), []).append(name)
        return list(members.values())


def find_ties(model: ir.Model, regions: Regions, folded: dict[str, ir.Node]) -> Ties:
    """Tie what onnxruntime needs equal, and what saves a requantization.

    Data movers, MaxPool and operators written on codes share the parameters of their input. A
    Concat copies bytes where its inputs have its output's parameters: those that only the Concat
    reads get them. Add takes three scales and is never tied.
    """
    ties = Ties()
    for node in model.graph:
        if not regions.holds(node) or str(node.outputs[0].name) in folded:
            continue
        op = record(node)
        if op is not None and op.rule.tied:
            source = next(iter(activation_inputs(node)))
            for output in (output for output in node.outputs if output.name):
                ties.join(str(source.name), str(output.name))
        elif node.op_type == "Concat":
            inputs = (value for value in activation_inputs(node) if not is_constant(value))
            for value in (value for value in inputs if _only_for_concat(value, folded)):
                ties.join(str(value.name), str(node.outputs[0].name))
    return ties


def _only_for_concat(value: ir.Value, folded: dict[str, ir.Node]) -> bool:
    """Whether nobody but the Concat would feel another scale, movers in front included."""
    if len(outer_consumers(value)) != 1 or value.is_graph_output():
        return False
    producer = value.producer()
    if producer is None or str(value.name) in folded:
        return producer is not None
    op = record(producer)
    if op is None or not op.rule.tied:
        return op is not None
    return _only_for_concat(next(iter(activation_inputs(producer))), folded)
