"""fold-identity: nodes that hand on their input unchanged are removed."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.passes.edit import (
    bypass,
    constant,
    input_at,
    ints,
    rank,
    same_shape,
    scalar,
    static_shape,
)


@dataclass(frozen=True)
class FoldIdentity(ir.passes.InPlacePass):
    """Remove what does nothing: Identity, Dropout, Cast to the same type, Mul by 1, empty Pad, ...

    A node stays when its input is a graph input and its output a graph output, since both names are
    the user's.
    """

    name: ClassVar[str] = "fold-identity"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Apply the pass to the model in place."""
        modified = False
        for node in list(model.graph):
            source = _unchanged(node)
            if source is not None:
                modified |= bypass(node, source)
        return ir.passes.PassResult(model, modified=modified)


def _unchanged(node: ir.Node) -> ir.Value | None:
    """The input that output 0 always equals, or None."""
    rule = _RULES.get(node.op_type) if node.domain == "" else None
    if rule is None or not node.inputs or node.inputs[0] is None:
        return None
    if any(value.uses() or value.is_graph_output() for value in node.outputs[1:]):
        return None
    return node.inputs[0] if rule(node) else None


def _always(_: ir.Node) -> bool:
    return True


def _dropout(node: ir.Node) -> bool:
    training = input_at(node, 2)
    if training is None:
        return True
    array = constant(training)
    return array is not None and not bool(array.any())


def _cast(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is not None and source.dtype == ir.DataType(node.attributes.get_int("to", 0))


def _expand(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is not None and same_shape(source, node.outputs[0])


def _reshape(node: ir.Node) -> bool:
    # The number of elements stays, so one dimension that is not known to be equal is equal too.
    source = node.inputs[0]
    return source is not None and same_shape(source, node.outputs[0], but=1)


def _flatten(node: ir.Node) -> bool:
    return rank(node.inputs[0]) == 2 and node.attributes.get_int("axis", 1) == 1


def _transpose(node: ir.Node) -> bool:
    perm = node.attributes.get_ints("perm")
    return perm is not None and list(perm) == list(range(len(perm)))


def _pad(node: ir.Node) -> bool:
    pads = ints(input_at(node, 1))
    return pads is not None and not any(pads)


def _slice(node: ir.Node) -> bool:
    steps = ints(input_at(node, 4))
    if input_at(node, 4) is not None and (steps is None or any(step != 1 for step in steps)):
        return False
    source = node.inputs[0]
    whole = static_shape(source)
    if whole is not None and whole == static_shape(node.outputs[0]):
        return True
    starts, ends = ints(input_at(node, 1)), ints(input_at(node, 2))
    endless = np.iinfo(np.int32).max
    return starts is not None and ends is not None and not any(starts) and min(ends) >= endless


def _one_input(node: ir.Node) -> bool:
    return len(node.inputs) == 1


def _split(node: ir.Node) -> bool:
    return len(node.outputs) == 1


def _neutral(number: float) -> Callable[[ir.Node], bool]:
    """Whether input 1 is this number and has no more dimensions than input 0."""

    def rule(node: ir.Node) -> bool:
        other, dimensions = input_at(node, 1), rank(node.inputs[0])
        if scalar(other) != number:
            return False
        return rank(other) == 0 or (dimensions is not None and (rank(other) or 0) <= dimensions)

    return rule


_RULES: dict[str, Callable[[ir.Node], bool]] = {
    "Identity": _always,
    "Dropout": _dropout,
    "Cast": _cast,
    "Reshape": _reshape,
    "Expand": _expand,
    "Squeeze": _reshape,
    "Flatten": _flatten,
    "Transpose": _transpose,
    "Pad": _pad,
    "Slice": _slice,
    "Concat": _one_input,
    "Sum": _one_input,
    "Max": _one_input,
    "Min": _one_input,
    "Mean": _one_input,
    "Split": _split,
    "Add": _neutral(0.0),
    "Sub": _neutral(0.0),
    "Mul": _neutral(1.0),
    "Div": _neutral(1.0),
    "Pow": _neutral(1.0),
}
