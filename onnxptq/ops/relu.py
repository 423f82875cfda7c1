"""Relu: folded into the codes of what precedes it, else a Clip written on codes."""

from onnxptq.ops import pairs
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

RELU = Op(
    type="Relu",
    since=6,
    rule=QuantRule(tied=True),
    fusion=Fusion.ON_CODES,
    gradient="functions:relu",
    lowerings={"Relu": pairs.relu_codes},
    cases=(Case((1, 3, 5, 5)),),
)
