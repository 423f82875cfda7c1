"""Mul: QLinearMul."""

from onnxptq.ops import pairs
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

MUL = Op(
    type="Mul",
    since=7,
    rule=QuantRule(activations=None),
    fusion=Fusion.QLINEAR,
    gradient="functions:mul",
    lowerings={"QLinearMul": pairs.qlinear_mul},
    cases=(
        Case((2, 3, 4, 5), {}, {1: (2, 3, 4, 5)}),
        Case((1, 6, 4, 4), {}, {1: (6, 1, 1)}),
    ),
)
