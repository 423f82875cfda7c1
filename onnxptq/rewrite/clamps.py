"""Relu and Clip as windows of codes."""

import math
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxptq.ops.nodes import input_at, scalar
from onnxptq.quant import QParams
from onnxptq.rewrite.regions import CLAMPS, Regions, activation_inputs, record


@dataclass(frozen=True, slots=True)
class Clamp:
    """The range that a Relu or Clip lets through, in real units; a missing end is infinite."""

    lo: float
    hi: float


def clamp_of(node: ir.Node) -> Clamp:
    """The bounds of a Relu or of a Clip whose bounds are constants."""
    if node.op_type == "Relu":
        return Clamp(0.0, math.inf)
    lo, hi = scalar(input_at(node, 1)), scalar(input_at(node, 2))
    return Clamp(-math.inf if lo is None else lo, math.inf if hi is None else hi)


def folded_clamps(model: ir.Model, regions: Regions) -> dict[str, ir.Node]:
    """Value name to the clamp whose output it is, for clamps that vanish into the Q before them.

    A clamp vanishes where nobody else needs its input as codes. The quantized value is then the
    clamp's output, and its codes are those of the clamp's input inside of a window.
    """
    return {
        str(node.outputs[0].name): node
        for node in model.graph
        if node.op_type in CLAMPS and regions.holds(node) and _alone(node, regions)
    }


def _alone(node: ir.Node, regions: Regions) -> bool:
    source = node.inputs[0]
    if source is None or source.is_graph_output():
        return False
    producer = source.producer()
    if regions.holds(producer):
        # A clamp or data mover in front already works on codes, which this one then narrows.
        made_by_q = producer is not None and producer.op_type not in CLAMPS and not _moves(producer)
        return made_by_q and len(source.uses()) == 1
    others = (reader for reader in source.consumers() if reader is not node)
    return not any(
        regions.holds(reader) and any(source is value for value in activation_inputs(reader))
        for reader in others
    )


def _moves(node: ir.Node) -> bool:
    op = record(node)
    return op is not None and op.rule.tied


def code_window(params: QParams, limits: Clamp) -> tuple[int, int]:
    """First and last code that lie in the bit window and between the codes of two real limits."""
    lo, hi = int(params.code_lo), int(params.code_hi)
    return (
        min(max(lo, code_of(limits.lo, params)), hi),
        max(min(hi, code_of(limits.hi, params)), lo),
    )


def code_of(real: float, params: QParams) -> int:
    """The code that QuantizeLinear gives a number; the ends of the container for infinities."""
    spec = params.spec
    if math.isinf(real):
        return spec.container_min if real < 0 else spec.container_max
    steps = np.rint(np.float32(real) / params.scale)
    return int(np.clip(steps + params.zero_point, spec.container_min, spec.container_max))
