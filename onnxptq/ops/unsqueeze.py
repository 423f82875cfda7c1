"""Unsqueeze: moves codes."""

import numpy as np

from onnxptq.ops import moves
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

UNSQUEEZE = Op(
    type="Unsqueeze",
    since=13,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="moves:unsqueeze",
    lowerings={"Unsqueeze": moves.plain("unsqueeze", "axes")},
    cases=(Case((2, 3), {}, {1: np.array([2, 3], np.int64)}),),
)
