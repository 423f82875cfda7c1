"""What operators compute, as differentiable torch functions of a node and its inputs.

`Op.gradient` names the function of each operator of OPS; `OTHERS` has those that only ever run in
float. All follow ONNX, opset 21, for batch-first arrays of any rank.
"""

import math
from collections.abc import Callable, Sequence

import onnx_ir as ir
import torch
from torch.nn import functional

from onnxptq.ops.nodes import (
    float_attribute,
    int_attribute,
    ints_attribute,
    string_attribute,
)

Tensor = torch.Tensor
Function = Callable[..., Tensor | tuple[Tensor, ...]]

_CONV: dict[int, Callable[..., Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}
_AVERAGE: dict[int, Callable[..., Tensor]] = {
    1: functional.avg_pool1d,
    2: functional.avg_pool2d,
    3: functional.avg_pool3d,
}
_MAX: dict[int, Callable[..., Tensor]] = {
    1: functional.max_pool1d,
    2: functional.max_pool2d,
    3: functional.max_pool3d,
}


class NoGradientError(Exception):
    """A node that has no torch function, with the reason."""


def conv(node: ir.Node, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Conv over one to three axes."""
    axes = weight.dim() - 2
    padded, padding = _padded(node, x, axes)
    return _CONV[axes](
        padded,
        weight,
        bias,
        ints_attribute(node, "strides", (1,) * axes),
        padding,
        ints_attribute(node, "dilations", (1,) * axes),
        int_attribute(node, "group", 1),
    )


def gemm(node: ir.Node, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """Gemm: alpha * A @ B + beta * C."""
    a = a.T if int_attribute(node, "transA", 0) else a
    b = b.T if int_attribute(node, "transB", 0) else b
    product = float_attribute(node, "alpha", 1.0) * (a @ b)
    return product if c is None else product + float_attribute(node, "beta", 1.0) * c


def mat_mul(_: ir.Node, a: Tensor, b: Tensor) -> Tensor:
    """MatMul, numpy's rules for ranks."""
    return torch.matmul(a, b)


def add(_: ir.Node, a: Tensor, b: Tensor) -> Tensor:
    """Add."""
    return a + b


def mul(_: ir.Node, a: Tensor, b: Tensor) -> Tensor:
    """Mul."""
    return a * b


def relu(_: ir.Node, x: Tensor) -> Tensor:
    """Relu."""
    return functional.relu(x)


def clip(_: ir.Node, x: Tensor, lo: Tensor | None = None, hi: Tensor | None = None) -> Tensor:
    """Clip; each bound may be absent."""
    if lo is None and hi is None:
        return x
    if lo is None or hi is None or x.device.type != "cpu" or lo > hi:
        return torch.clamp(x, lo, hi)
    return functional.hardtanh(x, lo.item(), hi.item())  # with its gradient a third of the time


def leaky_relu(node: ir.Node, x: Tensor) -> Tensor:
    """LeakyRelu."""
    return functional.leaky_relu(x, float_attribute(node, "alpha", 0.01))


def sigmoid(_: ir.Node, x: Tensor) -> Tensor:
    """Sigmoid."""
    return torch.sigmoid(x)


def hard_sigmoid(node: ir.Node, x: Tensor) -> Tensor:
    """HardSigmoid."""
    slope, shift = float_attribute(node, "alpha", 0.2), float_attribute(node, "beta", 0.5)
    return torch.clamp(slope * x + shift, 0, 1)


def softmax(node: ir.Node, x: Tensor) -> Tensor:
    """Softmax along one axis, as since opset 13."""
    return torch.softmax(x, int_attribute(node, "axis", -1))


def global_average_pool(_: ir.Node, x: Tensor) -> Tensor:
    """GlobalAveragePool."""
    return x.mean(dim=tuple(range(2, x.dim())), keepdim=True)


def average_pool(node: ir.Node, x: Tensor) -> Tensor:
    """AveragePool; the padding counts only where the node says so."""
    kernel = ints_attribute(node, "kernel_shape", ())
    strides = ints_attribute(node, "strides", (1,) * len(kernel))
    _refuse_pool(node, len(kernel))
    padded, padding = _padded(node, x, len(kernel))
    ones, _ = _padded(node, torch.ones_like(x[:1, :1]), len(kernel))
    pool = _AVERAGE[len(kernel)]
    found = pool(padded, kernel, strides, padding)
    if int_attribute(node, "count_include_pad", 0) or not any(_pads(node, len(kernel))):
        return found
    return found / pool(ones, kernel, strides, padding)


def max_pool(node: ir.Node, x: Tensor) -> Tensor:
    """MaxPool, its first output."""
    kernel = ints_attribute(node, "kernel_shape", ())
    strides = ints_attribute(node, "strides", (1,) * len(kernel))
    dilations = ints_attribute(node, "dilations", (1,) * len(kernel))
    _refuse_pool(node, 0)
    lowest = functional.pad(x, _torch_pads(_pads(node, len(kernel))), value=-math.inf)
    return _MAX[len(kernel)](lowest, kernel, strides, 0, dilations)


def _refuse_pool(node: ir.Node, undilated: int) -> None:
    if int_attribute(node, "ceil_mode", 0):
        raise NoGradientError("it rounds its size up")
    ones = (1,) * undilated
    if undilated and ints_attribute(node, "dilations", ones) != ones:
        raise NoGradientError("it is a dilated average")


def _pads(node: ir.Node, axes: int) -> tuple[int, ...]:
    """Padding in front of and behind each axis: all fronts, then all backs."""
    if string_attribute(node, "auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise NoGradientError("its padding follows from its input's size")
    return ints_attribute(node, "pads", (0,) * (2 * axes))


def _torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX's order as torch's: pairs, the last axis first."""
    axes = len(pads) // 2
    return [pads[axis + end * axes] for axis in reversed(range(axes)) for end in (0, 1)]


def _padded(node: ir.Node, x: Tensor, axes: int) -> tuple[Tensor, tuple[int, ...]]:
    """The input and the padding that is left for the kernel, which pads both ends alike."""
    pads = _pads(node, axes)
    if pads[:axes] == pads[axes:]:
        return x, pads[:axes]
    return functional.pad(x, _torch_pads(pads)), (0,) * axes


def _plain(function: Callable[..., Tensor]) -> Function:
    """A function of the inputs alone."""

    def of(_: ir.Node, *inputs: Tensor) -> Tensor:
        return function(*inputs)

    return of


def _first(_: ir.Node, x: Tensor, *_others: Tensor) -> Tensor:
    return x


def _prelu(_: ir.Node, x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, x * slope, x)


def _gelu(node: ir.Node, x: Tensor) -> Tensor:
    return functional.gelu(x, approximate=string_attribute(node, "approximate", "none"))


def _elu(node: ir.Node, x: Tensor) -> Tensor:
    return functional.elu(x, float_attribute(node, "alpha", 1.0))


def _reduce_mean(node: ir.Node, x: Tensor, axes: Tensor | None = None) -> Tensor:
    dims = tuple(range(x.dim())) if axes is None else tuple(int(axis) for axis in axes)
    return x.mean(dim=dims, keepdim=bool(int_attribute(node, "keepdims", 1)))


def _layer_norm(node: ir.Node, x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    axis = int_attribute(node, "axis", -1) % x.dim()
    epsilon = float_attribute(node, "epsilon", 1e-5)
    return functional.layer_norm(x, x.shape[axis:], scale, bias, epsilon)


OTHERS: dict[str, Function] = {
    "Sub": _plain(torch.sub),
    "Div": _plain(torch.div),
    "Pow": _plain(torch.pow),
    "Abs": _plain(torch.abs),
    "Neg": _plain(torch.neg),
    "Exp": _plain(torch.exp),
    "Log": _plain(torch.log),
    "Sqrt": _plain(torch.sqrt),
    "Erf": _plain(torch.erf),
    "Tanh": _plain(torch.tanh),
    "Softplus": _plain(functional.softplus),
    "HardSwish": _plain(functional.hardswish),
    "Mish": _plain(functional.mish),
    "Identity": _first,
    "Dropout": _first,
    "Gelu": _gelu,
    "Elu": _elu,
    "PRelu": _prelu,
    "ReduceMean": _reduce_mean,
    "LayerNormalization": _layer_norm,
}
"""Operators without an entry in OPS, which stay in float between layers or behind the last one."""
