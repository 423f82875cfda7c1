"""Resize: nearest neighbour picks codes; every other mode computes new values, in float."""

import numpy as np
import onnx_ir as ir

from onnxptq.ops import moves
from onnxptq.ops.nodes import string_attribute
from onnxptq.ops.op import Case, Fusion, Op, QuantRule


def _refuse(node: ir.Node) -> str | None:
    mode = string_attribute(node, "mode", "nearest")
    if mode != "nearest":
        return f"{mode} interpolation computes new values"
    if (
        string_attribute(node, "coordinate_transformation_mode", "half_pixel")
        == "tf_crop_and_resize"
    ):
        return "values outside of the crop are extrapolated"
    return None


RESIZE = Op(
    type="Resize",
    since=11,
    rule=QuantRule(tied=True),
    fusion=Fusion.CODES,
    gradient="moves:resize",
    refuse=_refuse,
    lowerings={"Resize": moves.resize},
    cases=(
        Case(
            (1, 3, 4, 5),
            {
                "mode": "nearest",
                "coordinate_transformation_mode": "asymmetric",
                "nearest_mode": "floor",
            },
            {2: np.array([1, 1, 2, 2], np.float32)},
        ),
    ),
)
