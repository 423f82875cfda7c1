"""What onnxruntime made of a file: integer or float, node by node, and why.

The answer is read from the graph that onnxruntime itself wrote after its optimisations, never
guessed.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxptq import ort
from onnxptq.graph import io, shapes
from onnxptq.ops.nodes import constant, is_constant
from onnxptq.ops.op import Fusion, Op
from onnxptq.passes.names import NameNodes
from onnxptq.rewrite import borders
from onnxptq.rewrite.regions import outer_consumers, record
from onnxptq.rewrite.sheet import FLOAT_NODES_KEY
from onnxptq.runtime.targets import complaints

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
INTEGER_KERNELS = re.compile(
    r"QLinear\w+|QGemm|(Conv|MatMul)Integer(ToFloat)?|QAttention|NhwcMaxPool"
)
REAL_OUTPUT = ("MatMulIntegerToFloat",)
LAYOUT = (
    "Transpose",
    "ReorderInput",
    "ReorderOutput",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
)
"""Nodes that onnxruntime adds or keeps to move data; they compute nothing."""
INT16_MAX = 32767


@dataclass(frozen=True, slots=True)
class FloatNode:
    """A node that computes in float: its name, operator, and the reason.

    `inside` is True where codes come before it and a QuantizeLinear after it, so that it costs
    conversions in the middle of the integer part.
    """

    node: str
    op: str
    why: str
    inside: bool = False


@dataclass(frozen=True, slots=True)
class Lint:
    """The answer of `lint`.

    Attributes:
        integer_nodes: Names of the nodes of the file that run on codes.
        float_nodes: The others that compute.
        saturation_risk: Layers whose sums of two products can leave int16: on an x86 CPU without
            VNNI they saturate, and the numbers differ from those of this file elsewhere.
        slow_nodes: Layers with tables of borders: in integers, but as several nodes, each of
            which walks over all numbers.
        target_problems: What the onnxruntime version asked for cannot do with this file.
    """

    integer_nodes: tuple[str, ...]
    float_nodes: tuple[FloatNode, ...]
    saturation_risk: tuple[str, ...]
    target_problems: tuple[str, ...] = ()
    slow_nodes: tuple[str, ...] = ()

    @property
    def fused(self) -> bool:
        """Whether no node in the middle of the integer part runs in float."""
        return not any(row.inside for row in self.float_nodes)


def lint(source: Path | ir.Model, target_ort: str | None = None) -> Lint:
    """Load a quantized file in onnxruntime and report what it runs.

    Args:
        source: A quantized model.
        target_ort: Version that will run the file; None for the installed one.

    Raises:
        ModelError: The file cannot be read or onnxruntime refuses it.
        SpecError: `target_ort` is not a version.
    """
    model = io.load(source) if isinstance(source, Path) else source.clone()
    # onnxruntime's graph is read by node names, so every node needs one of its own.
    NameNodes()(model)
    shapes.infer(model)
    running = _Running(ort.optimized(model))
    named = _reasons(model)
    integer: list[str] = []
    floats: list[FloatNode] = []
    for node in _compute_nodes(model):
        name = str(node.name)
        if running.is_float(node):
            why = named.get(name) or _why(node)
            floats.append(FloatNode(name, node.op_type, why, _inside(node)))
        else:
            integer.append(name)
    risky = tuple(str(node.name) for node in model.graph if _may_saturate(node))
    slow = tuple(str(node.name) for node in model.graph if node.domain == borders.DOMAIN)
    return Lint(tuple(integer), tuple(floats), risky, complaints(model, target_ort), slow)


class _Running:
    """The optimised graph, by the names of the nodes it was made from."""

    def __init__(self, proto: onnx.ModelProto) -> None:
        codes = {
            tensor.name
            for tensor in proto.graph.initializer
            if tensor.data_type in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
        }
        self._float: dict[str, bool] = {}
        for node in proto.graph.node:
            integer = node.op_type == "QuantizeLinear" or _runs_on_codes(node, codes)
            if integer and _gives_codes(node):
                codes.update(node.output)
            if node.op_type not in CONVERSIONS:
                # Its blocked convolutions are named after their outputs, all others after the node.
                for name in (node.name, *node.output):
                    self._float.setdefault(ort.plain_name(name), not integer)

    def is_float(self, node: ir.Node) -> bool:
        """Whether a node of the file runs in float; one fused away went its neighbour's way."""
        for name in (node.name, *(value.name for value in node.outputs)):
            if name in self._float:
                return self._float[name]
        return _swallowed_by_float(node, self._float)


def _runs_on_codes(node: onnx.NodeProto, codes: set[str]) -> bool:
    if INTEGER_KERNELS.fullmatch(node.op_type):
        return True
    return node.op_type != "DequantizeLinear" and bool(node.input) and node.input[0] in codes


def _gives_codes(node: onnx.NodeProto) -> bool:
    if node.op_type == "QGemm":
        # Without an output scale (input 7) QGemm gives real numbers.
        return len(node.input) > 7 and bool(node.input[7])
    return node.op_type not in (*REAL_OUTPUT, "DequantizeLinear")


def _swallowed_by_float(node: ir.Node, running: dict[str, bool]) -> bool:
    """Whether a node that vanished went into a float kernel.

    onnxruntime merges Conv, Add and Relu into one node named after the last one's output, and drops
    a Relu into the Conv before it. Neither way leads through a QuantizeLinear or DequantizeLinear.
    """
    source = node.inputs[0] if node.inputs else None
    producer = None if source is None else source.producer()
    if producer is not None and running.get(str(producer.name), False):
        return True
    pending, seen = list(node.successors()), set[int]()
    while pending:
        reader = pending.pop()
        if reader.op_type in CONVERSIONS or id(reader) in seen:
            continue
        seen.add(id(reader))
        found = [
            running[name]
            for name in (str(reader.name), *(str(value.name) for value in reader.outputs))
            if name in running
        ]
        if any(found):
            return True
        if not found:
            pending.extend(reader.successors())
    return False


def _compute_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Nodes that compute or move activations: no Q/DQ, guards, or constants' own nodes."""
    fixed: set[int] = set()
    for node in model.graph:
        values = [value for value in node.inputs if value is not None]
        if values and all(is_constant(value) or id(value) in fixed for value in values):
            fixed.update(id(value) for value in node.outputs)
        elif node.op_type not in CONVERSIONS and _is_compute(node) and not _is_guard(node):
            yield node


def _is_guard(node: ir.Node) -> bool:
    return node.op_type == "Max" and len(node.inputs) == 1


def _is_compute(node: ir.Node) -> bool:
    first = next((value for value in node.inputs if value is not None), None)
    kinds = {value.dtype for value in node.outputs if value.dtype is not None}
    whole = (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL)
    return first is not None and not (kinds and all(kind in whole for kind in kinds))


def _reasons(model: ir.Model) -> dict[str, str]:
    try:
        reasons = json.loads(model.metadata_props.get(FLOAT_NODES_KEY, "{}"))
    except ValueError:
        return {}
    return {str(name): str(why) for name, why in reasons.items()}


def _why(node: ir.Node) -> str:
    """Why onnxruntime did not fuse a node, from what stands around it."""
    op = record(node)
    if op is None or op.fusion is Fusion.FLOAT:
        return f"onnxruntime has no integer kernel for {node.op_type}"
    if op.fusion is Fusion.ON_CODES:
        return f"onnxruntime does not fuse {node.op_type}; on 8-bit codes it would run as integers"
    reason = _bare_input(node) or _bare_output(node)
    if reason is None and not _is_behind_dequantize(node, op):
        reason = op.refuse(node)
    return reason or "onnxruntime did not fuse it: types, scales or bias do not match its rules"


def _is_behind_dequantize(node: ir.Node, op: Op) -> bool:
    """Whether the weight is stored as codes: then it only looks as if it were computed."""
    weight = None if op.rule.weight is None else node.inputs[op.rule.weight]
    producer = None if weight is None else weight.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _bare_input(node: ir.Node) -> str | None:
    for position, value in enumerate(node.inputs):
        if value is None or is_constant(value) or value.dtype == ir.DataType.INT64:
            continue
        producer = value.producer()
        if producer is None or producer.op_type != "DequantizeLinear":
            what = "a graph input" if producer is None else f"made by {producer.op_type}"
            return f"input {position} has no Q/DQ pair (value {value.name!r}, {what})"
    return None


def _bare_output(node: ir.Node) -> str | None:
    for output in node.outputs:
        if output.is_graph_output():
            return f"its output {output.name!r} is a graph output without Q/DQ"
        other = [reader for reader in outer_consumers(output) if reader.op_type not in CONVERSIONS]
        if other:
            return f"its output is read in float by {other[0].op_type} {other[0].name!r}"
    return None


def _inside(node: ir.Node) -> bool:
    return _reaches(node, "DequantizeLinear", up=True) and _reaches(
        node, "QuantizeLinear", up=False
    )


def _reaches(node: ir.Node, op_type: str, *, up: bool) -> bool:
    pending = list(node.predecessors() if up else node.successors())
    seen: set[int] = set()
    while pending:
        other = pending.pop()
        if id(other) in seen:
            continue
        seen.add(id(other))
        if other.op_type == op_type and not is_constant(other.inputs[0]):
            return True
        if other.op_type not in CONVERSIONS:
            pending.extend(other.predecessors() if up else other.successors())
    return False


def _may_saturate(node: ir.Node) -> bool:
    """Whether two products of neighbours can exceed int16 in `vpmaddubsw` (semantics note A.4)."""
    if node.domain == borders.DOMAIN:
        x, _, weight = node.inputs[:3]
        axis = borders.channel_axis(node.op_type)
        return _exceeds_int16(constant(weight), axis, _highest_code(x))
    op = record(node)
    if op is None or op.rule.weight is None or op.rule.weight_axis is None:
        return False
    weight = node.inputs[op.rule.weight]
    dequantize = None if weight is None else weight.producer()
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return False
    x = node.inputs[0]
    source = None if x is None else x.producer()
    highest = 255 if source is None else _highest_code(source.inputs[0])
    return _exceeds_int16(constant(dequantize.inputs[0]), op.rule.weight_axis(node) or 0, highest)


def _exceeds_int16(codes: npt.NDArray[Any] | None, axis: int, highest: int) -> bool:
    if codes is None or codes.dtype != np.int8:
        # Packed weights have 7 bits or fewer: 2 * 255 * 64 fits.
        return False
    rows = np.moveaxis(codes, axis, 0).reshape(codes.shape[axis], -1)
    if rows.shape[1] < 2:
        return False
    wide = np.ascontiguousarray(rows, np.int16)
    worst = max(_two_largest(wide), _two_largest(-wide))
    return bool(worst * highest > INT16_MAX)


def _two_largest(rows: npt.NDArray[np.int16]) -> int:
    """The largest sum of two numbers of one row."""
    every = np.arange(len(rows))
    rest, first = rows.copy(), rows.argmax(axis=1)
    rest[every, first] = np.iinfo(np.int16).min
    sums = rows[every, first].astype(np.int32) + rest.max(axis=1)
    return int(sums.max(initial=0))


def _highest_code(codes: ir.Value | None) -> int:
    clip = None if codes is None else codes.producer()
    if clip is not None and clip.domain == borders.DOMAIN:
        table, lowest = (constant(value) for value in clip.inputs[3:5])
        assert table is not None
        assert lowest is not None
        return int(lowest) + table.shape[1]
    if clip is not None and clip.op_type == "Clip" and len(clip.inputs) > 2:
        top = constant(clip.inputs[2])
        if top is not None:
            return int(top)
    return 255
