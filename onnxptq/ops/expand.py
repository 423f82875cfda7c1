"""Expand: copies codes."""

import numpy as np

from onnxptq.ops import moves
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

EXPAND = Op(
    type="Expand",
    since=8,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="moves:expand",
    lowerings={"Expand": moves.plain("expand")},
    cases=(Case((2, 1, 3), {}, {1: np.array([2, 4, 3], np.int64)}),),
)
