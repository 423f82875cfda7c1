"""LeakyRelu: QLinearLeakyRelu, a table of 256 codes."""

from onnxptq.ops import pools
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

LEAKY_RELU = Op(
    type="LeakyRelu",
    since=6,
    rule=QuantRule(),
    fusion=Fusion.QLINEAR,
    gradient="functions:leaky_relu",
    lowerings={"QLinearLeakyRelu": pools.table},
    cases=(Case((1, 3, 5, 5), {"alpha": 0.1}),),
)
