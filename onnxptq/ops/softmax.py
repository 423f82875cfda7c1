"""Softmax: QLinearSoftmax, exponentials from a table."""

from onnxptq.ops import pools
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

SOFTMAX = Op(
    type="Softmax",
    since=1,
    rule=QuantRule(),
    fusion=Fusion.QLINEAR,
    gradient="functions:softmax",
    lowerings={"QLinearSoftmax": pools.softmax},
    cases=(Case((2, 10), {"axis": -1}),),
)
