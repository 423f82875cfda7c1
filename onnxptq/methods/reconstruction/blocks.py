"""Blocks: the parts of a network that are reconstructed one after the other, found in its graph.

A block has one entry and one exit. It ends where a residual branch comes back, or else is a run of
up to three layers; what follows it without weights (Relu, Clip, BatchNorm as Mul and Add) is in it.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxptq.ops.nodes import is_constant
from onnxptq.rewrite.regions import is_matmul

RUN = 3
"""Layers of a block without a residual branch, as in MQBench's rule (methods.md 7)."""

LARGEST = 8
"""Layers of a region that is still one block; what is larger is made of smaller ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """Nodes with one entry and one exit, in the graph's order.

    Attributes:
        nodes: All nodes, some of them without weights.
        entry: The one computed value or input that they read from outside.
        exit: The one value that is read outside of them, or an output of the network.
        layers: Those of the nodes whose weights are to be chosen.
    """

    nodes: tuple[ir.Node, ...]
    entry: ir.Value
    exit: ir.Value
    layers: tuple[ir.Node, ...]

    @property
    def name(self) -> str:
        """The exit's name, which no two blocks share."""
        return str(self.exit.name)


def blocks_of(model: ir.Model, layers: Sequence[ir.Node]) -> list[Block]:
    """Blocks that hold each of these layers once, in an order in which they can be computed.

    A layer that reads two computed values (a MatMul of activations) has no weights and is in none
    by itself.
    """
    graph = _Graph(model)
    wanted = {id(node) for node in layers}
    taken: set[int] = set()
    found: list[Block] = []
    for block in [*_residual(graph, wanted), *_runs(graph, wanted)]:
        ours = {id(node) for node in block.nodes}
        if not ours & taken:
            taken |= ours
            found.append(block)
    found = _joined(graph, found, wanted)
    return sorted(found, key=lambda block: graph.position[id(block.layers[0])])


def alone(model: ir.Model, layers: Sequence[ir.Node]) -> list[Block]:
    """Each of these layers as a block of its own, in the graph's order."""
    return _runs(_Graph(model), {id(node) for node in layers})


def whole(model: ir.Model, layers: Sequence[ir.Node]) -> list[Block]:
    """The network from its input to its logits as one block; none where it has several of these."""
    graph = _Graph(model)
    outputs = [head_of(value) for value in model.graph.outputs]
    if len(outputs) != 1:
        return []
    needed = {id(node) for node in graph.needed(outputs[0])}
    nodes = [node for node in graph.nodes if id(node) in needed]
    block = graph.block(nodes, {id(node) for node in layers})
    return [] if block is None else [block]


def head_of(output: ir.Value) -> ir.Value:
    """The logits where an output is their softmax, else the output."""
    maker = output.producer()
    if maker is None or maker.op_type not in ("Softmax", "LogSoftmax"):
        return output
    return maker.inputs[0] or output


class _Graph:
    """The main graph's nodes with their places, and which values each computes from."""

    def __init__(self, model: ir.Model) -> None:
        self.nodes = list(model.graph)
        self.position = {id(node): place for place, node in enumerate(self.nodes)}
        self._dominators = _dominators(self.nodes)

    def block(self, nodes: Iterable[ir.Node], wanted: set[int]) -> Block | None:
        """The nodes as a block, None where they have not one entry and one exit, or no layer."""
        ordered = sorted(nodes, key=lambda node: self.position[id(node)])
        ours = {id(node) for node in ordered}
        layers = tuple(node for node in ordered if id(node) in wanted)
        entries = {id(v): v for node in ordered for v in computed(node) if not _in(v, ours)}
        exits = [v for node in ordered for v in node.outputs if _escapes(v, ours)]
        if len(entries) != 1 or len(exits) != 1 or not layers:
            return None
        return Block(tuple(ordered), next(iter(entries.values())), exits[0], layers)

    def needed(self, value: ir.Value) -> list[ir.Node]:
        """Nodes that a value depends on."""
        found: dict[int, ir.Node] = {}
        pending = [value.producer()]
        while pending:
            node = pending.pop()
            if node is not None and id(node) not in found:
                found[id(node)] = node
                pending.extend(v.producer() for v in computed(node))
        return list(found.values())

    def between(self, node: ir.Node) -> set[int] | None:
        """Nodes from the last value that all of a node's inputs come from, up to the node."""
        source = self._dominators[id(node)]
        region: set[int] = set()
        pending = [node]
        while pending:
            current = pending.pop()
            region.add(id(current))
            for value in computed(current):
                maker = value.producer()
                if value is source or maker is None or id(maker) in region:
                    continue
                pending.append(maker)
        return region if source is not None else None


def computed(node: ir.Node) -> list[ir.Value]:
    """Inputs that are not constants, each once, the ones that bodies of a node read included."""
    values = [value for value in node.inputs if value is not None and not is_constant(value)]
    return list({id(value): value for value in values}.values())


def _in(value: ir.Value, nodes: set[int]) -> bool:
    maker = value.producer()
    return maker is not None and id(maker) in nodes


def _escapes(value: ir.Value, nodes: set[int]) -> bool:
    return value.is_graph_output() or any(id(r) not in nodes for r in value.consumers())


def _dominators(nodes: Sequence[ir.Node]) -> dict[int, ir.Value | None]:
    """For each node the last value that every way from the inputs to it goes through, or None.

    Source: Cooper, Harvey, Kennedy 2001, A Simple, Fast Dominance Algorithm; one pass is enough
    where there are no cycles.
    """
    above: dict[int, ir.Value | None] = {}
    depth: dict[int, int] = {}

    def up(value: ir.Value) -> ir.Value | None:
        maker = value.producer()
        return None if maker is None else above[id(maker)]

    def height(value: ir.Value) -> int:
        maker = value.producer()
        return 0 if maker is None else depth[id(maker)]

    def meet(a: ir.Value | None, b: ir.Value | None) -> ir.Value | None:
        while a is not None and b is not None and a is not b:
            if height(a) >= height(b):
                a = up(a)
            else:
                b = up(b)
        return a if a is b else None

    for node in nodes:
        values = computed(node)
        found: ir.Value | None = values[0] if values else None
        for value in values[1:]:
            found = meet(found, value)
        above[id(node)] = found
        depth[id(node)] = 1 + (-1 if found is None else height(found))
    return above


def _residual(graph: _Graph, wanted: set[int]) -> list[Block]:
    """Regions that end where a branch comes back, the largest first."""
    found: list[Block] = []
    for node in graph.nodes:
        if node.op_type not in ("Add", "Mul", "Concat", "Sum") or len(computed(node)) < 2:
            continue
        region = graph.between(node)
        if region is None:
            continue
        block = graph.block([n for n in graph.nodes if id(n) in region], wanted)
        if block is not None and len(block.layers) <= LARGEST:
            found.append(_with_tail(graph, block, wanted))
    return sorted(found, key=lambda block: -len(block.layers))


def _runs(graph: _Graph, wanted: set[int]) -> list[Block]:
    """Each layer by itself, with what follows it."""
    alone = (graph.block([node], wanted) for node in graph.nodes if id(node) in wanted)
    return [_with_tail(graph, block, wanted) for block in alone if block is not None]


def _with_tail(graph: _Graph, block: Block, wanted: set[int]) -> Block:
    """The block and the nodes behind it that compute from its exit alone, up to the next layer."""
    best = block
    while True:
        readers = {id(reader): reader for reader in best.exit.consumers()}
        more = [r for r in readers.values() if _follows(r, best.exit)]
        if best.exit.is_graph_output() or not more or len(more) < len(readers):
            return best
        grown = graph.block([*best.nodes, *more], wanted) or graph.block(
            [*best.nodes, *more, *_closing(more)], wanted
        )
        if grown is None:
            return best
        best = grown


def _follows(reader: ir.Node, value: ir.Value) -> bool:
    """Whether a node turns this value alone into another of its size, number by number."""
    elementwise = ("Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "Add", "Mul")
    others = ("Tanh", "HardSwish", "Gelu", "Elu", "Mish", "Erf", "Div", "Identity")
    return reader.op_type in (*elementwise, *others) and (
        all(v is value for v in computed(reader)) or reader.op_type in ("Add", "Mul")
    )


def _closing(nodes: Sequence[ir.Node]) -> list[ir.Node]:
    """What brings two of these back together: the Mul of a HardSwish written out."""
    return [
        reader
        for node in nodes
        for reader in node.outputs[0].consumers()
        if reader.op_type in ("Mul", "Add") and not is_matmul(reader)
    ]


def _joined(graph: _Graph, blocks: Sequence[Block], wanted: set[int]) -> list[Block]:
    """Neighbours without a residual branch made one, up to `RUN` layers."""
    ordered = sorted(blocks, key=lambda block: graph.position[id(block.layers[0])])
    found: list[Block] = []
    for block in ordered:
        joined = None
        small = found and len(found[-1].layers) + len(block.layers) <= RUN
        if small and block.entry is found[-1].exit and not _branches(found[-1]):
            joined = graph.block([*found[-1].nodes, *block.nodes], wanted)
        if joined is None or _branches(block):
            found.append(block)
        else:
            found[-1] = joined
    return found


def _branches(block: Block) -> bool:
    """Whether a branch with or around layers comes back in it."""
    ours = {id(node) for node in block.nodes}
    return any(
        len(computed(node)) > 1 and all(_in(v, ours) or v is block.entry for v in computed(node))
        for node in block.nodes
        if node.op_type in ("Add", "Concat", "Sum")
    )
