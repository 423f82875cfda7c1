"""merge-slices: Slices of different axes that follow each other become one."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.edit import (
    feeds_only,
    graph_of,
    input_at,
    ints,
    is_op,
    new_constant,
    new_node,
    rank,
    remove,
    take_over,
)

_Range = tuple[int, int, int]


@dataclass(frozen=True)
class MergeSlices(ir.passes.InPlacePass):
    """Merge x[..., ::2, :] and [..., ::2], as exporters write x[:, :, ::2, ::2], into one Slice."""

    name: ClassVar[str] = "merge-slices"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        slices = [node for node in model.graph if is_op(node, "Slice")]
        merged = [_merge(node) for node in slices]
        return ir.passes.PassResult(model, modified=any(merged))


def _merge(node: ir.Node) -> bool:
    between = node.inputs[0]
    first = between.producer() if between is not None else None
    if between is None or first is None or not is_op(first, "Slice"):
        return False
    before, after = _ranges(first), _ranges(node)
    if before is None or after is None or before.keys() & after.keys():
        return False
    if not feeds_only(between, node):
        return False
    name, graph, ranges = node.name or "slice", graph_of(node), before | after
    parts = {
        "starts": [start for start, _, _ in ranges.values()],
        "ends": [end for _, end, _ in ranges.values()],
        "axes": list(ranges),
        "steps": [step for _, _, step in ranges.values()],
    }
    constants = [
        new_constant(graph, f"{name}_{what}", np.array(numbers, np.int64))
        for what, numbers in parts.items()
    ]
    new = new_node(node, "Slice", [first.inputs[0], *constants], name)
    take_over(new.outputs[0], node.outputs[0])
    remove(node)
    remove(first)
    return True


def _ranges(node: ir.Node) -> dict[int, _Range] | None:
    """Start, end and step by axis, or None when they are not constant."""
    dimensions = rank(node.inputs[0])
    starts, ends = ints(input_at(node, 1)), ints(input_at(node, 2))
    if dimensions is None or starts is None or ends is None:
        return None
    axes: list[int] | None = list(range(len(starts)))
    steps: list[int] | None = [1] * len(starts)
    if input_at(node, 3) is not None:
        axes = ints(node.inputs[3])
    if input_at(node, 4) is not None:
        steps = ints(node.inputs[4])
    if axes is None or steps is None:
        return None
    whole = zip(starts, ends, steps, strict=True)
    return {axis % dimensions: part for axis, part in zip(axes, whole, strict=True)}
