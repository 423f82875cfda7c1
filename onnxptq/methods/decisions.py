"""The weights whose width is open, and the moments of the layers that read them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.calibrate.source import Data
from onnxptq.methods.method import Context
from onnxptq.methods.moments import Moments, from_rows, groups_of, supports, to_rows
from onnxptq.ops.nodes import constant
from onnxptq.recipe import Recipe
from onnxptq.rewrite.place import regions_of
from onnxptq.rewrite.regions import activation_inputs, bias_of, weight_of

F64 = npt.NDArray[np.float64]
F32 = npt.NDArray[np.float32]

MOMENT_BYTES = 256 << 20
"""Moments of layers are collected for as many layers at once as fit into this."""


@dataclass(frozen=True, slots=True)
class Decision:
    """A weight that gets a width, and the layers that read it, most often one."""

    weight: str
    nodes: tuple[ir.Node, ...]

    @property
    def array(self) -> F32:
        """The real weight."""
        found = constant(weight_of(self.nodes[0]))
        assert found is not None
        return found.astype(np.float32)

    @property
    def rows(self) -> F64:
        """The real weight, [G, R, K]."""
        return to_rows(self.nodes[0], self.array.astype(np.float64))

    @property
    def bias(self) -> ir.Value | None:
        """The bias, where a layer has one to itself and its weight too."""
        bias = bias_of(self.nodes[0]) if len(self.nodes) == 1 else None
        return bias if bias is not None and len(bias.uses()) == 1 else None

    def stored(self, rows: F64, bias: F64 | None) -> dict[str, F32]:
        """Rows and bias as the model's initializers, by name."""
        arrays = {self.weight: from_rows(self.nodes[0], rows.astype(np.float32), self.array)}
        own = self.bias
        given = constant(own)
        if bias is not None and own is not None and given is not None:
            arrays[str(own.name)] = bias.astype(np.float32).reshape(given.shape)
        return arrays


def decisions(recipe: Recipe, ctx: Context) -> tuple[Decision, ...]:
    """The weights with one matrix a group whose width nobody has fixed, in graph order."""
    regions = regions_of(ctx.model, recipe)
    readers: dict[str, list[ir.Node]] = {}
    closed = set(ctx.fixed)
    for node in ctx.model.graph:
        weight = weight_of(node) if regions.holds(node) else None
        if weight is None or str(weight.name) not in recipe.tensors:
            continue
        readers.setdefault(str(weight.name), []).append(node)
        if not supports(node):
            closed.add(str(weight.name))
    return tuple(
        Decision(name, tuple(nodes)) for name, nodes in readers.items() if name not in closed
    )


def moments_of(
    open_: Sequence[Decision], data: Data, ctx: Context
) -> Iterator[tuple[Decision, tuple[Moments, ...]]]:
    """Moments of the float inputs and outputs of the layers of each decision, in order."""
    for chunk in _chunks(open_):
        nodes = [node for decision in chunk for node in decision.nodes]
        ports = [(_input(node), str(node.outputs[0].name)) for node in nodes]
        totals = _Totals([None] * len(nodes))
        for values in ctx.float_values(data, list(dict.fromkeys(sum(ports, ())))):
            for place, (node, (x, y)) in enumerate(zip(nodes, ports, strict=True)):
                totals.add(place, Moments.of(node, values[x], values[y]))
        found = iter(totals.moments)
        for decision in chunk:
            own = tuple(next(found) for _ in decision.nodes)
            assert all(moments is not None for moments in own)
            yield decision, tuple(moments for moments in own if moments is not None)


@dataclass(slots=True)
class _Totals:
    """Running sums, one a layer."""

    moments: list[Moments | None] = field(default_factory=list[Moments | None])

    def add(self, place: int, found: Moments) -> None:
        known = self.moments[place]
        self.moments[place] = found if known is None else known + found


def _chunks(open_: Sequence[Decision]) -> Iterator[list[Decision]]:
    chunk: list[Decision] = []
    size = 0
    for decision in open_:
        needed = 8 * len(decision.nodes) * _moment_numbers(decision)
        if chunk and size + needed > MOMENT_BYTES:
            yield chunk
            chunk, size = [], 0
        chunk.append(decision)
        size += needed
    if chunk:
        yield chunk


def _moment_numbers(decision: Decision) -> int:
    shape = decision.rows.shape
    return groups_of(decision.nodes[0]) * shape[2] * (shape[2] + shape[1])


def _input(node: ir.Node) -> str:
    return str(next(iter(activation_inputs(node))).name)
