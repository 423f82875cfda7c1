"""DepthToSpace: moves codes."""

from onnxptq.ops import moves
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

DEPTH_TO_SPACE = Op(
    type="DepthToSpace",
    since=1,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="moves:depth_to_space",
    lowerings={"DepthToSpace": moves.depth_to_space},
    cases=(Case((1, 8, 3, 3), {"blocksize": 2}),),
)
