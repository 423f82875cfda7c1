"""Tile: copies codes."""

import numpy as np

from onnxptq.ops import moves
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

TILE = Op(
    type="Tile",
    since=6,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="moves:tile",
    lowerings={"Tile": moves.plain("tile")},
    cases=(Case((2, 3), {}, {1: np.array([2, 2], np.int64)}),),
)
