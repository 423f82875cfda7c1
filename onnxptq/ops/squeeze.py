"""Squeeze: moves codes."""

import numpy as np

from onnxptq.ops import moves
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

SQUEEZE = Op(
    type="Squeeze",
    since=13,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="moves:squeeze",
    lowerings={"Squeeze": moves.plain("squeeze", "axes")},
    cases=(Case((2, 3, 1, 1), {}, {1: np.array([2, 3], np.int64)}),),
)
