"""Subgraph: nodes of a float model as one differentiable torch function."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from onnxptq.methods.reconstruction.functions import OTHERS, Function, NoGradientError, Tensor
from onnxptq.methods.reconstruction.layout import channels_last
from onnxptq.ops import OPS
from onnxptq.ops.nodes import constant

Hook = Callable[[str, Tensor], Tensor]
_HERE = __name__.rpartition(".")[0]


def function_of(node: ir.Node) -> Function:
    """The torch function of a node's operator.

    Raises:
        NoGradientError: There is none.
    """
    op = OPS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if op is not None and op.gradient is not None:
        file, _, name = op.gradient.partition(":")
        return getattr(importlib.import_module(f"{_HERE}.{file}"), name)
    if node.domain in ("", "ai.onnx") and node.op_type in OTHERS:
        return OTHERS[node.op_type]
    raise NoGradientError(f"{node.op_type} has no gradient here")


def has_gradients(nodes: Sequence[ir.Node]) -> bool:
    """Whether every operator of these nodes has a torch function."""
    try:
        for node in nodes:
            function_of(node)
    except NoGradientError:
        return False
    return True


@dataclass(frozen=True, slots=True)
class _Call:
    node: ir.Node
    function: Function
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]


class Subgraph:
    """Nodes of a float model, in the graph's order, as one function of the values they lack.

    Args:
        nodes: Nodes of one graph.
        device: Where constants are kept and values are expected.

    Raises:
        NoGradientError: An operator has no torch function.
    """

    def __init__(self, nodes: Sequence[ir.Node], device: torch.device | None = None) -> None:
        self._calls = [
            _Call(node, function_of(node), _names(node.inputs), _made(node)) for node in nodes
        ]
        self._constants: dict[str, Tensor] = {}
        for node in nodes:
            for value in node.inputs:
                array = constant(value)
                if value is not None and array is not None:
                    self._constants[str(value.name)] = _tensor(array, device)

    def constant(self, name: str) -> Tensor:
        """A constant that one of the nodes reads, as it is in the float model."""
        return self._constants[name]

    def __call__(
        self,
        values: Mapping[str, Tensor],
        constants: Mapping[str, Tensor] | None = None,
        at: Hook | None = None,
    ) -> dict[str, Tensor]:
        """All values that the nodes compute, by name.

        Args:
            values: What they read and do not compute themselves.
            constants: Put in the place of constants of the model.
            at: Given each computed value and its name; what it returns is what others read.

        Raises:
            NoGradientError: A node is of a form that its torch function does not know.
        """
        known = {**self._constants, **(constants or {}), **values}
        made: dict[str, Tensor] = {}
        for call in self._calls:
            inputs = [None if name is None else known[name] for name in call.inputs]
            found = call.function(call.node, *inputs)
            several = found if isinstance(found, tuple) else (found,)
            for name, tensor in zip(call.outputs, several, strict=False):
                made[name] = known[name] = tensor if at is None else at(name, tensor)
        return made


def _names(values: Sequence[ir.Value | None]) -> tuple[str | None, ...]:
    return tuple(None if value is None else str(value.name) for value in values)


def _made(node: ir.Node) -> tuple[str, ...]:
    return tuple(str(value.name) for value in node.outputs)


def _tensor(array: np.ndarray, device: torch.device | None) -> Tensor:
    """The array on the device; whole numbers (shapes, axes) stay where Python reads them."""
    whole = not np.issubdtype(array.dtype, np.floating)
    return channels_last(torch.from_numpy(np.array(array)).to("cpu" if whole else device))
