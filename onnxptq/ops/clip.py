"""Clip: folded into the codes of what precedes it, else written on codes."""

import numpy as np
import onnx_ir as ir

from onnxptq.ops import pairs
from onnxptq.ops.nodes import input_at, scalar
from onnxptq.ops.op import Case, Fusion, Op, QuantRule


def _refuse(node: ir.Node) -> str | None:
    for position in (1, 2):
        bound = input_at(node, position)
        if bound is not None and scalar(bound) is None:
            return "its bounds are computed at run time"
    return None


CLIP = Op(
    type="Clip",
    since=11,
    rule=QuantRule(tied=True),
    fusion=Fusion.ON_CODES,
    gradient="functions:clip",
    refuse=_refuse,
    lowerings={"Clip": pairs.clip_codes},
    cases=(Case((1, 3, 5, 5), {}, {1: np.float32(-0.5), 2: np.float32(0.75)}),),
)
