"""name-nodes and name-values: every node and value has a name of its own."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir


@dataclass(frozen=True)
class NameNodes(ir.passes.InPlacePass):
    """Give every node, bodies included, a name that no other node has.

    A name that is unique already stays; a missing one becomes the operator and a number, a repeated
    one gets a number. Names depend on the order of nodes only, so they are the same in every run.
    """

    name: ClassVar[str] = "name-nodes"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        nodes = list(model.graph.all_nodes())
        names = _Names(node.name for node in nodes)
        modified = False
        for node in nodes:
            new = names.take(node.name, node.op_type)
            modified |= new != node.name
            node.name = new
        return ir.passes.PassResult(model, modified=modified)


@dataclass(frozen=True)
class NameValues(ir.passes.InPlacePass):
    """Give every value, bodies included, a name that no other value has.

    Names of graph inputs and outputs are the user's and stay. An optional output that is left out
    (an empty name that nobody reads) stays left out.
    """

    name: ClassVar[str] = "name-values"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        graph = model.graph
        ports = list(dict.fromkeys((*graph.inputs, *graph.outputs)))
        others = [value for value in dict.fromkeys(_values(graph)) if value not in set(ports)]
        names = _Names(value.name for value in (*ports, *others))
        for value in ports:
            names.reserve(value.name)
        modified = False
        for value in others:
            new = names.take(value.name, _wanted(value))
            if new != value.name:
                value.name = new
                modified = True
        return ir.passes.PassResult(model, modified=modified)


class _Names:
    """Hands out names: the first to ask for a name gets it, later ones get it with a number."""

    def __init__(self, wanted: Iterable[str | None]) -> None:
        self._wanted = {name for name in wanted if name}
        self._taken: set[str] = set()
        self._numbers: dict[str, int] = {}

    def reserve(self, name: str | None) -> None:
        if name:
            self._taken.add(name)

    def take(self, name: str | None, otherwise: str) -> str:
        if name and name not in self._taken:
            self._taken.add(name)
            return name
        stem = name or otherwise
        number = self._numbers.get(stem, 0)
        while (new := f"{stem}_{number}") in self._taken or new in self._wanted:
            number += 1
        self._numbers[stem] = number + 1
        self._taken.add(new)
        return new


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    for part in (graph, *graph.subgraphs()):
        yield from part.inputs
        yield from part.initializers.values()
        for node in part:
            yield from (v for v in node.outputs if v.name or v.uses() or v.name is None)


def _wanted(value: ir.Value) -> str:
    producer = value.producer()
    if producer is None:
        return "value"
    index = value.index() or 0
    return f"{producer.name}_out{index or ''}"
