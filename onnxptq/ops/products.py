"""Convolutions and matrix products on codes: what sums products and requantizes the sums.

Source: ort_semantics_and_kernels.md A.2; scales are multiplied in float32, in onnxruntime's order.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq import reach
from onnxptq.ops.borders import counting
from onnxptq.ops.fused import Fused, NotInteger, Result
from onnxptq.ops.nodes import float_attribute, int_attribute, ints_attribute, string_attribute
from onnxptq.program import Attribute

Array = npt.NDArray[Any]
F32 = npt.NDArray[np.float32]


def qlinear_conv(node: Fused) -> None:
    """QLinearConv: x, its scale and zero point, w, likewise, y's, and a bias."""
    y = node.output_format(6, 7)
    scale = node.scale(1) * node.scales(4)
    bias = node.array(8).reshape(-1) if node.present(8) else None
    _convolve(node, (node.number(2), node.array(3), node.zeros(5)), bias, _Ends(scale, y))


def conv_integer(node: Fused) -> None:
    """ConvInteger: x, w and their zero points; the accumulators are the result, or codes.

    Codes where thresholds that accumulators have reached are counted behind it.
    """
    weight = node.array(1)
    ends = _counted(node, len(weight), weight.ndim)
    _convolve(node, (node.number(2), weight, node.zeros(3)), None, ends)


class _Ends:
    """Scale of the accumulators, and the format of the codes they become, if any."""

    def __init__(self, scale: F32, output: Any) -> None:
        self.scale = scale
        self.output = output


def _counted(node: Fused, channels: int, rank: int) -> _Ends:
    """The accumulators themselves, or codes where thresholds that they reach are counted."""
    found = counting(node.node.outputs[0], channels, rank)
    if found is not None:
        node.builder.absorb(found.nodes)
    return _Ends(np.ones(1, np.float32), found)


def _convolve(
    node: Fused, operands: tuple[int, Array, npt.NDArray[np.int64]], bias: Array | None, ends: _Ends
) -> None:
    x, (x_zero, weight, weight_zero) = node.codes(0), operands
    spatial = weight.ndim - 2
    if not 1 <= spatial <= 3:
        raise NotInteger(f"it is a convolution over {spatial} axes")
    attrs = conv_attributes(node.node, spatial)
    attrs["group"] = int_attribute(node.node, "group", 1)
    attrs["x_zero"] = x_zero
    padded = any(attrs["pads"]) or attrs["auto_pad"] != "NOTSET"  # type: ignore[arg-type]
    codes = reach.Codes(x.lo, x.hi, x_zero)
    wide = None if bias is None else bias.astype(np.int64)
    sums = reach.of_convolution(weight, weight_zero, wide, codes, padded=padded)
    arrays = _arrays(weight, weight_zero, bias)
    terms = _terms(weight[0].size if len(weight) else 0, weight, codes)
    result = Result(ends.scale, ends.output, terms)
    node.emit_accumulating("conv", (node.id(0),), sums, result, parts={**arrays, **attrs})


def conv_attributes(node: ir.Node, spatial: int) -> dict[str, Attribute]:
    """What convolutions and pools share, with ONNX's defaults written out."""
    ones = (1,) * spatial
    return {
        "strides": ints_attribute(node, "strides", ones),
        "pads": ints_attribute(node, "pads", (0,) * (2 * spatial)),
        "dilations": ints_attribute(node, "dilations", ones),
        "auto_pad": string_attribute(node, "auto_pad", "NOTSET"),
        "channels_last": int_attribute(node, "channels_last", 0),
    }


def _arrays(
    weight: Array, weight_zero: npt.NDArray[np.int64], bias: Array | None
) -> Mapping[str, Array]:
    arrays = {"weight": weight, "weight_zero": weight_zero.astype(np.int32)}
    return arrays if bias is None else {**arrays, "bias": bias.astype(np.int32)}


def _terms(depth: int, weight: Array, x: reach.Codes) -> str:
    size = max(abs(x.lo - x.zero), abs(x.hi - x.zero))
    return f"K={depth}, |x|<={size}, |w|<={int(np.abs(weight.astype(int)).max(initial=0))}"


def qlinear_matmul(node: Fused) -> None:
    """QLinearMatMul: a, b, each with scale and zero point; y's."""
    y = node.output_format(6, 7)
    operands = (node.number(2), 3, node.zeros(5))
    _multiply(node, operands, None, _Ends(node.scale(1) * node.scales(4), y))


def matmul_integer(node: Fused) -> None:
    """MatMulInteger: a, b and their zero points; the accumulators are the result, or codes."""
    operands = (node.number(2), 1, node.zeros(3))
    weight, shape = constant_matrix(node, 1), node.shape(0)
    ends = _Ends(np.ones(1, np.float32), None)
    if weight is not None and weight.ndim == 2 and shape is not None and len(shape) == 2:
        ends = _counted(node, weight.shape[1], 2)
    _multiply(node, operands, None, ends)


def matmul_integer_to_float(node: Fused) -> None:
    """MatMulIntegerToFloat: a, b, their scales and zero points, and a real bias."""
    scale = node.scale(2) * node.scales(3)
    operands = (node.number(4), 1, node.zeros(5))
    bias = node.array(6).reshape(-1).astype(np.float32) if node.present(6) else None
    _real_product(node, operands, (None, bias), scale)


def qgemm(node: Fused) -> None:
    """QGemm: a, b, each with scale and zero point; an int32 bias; y's, absent for real numbers."""
    if int_attribute(node.node, "transA", 0):
        raise NotInteger("it transposes its first input")
    alpha = np.float32(float_attribute(node.node, "alpha", 1.0))
    scale = (alpha * node.scale(1)) * node.scales(4)
    bias = node.array(6) if node.present(6) else None
    if bias is not None and bias.size != 1 and bias.size != bias.shape[-1]:
        raise NotInteger("its bias is not one number for each column")
    operands = (node.number(2), 3, node.zeros(5))
    flat = None if bias is None else bias.reshape(-1)
    if node.present(7):
        _multiply(node, operands, flat, _Ends(scale, node.output_format(7, 8)))
    else:
        _real_product(node, operands, (flat, None), scale)


Operands = tuple[int, int, npt.NDArray[np.int64]]
"""Zero point of the first input, position of the second one, and its zero points."""


def _real_product(
    node: Fused, operands: Operands, biases: tuple[Array | None, F32 | None], scale: F32
) -> None:
    """A product whose accumulators become real numbers."""
    output = node.node.outputs[0]
    sums = ir.val(f"{output.name}_accumulators")
    _multiply(node, operands, biases[0], _Ends(scale, None), sums)
    arrays = {"scale": scale.astype(np.float32)}
    if biases[1] is not None:
        arrays["bias"] = biases[1]
    source = node.builder.id_of(sums)
    node.emit("acc_to_real", (source,), ("float32", 0, 0), parts={**arrays, "axis": -1})


def _multiply(
    node: Fused, operands: Operands, bias: Array | None, ends: _Ends, target: ir.Value | None = None
) -> None:
    a_zero, position, b_zero = operands
    weight = constant_matrix(node, position)
    if weight is None:
        _multiply_computed(node, operands, bias, (ends, target))
        return
    a = node.codes(0)
    if weight.ndim < 2:
        raise NotInteger("its second input is a vector")
    if b_zero.size not in (1, weight.shape[-1]) or ends.scale.size not in (1, weight.shape[-1]):
        raise NotInteger("scales or zero points of its second input are not one for each column")
    codes = reach.Codes(a.lo, a.hi, a_zero)
    if bias is not None:
        bias = np.broadcast_to(bias, (weight.shape[-1],))
    wide = None if bias is None else bias.astype(np.int64)
    sums = reach.of_matrix(weight, b_zero, wide, codes)
    result = Result(ends.scale, ends.output, _terms(weight.shape[-2], weight, codes), target)
    arrays = _arrays(weight, b_zero, bias)
    attrs: dict[str, Attribute] = {"x_zero": a_zero}
    node.emit_accumulating("matmul", (node.id(0),), sums, result, parts={**arrays, **attrs})


def constant_matrix(node: Fused, position: int) -> Array | None:
    """The second factor as [..., K, N] where it is constant, with Gemm's transposition done."""
    value = node.node.inputs[position]
    found = None if value is None else node.constant(position)
    if found is None:
        return None
    return found.T if int_attribute(node.node, "transB", 0) else found


def _multiply_computed(
    node: Fused, operands: Operands, bias: Array | None, result: tuple[_Ends, ir.Value | None]
) -> None:
    a_zero, position, b_zero = operands
    ends, target = result
    if ends.scale.size != 1 or b_zero.size != 1 or bias is not None:
        raise NotInteger("its second input is computed and has a scale for each column or a bias")
    if int_attribute(node.node, "transB", 0):
        raise NotInteger("it transposes a computed input")
    shape = node.shape(position)
    depth = None if shape is None or len(shape) < 2 else shape[-2]
    a, b = node.codes(0), node.codes(position)
    left, right = reach.Codes(a.lo, a.hi, a_zero), reach.Codes(b.lo, b.hi, int(b_zero[0]))
    sums = reach.of_products(depth, left, right)
    found = Result(ends.scale, ends.output, f"K={depth}", target)
    attrs: dict[str, Attribute] = {"a_zero": a_zero, "b_zero": int(b_zero[0])}
    inputs = (node.id(0), node.id(position))
    node.emit_accumulating("matmul_computed", inputs, sums, found, parts=attrs)
