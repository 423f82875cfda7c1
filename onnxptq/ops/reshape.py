"""Reshape: moves codes."""

import numpy as np

from onnxptq.ops import moves
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

RESHAPE = Op(
    type="Reshape",
    since=5,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="moves:reshape",
    lowerings={"Reshape": moves.plain("reshape", allowzero=0)},
    cases=(Case((2, 3, 4), {}, {1: np.array([2, 12], np.int64)}),),
)
