"""What methods share that go through a network layer by layer, each on what is done before it."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.calibrate.source import Data
from onnxptq.methods.method import Context
from onnxptq.methods.moments import supports
from onnxptq.recipe import Recipe
from onnxptq.rewrite.place import regions_of
from onnxptq.rewrite.regions import activation_inputs, bias_of, weight_of

F32 = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a layer should give: its float output, less what the other addend of a sum is off by."""

    output: str
    partner: str | None

    @classmethod
    def of(cls, node: ir.Node, recipe: Recipe, done: set[str]) -> "Wanted":
        """That of a layer, once the layers named in `done` have their final weights."""
        output = node.outputs[0]
        readers = list(output.consumers())
        if len(readers) != 1 or readers[0].op_type != "Add" or output.is_graph_output():
            return cls(str(output.name), None)
        others = [v for v in readers[0].inputs if v is not None and v is not output]
        usable = len(others) == 1 and others[0].name in recipe.tensors
        if not usable or others[0].const_value is not None or not _finished(others[0], done):
            return cls(str(output.name), None)
        return cls(str(output.name), str(others[0].name))


def _finished(value: ir.Value, done: set[str]) -> bool:
    """Whether all layers that a value depends on are rounded."""
    pending, seen = [value.producer()], set[int]()
    while pending:
        node = pending.pop()
        if node is None or id(node) in seen:
            continue
        if weight_of(node) is not None and str(node.name) not in done:
            return False
        seen.add(id(node))
        pending.extend(node.predecessors())
    return True


def layers_of(model: ir.Model, recipe: Recipe) -> list[ir.Node]:
    """Layers on codes whose weight nobody else reads, in the order of the graph."""
    regions = regions_of(model, recipe)
    return [
        node
        for node in model.graph
        if regions.holds(node)
        and supports(node)
        and (weight := weight_of(node)) is not None
        and len(weight.uses()) == 1
    ]


def each(layers: list[ir.Node], ctx: Context, method: str) -> Iterator[tuple[ir.Node, set[str]]]:
    """Layers one after the other, each with the names of those before it, with progress shown."""
    done: set[str] = set()
    ctx.progress.start(method, len(layers))
    try:
        for node in layers:
            yield node, done
            done.add(str(node.name))
            ctx.progress.advance(1)
    finally:
        ctx.progress.finish()


def free_bias(node: ir.Node) -> ir.Value | None:
    """The bias of a layer, if it has one to itself."""
    bias = bias_of(node)
    return bias if bias is not None and len(bias.uses()) == 1 else None


class Pairs:
    """A layer's input as codes give it, and the output that is wanted of it."""

    def __init__(self, node: ir.Node, recipe: Recipe, ctx: Context, wanted: Wanted) -> None:
        self._x = str(next(iter(activation_inputs(node))).name)
        self._wanted = wanted
        partner = [wanted.partner] if wanted.partner else []
        self._real = ctx.float_taps([wanted.output, *partner])
        self._coded = ctx.coded_taps(recipe, list(dict.fromkeys([self._x, *partner])))

    def of(self, data: Data) -> Iterator[tuple[F32, F32]]:
        """Both, batch by batch."""
        partner = self._wanted.partner
        both = zip(self._real.values(data), self._coded.values(data), strict=True)
        for real, coded in both:
            target = real[self._wanted.output]
            if partner is not None:
                target = target + (real[partner] - coded[partner])
            yield coded[self._x], target.astype(np.float32)
