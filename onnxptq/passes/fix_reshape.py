"""fix-reshape: a Reshape whose target is computed from shapes gets a constant target."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.edit import constant, graph_of, input_at, is_op, new_constant


@dataclass(frozen=True)
class FixReshape(ir.passes.InPlacePass):
    """Replace a computed Reshape target by a constant one that means the same for every input.

    Exporters write x.view(x.size(0), -1) as Shape, Gather, Unsqueeze, Concat, Reshape. Where the
    inferred output shape has at most one dimension that is neither a number nor the input's own
    dimension at the same place, a target with numbers, 0 (as the input) and one -1 says it all.
    """

    name: ClassVar[str] = "fix-reshape"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        modified = False
        for node in model.graph:
            if not is_op(node, "Reshape") or constant(input_at(node, 1)) is not None:
                continue
            target = _target(node)
            if target is not None:
                name = f"{node.name}_shape"
                value = new_constant(graph_of(node), name, np.array(target, np.int64))
                node.replace_input_with(1, value)
                modified = True
        return ir.passes.PassResult(model, modified=modified)


def _target(node: ir.Node) -> list[int] | None:
    source, shape = node.inputs[0], node.outputs[0].shape
    if source is None or shape is None or node.attributes.get_int("allowzero", 0):
        return None
    before = source.shape if source.shape is not None else ()
    target = [_dimension(i, dim, before) for i, dim in enumerate(shape)]
    if target.count(-1) > 1 or any(isinstance(dim, int) and dim == 0 for dim in shape):
        return None
    return target


def _dimension(place: int, dim: int | ir.SymbolicDim, before: ir.Shape | tuple[()]) -> int:
    if isinstance(dim, int):
        return dim
    if place < len(before) and dim.value is not None:
        own = before[place]
        if isinstance(own, ir.SymbolicDim) and own.value == dim.value:
            return 0
    return -1
