"""clip-from-min-max: Min, Max, Relu and Clip by constants become one Clip."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.edit import (
    feeds_only,
    graph_of,
    input_at,
    is_op,
    new_constant,
    new_node,
    rank,
    remove,
    scalar,
    take_over,
)


@dataclass(frozen=True)
class ClipFromMinMax(ir.passes.InPlacePass):
    """Turn Min and Max by a number into Clip, and merge Clips (and Relu) that follow each other.

    So Max(0) then Min(6), Relu then Min(6), and Relu then Clip(0, 6) all become Clip(0, 6), whose
    range onnxruntime folds into a QuantizeLinear.
    """

    name: ClassVar[str] = "clip-from-min-max"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        modified = False
        for node in list(model.graph):
            bounds = _bounds(node)
            if bounds is not None:
                modified |= _rewrite(node, bounds)
        return ir.passes.PassResult(model, modified=modified)


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What a node does to `source`: min(max(source, lo), hi)."""

    source: ir.Value
    lo: float
    hi: float


def _bounds(node: ir.Node) -> _Bounds | None:
    if node.outputs and node.outputs[0].dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return None
    if is_op(node, "Relu"):
        source = node.inputs[0]
        return None if source is None else _Bounds(source, 0.0, np.inf)
    if is_op(node, "Clip"):
        return _clip_bounds(node)
    if is_op(node, "Min", "Max") and len(node.inputs) == 2:
        return _min_max_bounds(node)
    return None


def _clip_bounds(node: ir.Node) -> _Bounds | None:
    source, low, high = node.inputs[0], input_at(node, 1), input_at(node, 2)
    lo = -np.inf if low is None else scalar(low)
    hi = np.inf if high is None else scalar(high)
    if source is None or lo is None or hi is None or "min" in node.attributes:
        return None
    return _Bounds(source, lo, hi)


def _min_max_bounds(node: ir.Node) -> _Bounds | None:
    left, right = node.inputs
    for source, other in ((left, right), (right, left)):
        number = scalar(other)
        if source is None or other is None or number is None or scalar(source) is not None:
            continue
        if rank(other) and (rank(source) is None or (rank(other) or 0) > (rank(source) or 0)):
            continue
        return _Bounds(source, *((-np.inf, number) if node.op_type == "Min" else (number, np.inf)))
    return None


def _rewrite(node: ir.Node, outer: _Bounds) -> bool:
    inner = _inner(node, outer)
    if inner is None and not is_op(node, "Min", "Max"):
        return False
    source, lo, hi = outer.source, outer.lo, outer.hi
    before = source.producer()
    if inner is not None:
        # min(max(x, lo), hi) maps the inner bounds as it maps any number.
        source = inner.source
        lo, hi = min(max(inner.lo, lo), hi), min(max(inner.hi, lo), hi)
    _replace(node, source, lo, hi)
    if inner is not None and before is not None:
        remove(before)
    return True


def _inner(node: ir.Node, outer: _Bounds) -> _Bounds | None:
    before = outer.source.producer()
    if before is None or not feeds_only(outer.source, node):
        return None
    inner = _bounds(before)
    return inner if inner is not None and inner.lo <= inner.hi else None


def _replace(node: ir.Node, source: ir.Value, lo: float, hi: float) -> None:
    name = node.name or "clip"
    if lo == 0 and hi == np.inf:
        new = new_node(node, "Relu", [source], name)
    else:
        graph = graph_of(node)
        low = new_constant(graph, f"{name}_min", np.array(lo), source) if lo > -np.inf else None
        high = new_constant(graph, f"{name}_max", np.array(hi), source) if hi < np.inf else None
        inputs = [source, low, high] if high is not None else [source, low]
        new = new_node(node, "Clip", inputs, name)
    take_over(new.outputs[0], node.outputs[0])
    remove(node)
