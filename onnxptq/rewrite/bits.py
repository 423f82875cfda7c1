"""How many bits each weight and each group of tied activations gets."""

from collections.abc import Callable, Iterable, Sequence

import onnx_ir as ir

from onnxptq.rewrite.options import Placing, Widths, matches
from onnxptq.rewrite.regions import Regions, activation_inputs, is_matmul, weight_of

Neighbours = Callable[[ir.Node], Iterable[ir.Node]]


class Bits:
    """Answers for one model and one set of choices.

    Low bits go to the weights of Conv, Gemm and MatMul and to the tensors they read. Everything
    else (a convolution's output on its way into an Add, gate and concat inputs) stays at 8 bits,
    as in the papers (methods.md 1.5).
    """

    def __init__(self, model: ir.Model, regions: Regions, placing: Placing) -> None:
        self._placing = placing
        self._default = placing.widths()
        self._overrides = placing.overrides()
        self._layers = [node for node in model.graph if is_matmul(node) and regions.holds(node)]
        self._first = _without(self._layers, _upstream_layers)
        self._last = _without(self._layers, _downstream_layers)

    def of_weight(self, weight: ir.Value) -> int:
        """Bits of a weight: the most that one of its layers asks for."""
        return max(
            self._layer_widths(layer, (weight,)).weight or 8
            for layer in self._layers
            if weight_of(layer) is weight
        )

    def is_fixed(self, weight: ir.Value) -> bool:
        """Whether a weight has its bits by name, or as one at an end of the network."""
        layers = [layer for layer in self._layers if weight_of(layer) is weight]
        named = (self._matching(layer, (weight,)) for layer in layers)
        if any(widths is not None and widths.weight is not None for widths in named):
            return True
        ends = self._first | self._last
        return self._placing.keep_first_last and any(id(layer) in ends for layer in layers)

    def of_activation(self, group: Sequence[ir.Value]) -> int:
        """Bits of a group of tied values: the most that a layer asks for; 8 if none reads it."""
        names = {value.name for value in group}
        asked = self._asked_by_name(group)
        if asked is not None:
            return asked
        if self._placing.keep_first_last and any(value.is_graph_input() for value in group):
            return 8
        readers = [
            layer
            for layer in self._layers
            if any(value.name in names for value in activation_inputs(layer))
        ]
        if not readers or self._made_by_first_layer(group):
            return 8
        return max(self._input_bits(layer) for layer in readers)

    def _asked_by_name(self, group: Sequence[ir.Value]) -> int | None:
        names = [value.name for value in group]
        asked = [w.activation for p, w in self._overrides if matches(p, names) and w.activation]
        return asked[-1] if asked else None

    def _made_by_first_layer(self, group: Sequence[ir.Value]) -> bool:
        if not self._placing.second_input_8:
            return False
        return any(id(layer) in self._first for value in group for layer in _nearest_layers(value))

    def _input_bits(self, layer: ir.Node) -> int:
        widths = self._matching(layer, ())
        if widths is not None and widths.activation is not None:
            return widths.activation
        if self._placing.keep_first_last and id(layer) in self._last:
            return 8
        return self._default.activation or 8

    def _layer_widths(self, layer: ir.Node, values: Iterable[ir.Value]) -> Widths:
        widths = self._matching(layer, values)
        if widths is not None and widths.weight is not None:
            return widths
        ends = id(layer) in self._first or id(layer) in self._last
        return Widths(8, 8) if self._placing.keep_first_last and ends else self._default

    def _matching(self, layer: ir.Node, values: Iterable[ir.Value]) -> Widths | None:
        names = (layer.name, layer.op_type, *(value.name for value in values))
        found: Widths | None = None
        for pattern, widths in self._overrides:
            if matches(pattern, names):
                found = widths
        return found


def _nearest_layers(value: ir.Value) -> list[ir.Node]:
    """The Conv, Gemm or MatMul that makes a value, looking through everything else."""
    found: list[ir.Node] = []
    pending, seen = [value.producer()], set[int]()
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if is_matmul(node):
            found.append(node)
        else:
            pending.extend(node.predecessors())
    return found


def _upstream_layers(layer: ir.Node) -> Iterable[ir.Node]:
    return layer.predecessors()


def _downstream_layers(layer: ir.Node) -> Iterable[ir.Node]:
    return layer.successors()


def _without(layers: list[ir.Node], neighbours: Neighbours) -> set[int]:
    """Ids of the layers from which no other layer can be reached over `neighbours`."""
    ends: set[int] = set()
    for layer in layers:
        pending, seen = list(neighbours(layer)), set[int]()
        while pending:
            node = pending.pop()
            if is_matmul(node):
                break
            if id(node) not in seen:
                seen.add(id(node))
                pending.extend(neighbours(node))
        else:
            ends.add(id(layer))
    return ends
