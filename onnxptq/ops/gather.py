"""Gather: picks codes."""

import numpy as np

from onnxptq.ops import moves
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

GATHER = Op(
    type="Gather",
    since=1,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="moves:gather",
    lowerings={"Gather": moves.gather},
    cases=(Case((4, 3, 5), {"axis": 1}, {1: np.array([2, 0], np.int64)}),),
)
