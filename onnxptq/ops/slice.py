"""Slice: moves codes, strided too."""

import numpy as np

from onnxptq.ops import moves
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

SLICE = Op(
    type="Slice",
    since=10,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="moves:cut",
    lowerings={"Slice": moves.plain("slice", "starts", "ends", "axes")},
    cases=(
        Case(
            (1, 4, 8, 8),
            {},
            {
                1: np.array([0, 0], np.int64),
                2: np.array([8, 8], np.int64),
                3: np.array([2, 3], np.int64),
                4: np.array([2, 2], np.int64),
            },
        ),
    ),
)
