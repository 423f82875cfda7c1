"""GlobalAveragePool: QLinearGlobalAveragePool, a sum of codes."""

from onnxptq.ops import pools
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

GLOBAL_AVERAGE_POOL = Op(
    type="GlobalAveragePool",
    since=1,
    rule=QuantRule(),
    fusion=Fusion.QLINEAR,
    gradient="functions:global_average_pool",
    lowerings={"QLinearGlobalAveragePool": pools.global_average_pool},
    cases=(Case((2, 6, 5, 7)),),
)
