"""Flatten: moves codes."""

from onnxptq.ops import moves
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

FLATTEN = Op(
    type="Flatten",
    since=1,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="moves:flatten",
    lowerings={"Flatten": moves.plain("flatten", axis=1)},
    cases=(Case((2, 3, 4, 4), {"axis": 1}),),
)
