"""Sigmoid: QLinearSigmoid, a table of 256 codes."""

from onnxptq.ops import pools
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

SIGMOID = Op(
    type="Sigmoid",
    since=6,
    rule=QuantRule(),
    fusion=Fusion.QLINEAR,
    gradient="functions:sigmoid",
    lowerings={"QLinearSigmoid": pools.table},
    cases=(Case((1, 3, 5, 5)),),
)
