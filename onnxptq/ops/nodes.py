"""Reading a node: attributes with their ONNX defaults, constant inputs, ranks."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute, or its default where the node leaves it out."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_int()


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    """A float attribute, or its default where the node leaves it out."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_float()


def ints_attribute(node: ir.Node, name: str, default: Sequence[int]) -> tuple[int, ...]:
    """A list of integers, or its default where the node leaves it out."""
    attribute = node.attributes.get(name)
    return tuple(default if attribute is None else attribute.as_ints())


def string_attribute(node: ir.Node, name: str, default: str) -> str:
    """A string attribute, or its default where the node leaves it out."""
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.as_string()


def input_at(node: ir.Node, position: int) -> ir.Value | None:
    """The input at `position`, None where it is absent or left empty."""
    return node.inputs[position] if position < len(node.inputs) else None


def is_constant(value: ir.Value | None) -> bool:
    """Whether the value is an initializer that nobody can override."""
    return value is not None and value.const_value is not None and not value.is_graph_input()


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The array behind a constant value, None for anything computed."""
    if value is None or not is_constant(value) or value.const_value is None:
        return None
    return value.const_value.numpy()


def scalar(value: ir.Value | None) -> float | None:
    """The number behind a constant of one element, None for anything else."""
    array = constant(value)
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None


def rank(value: ir.Value | None) -> int | None:
    """Number of dimensions, None where shape inference did not find it."""
    return None if value is None or value.shape is None else value.shape.rank()


def is_float(value: ir.Value | None) -> bool:
    """Whether the value is known to be a float32 tensor."""
    return value is not None and value.dtype == ir.DataType.FLOAT


def fits_channels(array: npt.NDArray[Any], channels: int) -> bool:
    """Whether a bias of this shape is one number per output channel and nothing else."""
    return array.size == channels and array.shape[-1:] == (channels,)
