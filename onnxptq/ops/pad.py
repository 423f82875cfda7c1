"""Pad: not fused by onnxruntime, so it is written on codes, padding with the code of its value."""

import numpy as np
import onnx_ir as ir

from onnxptq.ops import moves
from onnxptq.ops.nodes import input_at, scalar
from onnxptq.ops.op import Case, Fusion, Op, QuantRule


def _refuse(node: ir.Node) -> str | None:
    value = input_at(node, 2)
    if value is not None and scalar(value) is None:
        return "its padding value is computed at run time"
    return None


PAD = Op(
    type="Pad",
    since=11,
    rule=QuantRule(tied=True),
    fusion=Fusion.ON_CODES,
    gradient="moves:pad",
    refuse=_refuse,
    lowerings={"Pad": moves.pad},
    cases=(
        Case((1, 4, 5, 5), {}, {1: np.array([0, 2, 1, 1, 0, 1, 0, 2], np.int64)}),
        Case((1, 4, 5, 5), {"mode": "edge"}, {1: np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}),
    ),
)
