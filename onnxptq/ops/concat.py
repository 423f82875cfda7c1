"""Concat: QLinearConcat, a plain copy for inputs that share the output's parameters."""

from onnxptq.ops import pools
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

CONCAT = Op(
    type="Concat",
    since=4,
    rule=QuantRule(activations=None),
    fusion=Fusion.QLINEAR,
    gradient="moves:concat",
    lowerings={"QLinearConcat": pools.qlinear_concat, "Concat": pools.concat_codes},
    cases=(Case((1, 3, 4, 4), {"axis": 1}, {1: (1, 2, 4, 4)}),),
)
