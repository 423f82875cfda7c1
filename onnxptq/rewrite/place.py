"""Which tensors get Q/DQ, with how many bits, tied to what: the recipe before any range."""

from collections.abc import Mapping
from dataclasses import dataclass

import onnx_ir as ir

from onnxptq.graph.io import digest
from onnxptq.ops.nodes import constant, is_constant
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe, Role, TensorQuant
from onnxptq.rewrite.bits import Bits
from onnxptq.rewrite.clamps import folded_clamps
from onnxptq.rewrite.options import Placing, check_patterns
from onnxptq.rewrite.regions import (
    FLOAT_OUTPUT,
    Regions,
    activation_inputs,
    is_matmul,
    record,
    refusal,
    split,
    weight_of,
)
from onnxptq.rewrite.ties import Ties, find_ties


@dataclass(frozen=True)
class Layout:
    """What a recipe's list of float nodes means for a graph.

    Attributes:
        regions: Which nodes run on integers.
        folded: Value name to the Relu or Clip that vanishes into the Q of its output.
        values: The quantized activations by name, in graph order, constants included.
    """

    regions: Regions
    folded: Mapping[str, ir.Node]
    values: Mapping[str, ir.Value]


def place(model: ir.Model, placing: Placing, unusable: Mapping[str, str] | None = None) -> Recipe:
    """Decide where Q/DQ pairs go; ranges are placeholders until methods set them.

    Args:
        model: A prepared float model: unique names, constants as initializers, types inferred.
        placing: The user's choices.
        unusable: Values that cannot be codes (they were NaN or infinite), to the reason; the nodes
            that make or read them stay in float.

    Returns:
        A recipe with an entry for each quantized value and weight, and a reason for each float
        node.

    Raises:
        SpecError: A choice is malformed or a pattern matches nothing.
    """
    check_patterns(model, placing)
    regions = split(model, placing, unusable or {})
    layout = lay_out(model, regions)
    bits = Bits(model, regions, placing)
    ties = find_ties(model, regions, dict(layout.folded))
    tensors = _activations(layout, ties, bits)
    for node in model.graph:
        weight = weight_of(node) if regions.holds(node) else None
        if weight is not None and weight.name not in tensors:
            tensors[str(weight.name)] = _weight(node, weight, bits, placing)
    return Recipe(digest(model), tensors, dict(regions.reasons))


def lay_out(model: ir.Model, regions: Regions) -> Layout:
    """Find the clamps that vanish and the values that need codes."""
    folded = folded_clamps(model, regions)
    vanished = {id(node) for node in folded.values()}
    values: dict[str, ir.Value] = {}
    for node in model.graph:
        if not regions.holds(node):
            continue
        if id(node) not in vanished:
            values.update({str(value.name): value for value in activation_inputs(node)})
        for value in node.outputs:
            if value.name and _needs_codes(node, value, regions, folded):
                values[str(value.name)] = value
    return Layout(regions, folded, values)


def regions_of(model: ir.Model, recipe: Recipe) -> Regions:
    """The split that a recipe describes: all nodes that can be integer, but for those it names."""
    reasons = dict(recipe.float_nodes)
    return Regions(
        {
            str(node.name)
            for node in model.graph
            if str(node.name) not in reasons and refusal(node) is None
        },
        reasons,
    )


def fixed_weights(model: ir.Model, recipe: Recipe, placing: Placing) -> frozenset[str]:
    """The weights of a recipe that no search for widths may touch: see `Bits.is_fixed`."""
    regions = regions_of(model, recipe)
    bits = Bits(model, regions, placing)
    found = {weight for node in model.graph if regions.holds(node) and (weight := weight_of(node))}
    return frozenset(str(weight.name) for weight in found if bits.is_fixed(weight))


def _needs_codes(
    node: ir.Node, value: ir.Value, regions: Regions, folded: Mapping[str, ir.Node]
) -> bool:
    readers = list(value.consumers())
    if len(readers) == 1 and folded.get(str(readers[0].outputs[0].name)) is readers[0]:
        return False
    if node.op_type in FLOAT_OUTPUT and not any(map(regions.holds, readers)):
        return False
    return bool(readers) or value.is_graph_output()


def _activations(layout: Layout, ties: Ties, bits: Bits) -> dict[str, TensorQuant]:
    tensors: dict[str, TensorQuant] = {}
    for names in ties.groups(list(layout.values)):
        group = [layout.values[name] for name in names]
        if is_derived(group[0], layout.regions):
            continue
        spec = QuantSpec(bits.of_activation(group), signed=False)
        root = _root(group, set(names))
        for value in group:
            name = str(value.name)
            tied_to = None if value is root else str(root.name)
            tensors[name] = TensorQuant(name, _role(value), QParams.unit(spec), tied_to)
            if is_constant(value) and tied_to is None:
                tensors[name] = _constant(value, spec)
    return {name: tensors[name] for name in layout.values if name in tensors}


def is_derived(value: ir.Value, regions: Regions) -> bool:
    """Whether a value's parameters follow from another's: the output of a HardSigmoid on codes."""
    producer = value.producer()
    return producer is not None and producer.op_type == "HardSigmoid" and regions.holds(producer)


def _root(group: list[ir.Value], names: set[str]) -> ir.Value:
    """The member whose range serves all.

    A member that only tied nodes read passes its values on, so its readers' range counts instead;
    of the others, the first made covers those that are parts of it.
    """
    final = [value for value in group if not _only_passed_on(value, names)]
    return final[0] if len(final) == 1 else group[0] if not _has_concat(group) else group[-1]


def _only_passed_on(value: ir.Value, names: set[str]) -> bool:
    readers = value.consumers()
    if value.is_graph_output() or not readers:
        return False
    return all(reader.outputs[0].name in names and not is_matmul(reader) for reader in readers)


def _has_concat(group: list[ir.Value]) -> bool:
    producers = (value.producer() for value in group)
    return any(node is not None and node.op_type == "Concat" for node in producers)


def _role(value: ir.Value) -> Role:
    if value.is_graph_input():
        return Role.INPUT
    return Role.OUTPUT if value.is_graph_output() else Role.ACTIVATION


def _constant(value: ir.Value, spec: QuantSpec) -> TensorQuant:
    """A constant operand of an Add, Mul, Concat or MatMul: its range is known."""
    array = constant(value)
    assert array is not None
    lo, hi = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    params = QParams.from_range(lo, hi, spec)
    return TensorQuant(str(value.name), Role.CONSTANT, params, None, "constant")


def _weight(node: ir.Node, weight: ir.Value, bits: Bits, placing: Placing) -> TensorQuant:
    op = record(node)
    assert op is not None
    assert op.rule.weight_axis is not None
    axes = {op.rule.weight_axis(node)} | {
        other.rule.weight_axis(reader)
        for reader in weight.consumers()
        if weight_of(reader) is weight and (other := record(reader)) and other.rule.weight_axis
    }
    axis = axes.pop() if len(axes) == 1 and placing.per_channel else None
    spec = QuantSpec(bits.of_weight(weight), signed=True, axis=axis)
    array = constant(weight)
    assert array is not None
    channels = None if axis is None else array.shape[axis]
    return TensorQuant(str(weight.name), Role.WEIGHT, QParams.unit(spec, channels))
