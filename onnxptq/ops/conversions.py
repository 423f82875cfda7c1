"""QuantizeLinear and DequantizeLinear: the borders between real numbers and codes."""

import numpy as np

from onnxptq.ops.fused import Fused, NotInteger
from onnxptq.ops.nodes import int_attribute
from onnxptq.program import Attribute


def quantize_linear(node: Fused) -> None:
    """QuantizeLinear of float32 to 8-bit codes, per tensor or per channel."""
    if node.value(0).dtype != "float32":
        raise NotInteger(f"it quantizes {node.value(0).dtype}")
    dtype = str(node.array(2).dtype) if node.present(2) else "uint8"
    if dtype not in ("uint8", "int8"):
        raise NotInteger(f"it quantizes to {dtype}")
    arrays, attrs = _parameters(node)
    ends = np.iinfo(dtype)
    attrs |= {"lo": int(ends.min), "hi": int(ends.max)}
    made = (dtype, int(ends.min), int(ends.max))
    node.emit("quantize", (node.id(0),), made, parts={**arrays, **attrs})


def dequantize_linear(node: Fused) -> None:
    """DequantizeLinear of 8-bit codes to float32, per tensor or per channel."""
    node.codes(0)
    arrays, attrs = _parameters(node)
    node.emit("dequantize", (node.id(0),), ("float32", 0, 0), parts={**arrays, **attrs})


def chosen_at_run_time(node: Fused) -> None:
    """DynamicQuantizeLinear and DynamicQuantizeMatMul: nothing about them is known beforehand."""
    raise NotInteger(f"{node.node.op_type} chooses scale and zero point at run time, in float")


def _parameters(node: Fused) -> tuple[dict[str, np.ndarray], dict[str, Attribute]]:
    if int_attribute(node.node, "block_size", 0):
        raise NotInteger("it has a scale for each block")
    scales, zeros = node.scales(1), node.zeros(2)
    size = max(scales.size, zeros.size)
    arrays = {
        "scale": np.broadcast_to(scales, (size,)).astype(np.float32),
        "zero_point": np.broadcast_to(zeros, (size,)).astype(np.int32),
    }
    return arrays, {"axis": int_attribute(node.node, "axis", 1)}
