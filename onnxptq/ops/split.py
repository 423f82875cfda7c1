"""Split: moves codes; all outputs share the parameters of the input."""

from onnxptq.ops import moves
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

SPLIT = Op(
    type="Split",
    since=13,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="moves:split",
    lowerings={"Split": moves.plain("split", "split", axis=0)},
    cases=(Case((2, 6, 4), {"axis": 1, "num_outputs": 2}, outputs=2),),
)
