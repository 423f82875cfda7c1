"""Add: QLinearAdd, three scales, so its inputs and output are never tied."""

from onnxptq.ops import pairs
from onnxptq.ops.op import Case, Fusion, Op, QuantRule

ADD = Op(
    type="Add",
    since=7,
    rule=QuantRule(activations=None),
    fusion=Fusion.QLINEAR,
    gradient="functions:add",
    lowerings={"QLinearAdd": pairs.qlinear_add},
    cases=(
        Case((2, 3, 4, 5), {}, {1: (2, 3, 4, 5)}),
        Case((1, 6, 4, 4), {}, {1: (6, 1, 1)}),
    ),
)
