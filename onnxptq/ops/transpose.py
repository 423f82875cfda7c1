"""Transpose: moves codes."""

from onnxptq.ops import moves
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

TRANSPOSE = Op(
    type="Transpose",
    since=1,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="moves:transpose",
    lowerings={"Transpose": moves.transpose},
    cases=(Case((2, 3, 4, 5), {"perm": [0, 2, 3, 1]}),),
)
