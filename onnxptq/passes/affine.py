"""Weights and bias of Conv, ConvTranspose, Gemm and MatMul, scaled and shifted per channel."""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxptq.passes.edit import (
    F64,
    floats,
    graph_of,
    input_at,
    is_op,
    new_constant,
    rank,
    set_constant,
)

LINEAR = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True, slots=True)
class Linear:
    """A node y = W x + b whose W and b are constants.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        weight: As stored, in double precision.
        bias: [C], zeros when the node has none (already times Gemm's beta).
    """

    node: ir.Node
    weight: F64
    bias: F64

    @property
    def channels(self) -> int:
        """Number of output channels C."""
        return self.bias.size

    @property
    def takes_bias(self) -> bool:
        """MatMul has no place for a bias."""
        return self.node.op_type != "MatMul"

    @property
    def channel_axis(self) -> int:
        """Axis of the output channels in the node's output: 1, but the last one for MatMul."""
        return -1 if self.node.op_type == "MatMul" else 1

    def scale_outputs(self, factor: F64) -> F64:
        """The weight that gives factor[c] times the output; factor [C] or []."""
        columns = np.broadcast_to(factor, (self.channels,))
        node, weight = self.node, self.weight
        if node.op_type == "Conv" or _transposed(node):
            return weight * columns.reshape(-1, *[1] * (weight.ndim - 1))
        if node.op_type == "ConvTranspose":
            groups = node.attributes.get_int("group", 1)
            grouped = weight.reshape(groups, -1, *weight.shape[1:])
            shape = (groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
            return (grouped * columns.reshape(shape)).reshape(weight.shape)
        return weight * columns

    def scale_inputs(self, factor: F64) -> F64:
        """The weight that multiplies each input by factor before its own work; factor [K] or []."""
        node, weight = self.node, self.weight
        if factor.ndim == 0:
            return weight * factor
        if node.op_type == "ConvTranspose":
            return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
        if node.op_type == "Conv":
            groups = node.attributes.get_int("group", 1)
            grouped = weight.reshape(groups, -1, *weight.shape[1:])
            shape = (groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
            return (grouped * factor.reshape(shape)).reshape(weight.shape)
        return weight * (factor if _transposed(node) else factor[:, None])

    @property
    def inputs(self) -> int:
        """Number of input channels K."""
        node, weight = self.node, self.weight
        if node.op_type == "Conv":
            return weight.shape[1] * node.attributes.get_int("group", 1)
        return weight.shape[1] if _transposed(node) else weight.shape[0]

    def output_ranges(self) -> F64:
        """Largest |weight| of each output channel, [C]."""
        sizes = np.abs(self.weight)
        if self.node.op_type == "ConvTranspose":
            groups = self.node.attributes.get_int("group", 1)
            grouped = sizes.reshape(groups, -1, *sizes.shape[1:])
            return np.moveaxis(grouped, 2, 1).reshape(self.channels, -1).max(axis=1, initial=0.0)
        rows = sizes if self.node.op_type == "Conv" or _transposed(self.node) else sizes.T
        return rows.reshape(self.channels, -1).max(axis=1, initial=0.0)

    def input_ranges(self) -> F64:
        """Largest |weight| that reads each input channel, [K]."""
        sizes = np.abs(self.weight)
        if self.node.op_type == "Conv":
            groups = self.node.attributes.get_int("group", 1)
            grouped = sizes.reshape(groups, -1, *sizes.shape[1:])
            sizes = np.moveaxis(grouped, 2, 1)
        elif _transposed(self.node):
            sizes = sizes.T
        return sizes.reshape(self.inputs, -1).max(axis=1, initial=0.0)

    @property
    def transposes_input(self) -> bool:
        """Whether the input's axis 1 is not its channels: a Gemm with transA."""
        return self.node.op_type == "Gemm" and bool(self.node.attributes.get_int("transA", 0))

    @property
    def pads(self) -> bool:
        """Whether a shift of the input may give another result at the border than inside."""
        node = self.node
        if node.op_type in ("Gemm", "MatMul"):
            return False
        if node.op_type == "ConvTranspose":
            return True  # positions overlap by a number of taps that differs at the border
        if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return True
        return any(node.attributes.get_ints("pads", ()))

    def response(self, shift: F64) -> F64:
        """What a constant input shift[k] adds to each output channel, [C]; not if it `pads`."""
        weight = self.scale_inputs(shift)
        if self.node.op_type == "Conv":
            return weight.reshape(weight.shape[0], -1).sum(axis=1)
        alpha = self.node.attributes.get_float("alpha", 1.0)
        return alpha * weight.sum(axis=1 if _transposed(self.node) else 0)

    def update(self, weight: F64, bias: F64) -> None:
        """Write new numbers into the node; constants shared with other nodes stay as they are."""
        node = self.node
        old = node.inputs[1]
        assert old is not None
        if weight is not self.weight:
            _put(node, 1, weight, old.name or "weight", old)
        has_bias = input_at(node, 2) is not None
        if bias is self.bias or not self.takes_bias or not (has_bias or bias.any()):
            return
        _put(node, 2, bias, f"{node.name}_bias", old)
        node.attributes.pop("beta", None)


def _put(node: ir.Node, position: int, numbers: F64, name: str, like: ir.Value) -> None:
    """Set a constant input, under its old name if nobody else reads the old one."""
    old = input_at(node, position)
    if old is not None and len(old.uses()) == 1 and not old.is_graph_output():
        set_constant(old, numbers, like.dtype)
        return
    value = new_constant(graph_of(node), name, numbers, like)
    if len(node.inputs) <= position:
        node.resize_inputs(position + 1)
    node.replace_input_with(position, value)


def linear(node: ir.Node | None) -> Linear | None:
    """Read a node as y = W x + b, or None if it is not one or its numbers are not constant."""
    if node is None or not is_op(node, *LINEAR):
        return None
    weight = floats(input_at(node, 1))
    if weight is None or (node.op_type in ("Gemm", "MatMul") and weight.ndim != 2):
        return None
    if node.op_type == "MatMul" and (rank(node.inputs[0]) or 0) < 2:
        return None
    channels = _channels(node, weight)
    bias = _bias(node, channels)
    return None if bias is None else Linear(node, weight, bias)


def _bias(node: ir.Node, channels: int) -> F64 | None:
    """The bias as [C], or None when it is not constant or (in Gemm) differs from row to row."""
    if input_at(node, 2) is None:
        return np.zeros(channels)
    bias = floats(node.inputs[2])
    if bias is None or bias.shape not in ((), (1,), (channels,), (1, 1), (1, channels)):
        return None
    beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    return np.broadcast_to(bias.reshape(-1), (channels,)) * beta


def _channels(node: ir.Node, weight: F64) -> int:
    if node.op_type == "ConvTranspose":
        return weight.shape[1] * node.attributes.get_int("group", 1)
    return weight.shape[0] if node.op_type == "Conv" or _transposed(node) else weight.shape[1]


def _transposed(node: ir.Node) -> bool:
    return node.op_type == "Gemm" and bool(node.attributes.get_int("transB", 0))
