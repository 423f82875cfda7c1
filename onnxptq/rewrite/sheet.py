"""The model that is being written: edits that keep it valid, and keys of what we leave in it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.quant import QParams

FLOAT_NODES_KEY = "onnxptq.float_nodes"
DIGEST_KEY = "onnxptq.model_digest"
STEPS_KEY = "onnxptq.methods"
TENSOR_KEY = "onnxptq.tensor"
CLAMP_KEY = "onnxptq.clamp"
GATE_KEY = "onnxptq.gate"
PAD_KEY = "onnxptq.pad_value"
GUARD_KEY = "onnxptq.guard"


class Sheet:
    """One graph while Q/DQ pairs are put into it."""

    def __init__(self, graph: ir.Graph) -> None:
        self.graph = graph
        self._zero_points: dict[str, ir.Value] = {}

    def add(self, name: str, array: npt.NDArray[np.generic] | np.generic) -> ir.Value:
        """Add an initializer."""
        # ir.tensor would ask what the array is in ways that take ten times as long.
        numbers: npt.NDArray[Any] = np.asarray(array)
        value = ir.val(name, const_value=ir.Tensor(numbers, name=name))
        self.graph.register_initializer(value)
        return value

    def parameters(self, name: str, params: QParams) -> tuple[ir.Value, ir.Value]:
        """Scale and zero point of a value, written out; tied values have their own."""
        known = self.graph.initializers.get(f"{name}_scale")
        if known is not None:
            return known, self._zero_points[name]
        # Weights do not share theirs: onnxruntime refuses such files where it is asked for exact
        # sums on CPUs without VNNI (session.x64quantprecision).
        zero_point = params.zero_point.astype(params.spec.container)
        self._zero_points[name] = self.add(f"{name}_zero_point", zero_point)
        return self.add(f"{name}_scale", params.scale), self._zero_points[name]

    def zeros(self, channels: int, dtype: npt.DTypeLike) -> ir.Value:
        """A vector of zeros that all biases of so many channels share."""
        kind = np.dtype(dtype)
        name = f"zero_point_{kind.name}_{channels}"
        known = self.graph.initializers.get(name)
        return self.add(name, np.zeros(channels, kind)) if known is None else known

    def insert_after(self, value: ir.Value, node: ir.Node) -> None:
        """Insert a node behind the one that makes `value`, or first where none does."""
        producer = value.producer()
        if producer is None:
            self.insert_first([node])
        else:
            self.graph.insert_after(producer, node)

    def insert_first(self, nodes: Sequence[ir.Node]) -> None:
        """Insert nodes before all others."""
        first = next(iter(self.graph), None)
        if first is None:
            self.graph.extend(nodes)
        else:
            self.graph.insert_before(first, nodes)

    def dequantize(
        self, name: str, inputs: Sequence[ir.Value], output: ir.Value, axis: int | None = None
    ) -> ir.Node:
        """Put the DequantizeLinear of a value behind its codes, `inputs[0]`."""
        node = ir.node(
            "DequantizeLinear",
            list(inputs),
            {} if axis is None else {"axis": axis},
            outputs=[output],
            name=f"{name}_DequantizeLinear",
        )
        self.insert_after(inputs[0], node)
        return node

    def drop_unused_initializers(self) -> None:
        """Remove the float weights that nothing reads any more."""
        for name, value in list(self.graph.initializers.items()):
            if not value.uses() and not value.is_graph_output():
                del self.graph.initializers[name]


def codes_like(name: str, like: ir.Value) -> ir.Value:
    """A new uint8 value with the shape of another."""
    return ir.val(name, dtype=ir.DataType.UINT8, shape=like.shape)


def real_like(name: str, like: ir.Value | None) -> ir.Value:
    """A new float value with the shape of another."""
    return ir.val(name, dtype=ir.DataType.FLOAT, shape=None if like is None else like.shape)
