"""fold-affine: arithmetic by constants around Conv, Gemm, MatMul moves into weight and bias."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.affine import linear
from onnxptq.passes.edit import (
    F64,
    bypass,
    feeds_only,
    floats,
    input_at,
    is_op,
    rank,
    remove,
    take_over,
)


@dataclass(frozen=True)
class FoldAffine(ir.passes.InPlacePass):
    """Fold Mul, Div, Add and Sub by a scalar or by one number a channel.

    Behind a layer all four fold (MatMul has no bias: Mul and Div only). In front of one, Mul and
    Div fold always, Add and Sub only where nothing is padded: padded zeros are not shifted.
    """

    name: ClassVar[str] = "fold-affine"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        modified = False
        while any(_fold_behind(node) or _fold_before(node) for node in _arithmetic(model.graph)):
            modified = True  # a fold may leave the next node beside the layer
        return ir.passes.PassResult(model, modified=modified)


def _arithmetic(graph: ir.Graph) -> list[ir.Node]:
    return [node for node in graph if is_op(node, "Mul", "Div", "Add", "Sub")]


@dataclass(frozen=True, slots=True)
class _Affine:
    """What an arithmetic node does to its one variable input: y = gain * x + shift."""

    source: ir.Value
    gain: F64
    shift: F64


def _affine(node: ir.Node) -> _Affine | None:
    left, right = node.inputs[0], input_at(node, 1)
    if left is None or right is None:
        return None
    a, b = floats(left), floats(right)
    if (a is None) == (b is None):
        return None
    one, zero = np.ones(()), np.zeros(())
    forms: dict[str, Callable[[F64], tuple[F64, F64]]]
    if b is not None:
        forms = {
            "Mul": lambda c: (c, zero),
            "Div": lambda c: (1 / c, zero),
            "Add": lambda c: (one, c),
            "Sub": lambda c: (one, -c),
        }
        source, number = left, b
    else:
        assert a is not None
        forms = {"Mul": lambda c: (c, zero), "Add": lambda c: (one, c), "Sub": lambda c: (-one, c)}
        source, number = right, a
    if node.op_type not in forms:
        return None
    with np.errstate(divide="ignore"):
        gain, shift = forms[node.op_type](number)
    if not (np.isfinite(gain).all() and np.isfinite(shift).all()):
        return None
    return _Affine(source, gain, shift)


def _fold_behind(node: ir.Node) -> bool:
    affine = _affine(node)
    if affine is None or not feeds_only(affine.source, node):
        return False
    target = linear(affine.source.producer())
    if target is None:
        return False
    dimensions = rank(affine.source)
    gain = _per_channel(affine.gain, dimensions, target.channel_axis, target.channels)
    shift = _per_channel(affine.shift, dimensions, target.channel_axis, target.channels)
    if gain is None or shift is None or (shift.any() and not target.takes_bias):
        return False
    target.update(target.scale_outputs(gain), target.bias * gain + shift)
    take_over(target.node.outputs[0], node.outputs[0])
    remove(node)
    return True


def _fold_before(node: ir.Node) -> bool:
    affine = _affine(node)
    reader = _only_reader(node.outputs[0])
    target = linear(reader)
    if affine is None or target is None or target.node.inputs[0] is not node.outputs[0]:
        return False
    if affine.source.dtype != node.outputs[0].dtype or target.transposes_input:
        return False
    dimensions = rank(affine.source)
    axis = 1 if target.node.op_type.startswith("Conv") else -1
    gain = _per_channel(affine.gain, dimensions, axis, target.inputs)
    shift = _per_channel(affine.shift, dimensions, axis, target.inputs)
    if gain is None or shift is None:
        return False
    bias = target.bias
    if shift.any():
        if not target.takes_bias or target.pads:
            return False
        bias = bias + target.response(np.broadcast_to(shift, (target.inputs,)))
    target.update(target.scale_inputs(gain), bias)
    return bypass(node, affine.source)


def _per_channel(number: F64, dimensions: int | None, axis: int, channels: int) -> F64 | None:
    """A factor as [] or [channels], or None if it differs along another axis or adds dimensions."""
    if number.ndim == 0:
        return number
    if dimensions is None or number.ndim > dimensions:
        return None
    if number.size == 1:
        return number.reshape(())
    shape = [1] * (dimensions - number.ndim) + list(number.shape)
    expected = [1] * dimensions
    expected[axis] = channels
    return number.reshape(-1) if shape == expected else None


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    producer, reader = value.producer(), uses[0].node
    # A reader inside a body (of If, Loop, Scan) is left alone.
    return reader if producer is not None and reader.graph is producer.graph else None
