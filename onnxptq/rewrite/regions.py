"""Which nodes run on integers, which stay in float, and why."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from onnxptq.ops import OPS
from onnxptq.ops.nodes import constant, is_constant, is_float
from onnxptq.ops.op import Fusion, Op
from onnxptq.rewrite.options import Placing, matches

CLAMPS = ("Relu", "Clip")
"""Operators that only narrow a range: Q(clamp(x)) = clamp(Q(x)), a window of codes."""

ARITHMETIC = ("Add", "Mul", "Concat", "AveragePool", "GlobalAveragePool", "MaxPool")
POOLS = ("AveragePool", "GlobalAveragePool")
FLOAT_OUTPUT = ("Gemm", "MatMul")
"""Their integer kernels can give real numbers, so a last layer loses nothing to an output scale."""

AFTER_LAST = (
    "it comes after the last Conv, Gemm or MatMul: on 8 bits it would only round the model's output"
)
BETWEEN_FLOAT = "its neighbours are in float, so quantizing it would only add conversions"


@dataclass
class Regions:
    """The split of a graph.

    Attributes:
        integer: Names of the nodes that run on codes.
        reasons: Name of every other node that computes real numbers, to the reason.
    """

    integer: set[str] = field(default_factory=set[str])
    reasons: dict[str, str] = field(default_factory=dict[str, str])

    def holds(self, node: ir.Node | None) -> bool:
        """Whether a node runs on codes; False for None (graph inputs) and for nodes of bodies."""
        return node is not None and node.name in self.integer


def record(node: ir.Node) -> Op | None:
    """The operator's entry in OPS, None for operators and domains it does not know."""
    return OPS.get(node.op_type) if node.domain in ("", "ai.onnx") else None


def activation_inputs(node: ir.Node) -> Iterator[ir.Value]:
    """The inputs that are quantized as activations, constants included, the weight not."""
    op = record(node)
    if op is None:
        return
    positions = op.rule.activations
    for position, value in enumerate(node.inputs):
        if value is None or (positions is not None and position not in positions):
            continue
        if position != op.rule.weight or not is_constant(value):
            yield value


def weight_of(node: ir.Node) -> ir.Value | None:
    """The constant weight of a Conv, Gemm or MatMul, None where there is none."""
    op = record(node)
    if op is None or op.rule.weight is None:
        return None
    value = node.inputs[op.rule.weight]
    return value if is_constant(value) else None


def bias_of(node: ir.Node) -> ir.Value | None:
    """The bias of a Conv or Gemm, None where there is none."""
    op = record(node)
    if op is None or op.rule.bias is None or len(node.inputs) <= op.rule.bias:
        return None
    return node.inputs[op.rule.bias]


def is_matmul(node: ir.Node) -> bool:
    """Whether the node multiplies by weights or by other activations: Conv, Gemm, MatMul."""
    op = record(node)
    return op is not None and op.rule.matmul


def computed_inputs(node: ir.Node) -> list[ir.Value]:
    """Activation inputs that are not constants."""
    return [value for value in activation_inputs(node) if not is_constant(value)]


def outer_consumers(value: ir.Value) -> list[ir.Node]:
    """Nodes that read a value, each once, those inside of If/Loop/Scan bodies included."""
    return list({id(node): node for node in value.consumers()}.values())


def split(model: ir.Model, placing: Placing, unusable: Mapping[str, str]) -> Regions:
    """Decide for every node of the main graph whether it runs on integers.

    Conv, Gemm and MatMul always do if onnxruntime has a kernel for the case. The others follow:
    they are worth it only beside integer neighbours, where they save conversions.
    """
    regions = Regions()
    candidates: dict[str, ir.Node] = {}
    for node in model.graph:
        reason = _refusal(node, placing) or _touches(node, unusable)
        if reason is None:
            candidates[str(node.name)] = node
        elif _computes_reals(node):
            regions.reasons[str(node.name)] = reason
    any_matmul = any(map(is_matmul, model.graph))
    feeds_matmul = _upstream(candidates, is_matmul) if any_matmul else set(candidates)
    core: Callable[[ir.Node], bool] = is_matmul if any_matmul else _is_arithmetic
    regions.integer = {name for name, node in candidates.items() if core(node)}
    _grow(regions, candidates, feeds_matmul)
    for name, node in candidates.items():
        if name not in regions.integer and _computes_reals(node):
            late = name not in feeds_matmul and _is_arithmetic_or_table(node)
            regions.reasons[name] = AFTER_LAST if late else BETWEEN_FLOAT
    return regions


def _is_arithmetic(node: ir.Node) -> bool:
    return node.op_type in ARITHMETIC


def _is_arithmetic_or_table(node: ir.Node) -> bool:
    op = record(node)
    return op is not None and op.fusion is Fusion.QLINEAR


def _computes_reals(node: ir.Node) -> bool:
    return any(value.dtype is None or value.dtype.is_floating_point() for value in node.outputs)


def _refusal(node: ir.Node, placing: Placing) -> str | None:
    for pattern in placing.float_patterns:
        if matches(pattern, (node.name, node.op_type)):
            return f"asked for by --float {pattern}"
    return refusal(node)


def _touches(node: ir.Node, unusable: Mapping[str, str]) -> str | None:
    values = (*activation_inputs(node), *node.outputs)
    return next((unusable[str(v.name)] for v in values if str(v.name) in unusable), None)


def refusal(node: ir.Node) -> str | None:
    """Why a node cannot run on integers whatever its neighbours do; None if it can."""
    op = record(node)
    if any(attribute.type.name in ("GRAPH", "GRAPHS") for attribute in node.attributes.values()):
        return "its body stays in float"
    if op is None:
        return f"onnxruntime has no integer kernel for {node.op_type}"
    wrong = next((value for value in activation_inputs(node) if not is_float(value)), None)
    if wrong is not None:
        found = "of unknown type" if wrong.dtype is None else wrong.dtype.name.lower()
        return f"its input {wrong.name!r} is {found}, not float32"
    if any(value is not None and _is_infinite(value) for value in node.inputs):
        return "a constant it reads is infinite or NaN"
    readers = outer_consumers(node.outputs[0]) if node.op_type == "HardSigmoid" else []
    if any(map(_needs_an_entry, readers)):
        return "its output goes to a layer, is moved or joined, and has no parameters of its own"
    return op.refuse(node)


def _needs_an_entry(node: ir.Node) -> bool:
    """Whether a node asks the recipe for its input's parameters, which a gate's output has not."""
    op = record(node)
    if op is None:
        return False
    return op.rule.tied or op.rule.matmul or node.op_type in ("Concat", "HardSigmoid")


def _is_infinite(value: ir.Value) -> bool:
    array = constant(value) if is_float(value) else None
    return array is not None and not np.isfinite(array).all()


def _upstream(candidates: dict[str, ir.Node], wanted: Callable[[ir.Node], bool]) -> set[str]:
    """Names of the candidates from which a wanted node can be reached, itself too."""
    found: set[str] = set()
    pending = [node for node in candidates.values() if wanted(node)]
    seen = {id(node) for node in pending}
    while pending:
        node = pending.pop()
        found.add(str(node.name))
        for producer in node.predecessors():
            if id(producer) not in seen:
                seen.add(id(producer))
                pending.append(producer)
    return found


def _grow(regions: Regions, candidates: dict[str, ir.Node], feeds_matmul: set[str]) -> None:
    """Let nodes join their integer neighbours until nothing changes."""
    changed = True
    while changed:
        changed = False
        for name, node in candidates.items():
            if name not in regions.integer and _joins(node, regions, name in feeds_matmul):
                regions.integer.add(name)
                changed = True


def _joins(node: ir.Node, regions: Regions, feeds_matmul: bool) -> bool:
    op = record(node)
    inputs = computed_inputs(node)
    if op is None or not inputs:
        return False
    from_integers = all(_has_codes(value, regions) for value in inputs)
    if op.fusion is Fusion.QLINEAR and node.op_type not in POOLS:
        return from_integers and feeds_matmul
    if from_integers:
        return feeds_matmul or not any(_gives_reals(value, regions) for value in inputs)
    readers = [reader for value in node.outputs for reader in outer_consumers(value)]
    outputs = any(value.is_graph_output() for value in node.outputs)
    return bool(readers) and not outputs and all(map(regions.holds, readers))


def _has_codes(value: ir.Value, regions: Regions) -> bool:
    """Whether the value exists as codes anyway, made or read by an integer node."""
    if regions.holds(value.producer()):
        return True
    return any(_reads_as_activation(reader, value, regions) for reader in value.consumers())


def _reads_as_activation(reader: ir.Node, value: ir.Value, regions: Regions) -> bool:
    return regions.holds(reader) and any(value is read for read in activation_inputs(reader))


def _gives_reals(value: ir.Value, regions: Regions) -> bool:
    """Whether the producer's integer kernel can give this value as real numbers."""
    producer = value.producer()
    return producer is not None and regions.holds(producer) and producer.op_type in FLOAT_OUTPUT
