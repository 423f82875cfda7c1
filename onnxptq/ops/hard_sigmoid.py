"""HardSigmoid: a window of the input's codes, read with another scale and zero point.

alpha * s * (q - z) + beta = (alpha * s) * (q - (z - beta / (alpha * s))), so between 0 and 1 the
codes stay what they are. onnxruntime has no kernel for it on codes, but one for Clip.
"""

import onnx_ir as ir

from onnxptq.ops.nodes import float_attribute
from onnxptq.ops.op import Case, Fusion, Op, QuantRule


def slope_of(node: ir.Node) -> tuple[float, float]:
    """Slope and shift, `alpha` and `beta`, with their ONNX defaults."""
    return float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)


def _refuse(node: ir.Node) -> str | None:
    return None if slope_of(node)[0] > 0 else "its alpha is not positive"


HARD_SIGMOID = Op(
    type="HardSigmoid",
    since=6,
    rule=QuantRule(),
    fusion=Fusion.ON_CODES,
    gradient="functions:hard_sigmoid",
    refuse=_refuse,
    cases=(Case((1, 3, 5, 5), {"alpha": 1 / 6, "beta": 0.5}), Case((2, 8, 4, 4))),
)
