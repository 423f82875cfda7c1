"""fold-batch-norm: BatchNormalization becomes part of the Conv or Gemm in front of it."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.affine import Linear, linear
from onnxptq.passes.edit import (
    F64,
    feeds_only,
    floats,
    graph_of,
    is_op,
    new_constant,
    new_node,
    rank,
    remove,
    take_over,
)
from onnxptq.passes.norm import Norm

META_KEY = "onnxptq.norm"
"""Where the pass leaves a node's Norm (`node.meta`, which is not saved in files)."""


@dataclass(frozen=True)
class FoldBatchNorm(ir.passes.InPlacePass):
    """Fold BatchNormalization into the Conv, ConvTranspose, Gemm or MatMul that alone feeds it.

    One that cannot fold becomes a depthwise 1x1 Conv, which onnxruntime runs as an integer kernel,
    or Mul and Add where its input has two dimensions. The statistics stay in `node.meta`.
    One in training mode stays: its output depends on the whole batch.
    """

    name: ClassVar[str] = "fold-batch-norm"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        norms = [node for node in model.graph if is_op(node, "BatchNormalization")]
        folded = [_fold(node) for node in norms]
        return ir.passes.PassResult(model, modified=any(folded))


def is_training(node: ir.Node) -> bool:
    """Whether a BatchNormalization normalizes by the statistics of the batch it is given."""
    return bool(node.attributes.get_int("training_mode", 0)) or len(node.outputs) > 1


def _fold(node: ir.Node) -> bool:
    if is_training(node):
        return False
    norm = _norm(node)
    source = node.inputs[0]
    if norm is None or source is None:
        return False
    gain = norm.gamma / np.sqrt(norm.variance.astype(np.float64) + norm.epsilon)
    shift = norm.beta - norm.mean * gain
    target = linear(source.producer())
    if target is not None and feeds_only(source, node) and _fits(target, source, gain):
        new = _into(target, gain, shift, node)
    else:
        new = _alone(node, gain, shift)
    if new is None:
        return False
    new.meta[META_KEY] = norm
    return True


def _norm(node: ir.Node) -> Norm | None:
    arrays = [floats(value) for value in node.inputs[1:5]]
    gamma, beta, mean, variance = (a.astype(np.float32) if a is not None else None for a in arrays)
    if gamma is None or beta is None or mean is None or variance is None:
        return None
    return Norm(gamma, beta, mean, variance, node.attributes.get_float("epsilon", 1e-5))


def _fits(target: Linear, source: ir.Value, gain: F64) -> bool:
    # BatchNormalization's channels are axis 1; those of MatMul are the last axis.
    on_axis_1 = target.node.op_type != "MatMul" or rank(source) == 2
    return on_axis_1 and target.channels == gain.size


def _into(target: Linear, gain: F64, shift: F64, node: ir.Node) -> ir.Node:
    new = target.node
    if not target.takes_bias:
        new = new_node(node, "Gemm", target.node.inputs, target.node.name or "gemm")
        target.node.outputs[0].replace_all_uses_with(new.outputs[0])
        remove(target.node)
        target = Linear(new, target.weight, target.bias)
    target.update(target.scale_outputs(gain), target.bias * gain + shift)
    take_over(new.outputs[0], node.outputs[0])
    remove(node)
    return new


def _alone(node: ir.Node, gain: F64, shift: F64) -> ir.Node | None:
    source, dimensions = node.inputs[0], rank(node.inputs[0])
    if dimensions is None or dimensions < 2:
        return None
    stem, graph = node.name or "norm", graph_of(node)
    like = source if source is not None and source.dtype is not None else node.inputs[1]
    spatial = [1] * (dimensions - 2)
    if dimensions in (3, 4):
        weight = new_constant(graph, f"{stem}_gain", gain.reshape(-1, 1, *spatial), like)
        bias = new_constant(graph, f"{stem}_shift", shift, like)
        attributes = {"group": gain.size, "kernel_shape": spatial}
        new = new_node(node, "Conv", [source, weight, bias], stem, attributes)
    else:
        weight = new_constant(graph, f"{stem}_gain", gain.reshape(-1, *spatial), like)
        bias = new_constant(graph, f"{stem}_shift", shift.reshape(-1, *spatial), like)
        scaled = new_node(node, "Mul", [source, weight], f"{stem}_mul")
        new = new_node(node, "Add", [scaled.outputs[0], bias], stem)
    take_over(new.outputs[0], node.outputs[0])
    remove(node)
    return new
