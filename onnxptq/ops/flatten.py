"""Flatten: moves codes."""

from onnxptq.ops.op import Case, Fusion, Op, QuantRule

FLATTEN = Op(
    type="Flatten",
    since=1,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    cases=(Case((2, 3, 4, 4), {"axis": 1}),),
)
