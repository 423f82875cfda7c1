"""Quantized graphs that our rewriter never writes: odd zero points, scales on ties, QOperator.

Scales are small multiples of 0.01, whose products lie on ties of rounding far more often than
random ones.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from onnxptq.graph import io

Array = npt.NDArray[Any]
MICROSOFT = "com.microsoft"
STANDARD = ("QuantizeLinear", "QLinearConv", "QLinearMatMul")
CHANNELS = 3
"""Of the input; the image is 5 x 4."""
SHAPE = (2, CHANNELS, 5, 4)


@dataclass(frozen=True, slots=True)
class Format:
    """Scale in hundredths, and where the zero point is: 0 at the low end, 1 at the high end."""

    hundredths: int = 1
    zero: float = 0.5

    def scale(self) -> np.float32:
        return np.float32(self.hundredths * 0.01)

    def zero_point(self, dtype: type[np.integer[Any]]) -> np.integer[Any]:
        ends = np.iinfo(dtype)
        return dtype(round(ends.min + self.zero * (ends.max - ends.min)))


@dataclass(frozen=True, slots=True)
class Odd:
    """One operator on codes.

    Attributes:
        op: Name of a row of `OPERATORS`.
        qdq: Float operator between DequantizeLinear and QuantizeLinear, where there is one.
        signed: int8 codes.
        signed_weight: int8 weights; int8 codes allow no others.
        x: Format of the first input.
        other: Format of the second input, or of the weight.
        y: Format of the output.
        weight_zeros: Weight zero points: "none", "one" or "each" (of the output channels).
        channels: Of the output.
        bias: Whether sums start at a bias.
        seed: Of weights.
    """

    op: str = "conv"
    qdq: bool = True
    signed: bool = False
    signed_weight: bool = True
    x: Format = field(default_factory=Format)
    other: Format = field(default_factory=Format)
    y: Format = field(default_factory=Format)
    weight_zeros: str = "none"
    channels: int = 2
    bias: bool = True
    seed: int = 0

    @property
    def dtype(self) -> type[np.integer[Any]]:
        """Of codes."""
        return np.int8 if self.signed else np.uint8

    @property
    def weight_dtype(self) -> type[np.integer[Any]]:
        """Of weights."""
        return np.int8 if self.signed or self.signed_weight else np.uint8

    def model(self) -> ir.Model:
        """The graph."""
        graph = _Graph(self, np.random.default_rng(self.seed))
        made = OPERATORS[self.op](graph)
        return graph.finish(made)


class _Graph:
    """Nodes and constants; `codes` makes an input or a weight of codes with its parameters."""

    def __init__(self, odd: Odd, rng: np.random.Generator) -> None:
        self.odd = odd
        self.rng = rng
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._inputs: list[onnx.ValueInfoProto] = []

    def constant(self, array: npt.ArrayLike) -> str:
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        name = f"v{len(self._nodes)}"
        ours = op in STANDARD or not op.startswith("Q")
        domain = "" if ours and op != "MatMulIntegerToFloat" else MICROSOFT
        node = helper.make_node(op, inputs, [name], f"{name}_{op}", domain=domain, **attributes)
        self._nodes.append(node)
        return name

    def input(self, *shape: int) -> str:
        name = f"x{len(self._inputs)}"
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(self.odd.dtype))
        self._inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def parameters(self, given: Format) -> tuple[str, str]:
        zero = given.zero_point(self.odd.dtype)
        return self.constant(given.scale()), self.constant(zero)

    def weight(self, *shape: int, axis: int) -> tuple[str, str, str]:
        """Codes, a scale for each channel, and zero points."""
        odd, dtype = self.odd, self.odd.weight_dtype
        ends = np.iinfo(dtype)
        codes = self.rng.integers(ends.min, ends.max, shape, endpoint=True)
        channels = shape[axis]
        scales = odd.other.scale() * self.rng.integers(1, 4, channels).astype(np.float32)
        zeros = np.zeros(channels, dtype)
        if odd.weight_zeros != "none":
            zeros[:] = odd.other.zero_point(dtype)
        if odd.weight_zeros == "each":
            zeros = self.rng.integers(ends.min, ends.max, channels, endpoint=True).astype(dtype)
        return self.constant(codes.astype(dtype)), self.constant(scales), self.constant(zeros)

    def bias(self, channels: int) -> list[str]:
        if not self.odd.bias:
            return []
        return [self.constant(self.rng.integers(-9999, 9999, channels).astype(np.int32))]

    def real_bias(self, channels: int, scales: str) -> list[str]:
        """A bias as the QDQ format has it: int32, scales are those of the products."""
        if not self.odd.bias:
            return []
        weight = next(c for c in self._constants if c.name == scales)
        scale = numpy_helper.to_array(weight) * self.odd.x.scale()
        codes = self.bias(channels)[0]
        return [self.real(codes, self.constant(scale.astype(np.float32)), "", axis=0)]

    def real(self, codes: str, scale: str, zero: str, **attributes: Any) -> str:
        return self.node("DequantizeLinear", codes, scale, zero, **attributes)

    def output(self, real: str) -> str:
        return self.node("QuantizeLinear", real, *self.parameters(self.odd.y))

    def finish(self, made: str) -> ir.Model:
        dtype = np.dtype(_RESULTS.get(self._nodes[-1].op_type, self.odd.dtype))
        kind = helper.np_dtype_to_tensor_dtype(dtype)
        graph = helper.make_graph(
            self._nodes,
            "odd",
            self._inputs,
            [helper.make_tensor_value_info(made, kind, None)],
            self._constants,
        )
        imports = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        proto = helper.make_model(graph, opset_imports=imports, ir_version=10)
        return io.from_proto(proto, "an odd graph")


def _conv(graph: _Graph) -> str:
    odd = graph.odd
    weight, scales, zeros = graph.weight(odd.channels, CHANNELS, 3, 2, axis=0)
    attributes = {"pads": [1, 0, 2, 1], "strides": [1, 2]}
    return _summed(graph, "Conv", (weight, scales, zeros), attributes)


def _depthwise(graph: _Graph) -> str:
    weights = graph.weight(CHANNELS, 1, 3, 3, axis=0)
    return _summed(graph, "Conv", weights, {"pads": [1, 1, 1, 1], "group": CHANNELS})


def _summed(
    graph: _Graph, op: str, weights: tuple[str, str, str], attributes: dict[str, Any]
) -> str:
    odd = graph.odd
    (weight, scales, zeros), channels = weights, graph.odd.channels
    channels = CHANNELS if "group" in attributes else channels
    x, parameters = graph.input(*SHAPE), graph.parameters(odd.x)
    if not odd.qdq:
        y = graph.parameters(odd.y)
        return graph.node(
            "QLinearConv", x, *parameters, weight, scales, zeros, *y, *graph.bias(channels),
            **attributes,
        )  # fmt: skip
    real = graph.real(weight, scales, zeros, axis=0)
    biases = graph.real_bias(channels, scales)
    return graph.output(graph.node(op, graph.real(x, *parameters), real, *biases, **attributes))


def _conv_integer(graph: _Graph) -> str:
    odd = graph.odd
    weight = graph.weight(odd.channels, CHANNELS, 2, 2, axis=0)[0]
    zero = graph.parameters(odd.x)[1]
    # onnxruntime's kernel takes one zero point for all weights only.
    weight_zero = graph.constant(odd.other.zero_point(odd.weight_dtype))
    inputs = (graph.input(*SHAPE), weight, zero, weight_zero)
    return graph.node("ConvInteger", *inputs, pads=[0, 1, 1, 0])


def _matmul(graph: _Graph) -> str:
    odd = graph.odd
    weights = graph.weight(SHAPE[-1], odd.channels, axis=1)
    x, parameters = graph.input(*SHAPE), graph.parameters(odd.x)
    if not odd.qdq:
        return graph.node("QLinearMatMul", x, *parameters, *weights, *graph.parameters(odd.y))
    real = graph.real(*weights, axis=1)
    return graph.output(graph.node("MatMul", graph.real(x, *parameters), real))


def _matmul_computed(graph: _Graph) -> str:
    odd = graph.odd
    first, second = graph.input(*SHAPE), graph.input(*SHAPE[:2], SHAPE[3], odd.channels)
    x, other = graph.parameters(odd.x), graph.parameters(odd.other)
    if not odd.qdq:
        y = graph.parameters(odd.y)
        return graph.node("QLinearMatMul", first, *x, second, *other, *y)
    return graph.output(graph.node("MatMul", graph.real(first, *x), graph.real(second, *other)))


def _matmul_integer(graph: _Graph) -> str:
    weight, _, zeros = graph.weight(SHAPE[-1], graph.odd.channels, axis=1)
    zero = graph.parameters(graph.odd.x)[1]
    return graph.node("MatMulInteger", graph.input(*SHAPE), weight, zero, zeros)


def _matmul_to_float(graph: _Graph) -> str:
    odd = graph.odd
    weight, scales, zeros = graph.weight(SHAPE[-1], odd.channels, axis=1)
    scale, zero = graph.parameters(odd.x)
    bias = graph.constant(graph.rng.normal(size=odd.channels).astype(np.float32))
    inputs = (graph.input(*SHAPE), weight, scale, scales, zero, zeros, *[bias] * odd.bias)
    return graph.node("MatMulIntegerToFloat", *inputs)


def _gemm(graph: _Graph) -> str:
    odd = graph.odd
    weight, scales, zeros = graph.weight(odd.channels, SHAPE[-1], axis=0)
    x, parameters = graph.input(6, SHAPE[-1]), graph.parameters(odd.x)
    if not odd.qdq:
        bias = graph.bias(odd.channels) or [""]
        y = graph.parameters(odd.y)
        inputs = (x, *parameters, weight, scales, zeros, *bias, *y)
        return graph.node("QGemm", *inputs, transB=1, alpha=0.37)
    biases = graph.real_bias(odd.channels, scales)
    real = graph.real(weight, scales, zeros, axis=0)
    return graph.output(graph.node("Gemm", graph.real(x, *parameters), real, *biases, transB=1))


def _pair(op: str, *second: int) -> Callable[[_Graph], str]:
    """Add or Mul with an operand of this shape, on either side by the seed."""

    def build(graph: _Graph) -> str:
        odd = graph.odd
        operands = [
            (graph.input(*SHAPE), graph.parameters(odd.x)),
            (graph.input(*second), graph.parameters(odd.other)),
        ][:: 1 if odd.seed % 2 else -1]
        if not odd.qdq:
            flat = [name for codes, parameters in operands for name in (codes, *parameters)]
            return graph.node(f"QLinear{op}", *flat, *graph.parameters(odd.y))
        reals = [graph.real(codes, *parameters) for codes, parameters in operands]
        return graph.output(graph.node(op, *reals))

    return build


def _unary(op: str, **attributes: Any) -> Callable[[_Graph], str]:
    """An operator with one input."""

    def build(graph: _Graph) -> str:
        odd = graph.odd
        x, parameters = graph.input(*SHAPE), graph.parameters(odd.x)
        if not odd.qdq:
            y = graph.parameters(odd.y)
            extra = {"opset": 13} if op == "Softmax" else {}
            return graph.node(f"QLinear{op}", x, *parameters, *y, **attributes, **extra)
        return graph.output(graph.node(op, graph.real(x, *parameters), **attributes))

    return build


def _concat(graph: _Graph) -> str:
    odd = graph.odd
    operands = [
        (graph.input(*SHAPE), graph.parameters(odd.x)),
        (graph.input(*SHAPE), graph.parameters(odd.other)),
        (graph.input(*SHAPE), graph.parameters(odd.y)),
    ]
    if not odd.qdq:
        flat = [name for codes, parameters in operands for name in (codes, *parameters)]
        return graph.node("QLinearConcat", *graph.parameters(odd.y), *flat, axis=1)
    reals = [graph.real(codes, *parameters) for codes, parameters in operands]
    return graph.output(graph.node("Concat", *reals, axis=1))


WINDOW = {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 1, 0, 0]}
OPERATORS: dict[str, Callable[[_Graph], str]] = {
    "conv": _conv,
    "depthwise": _depthwise,
    "conv_integer": _conv_integer,
    "matmul": _matmul,
    "matmul_computed": _matmul_computed,
    "matmul_integer": _matmul_integer,
    "matmul_to_float": _matmul_to_float,
    "gemm": _gemm,
    "add": _pair("Add", *SHAPE),
    "add_number": _pair("Add", 1),
    "add_channels": _pair("Add", CHANNELS, 1, 1),
    "mul": _pair("Mul", *SHAPE),
    "mul_rows": _pair("Mul", SHAPE[-1]),
    "average_pool": _unary("AveragePool", **WINDOW, count_include_pad=0),
    "average_pool_padded": _unary("AveragePool", **WINDOW, count_include_pad=1),
    "global_average_pool": _unary("GlobalAveragePool"),
    "leaky_relu": _unary("LeakyRelu", alpha=0.3),
    "sigmoid": _unary("Sigmoid"),
    "softmax": _unary("Softmax", axis=-1),
    "concat": _concat,
}
"""Names of what `Odd.op` can be."""

_RESULTS: dict[str, type[np.generic]] = {
    "ConvInteger": np.int32,
    "MatMulInteger": np.int32,
    "MatMulIntegerToFloat": np.float32,
}
