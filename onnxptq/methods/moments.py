"""Second moments of a layer's quantized inputs and of what it should give, in constant memory.

All that rounding needs of the data: with them, the squared error of a layer's output is a quadratic
form of its weights.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.ops.nodes import constant, int_attribute
from onnxptq.ops.products import conv_attributes
from onnxptq.rewrite.regions import record, weight_of

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

Number = TypeVar("Number", bound=np.generic)

COLUMN_BYTES = 64 << 20
"""Columns of inputs are made for a few samples at a time, so that they stay below this."""


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Sums over all output positions of a layer with G groups of R rows, K inputs a row.

    Attributes:
        count: Positions.
        inputs: Sum of x x^T, [G, K, K].
        cross: Sum of t x^T, t the wanted outputs, [G, R, K].
        input_sum: Sum of x, [G, K].
        target_sum: Sum of t, [G, R].
        target_square: Sum of t^2, [G, R].
    """

    count: int
    inputs: F64
    cross: F64
    input_sum: F64
    target_sum: F64
    target_square: F64

    @classmethod
    def of(cls, node: ir.Node, x: F32, target: F32) -> "Moments":
        """Those of one batch: the layer's input as codes give it, and its wanted output."""
        found = (_sums(columns, rows) for columns, rows in column_parts(node, x, target))
        return reduce(add, found)

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(
            self.count + other.count,
            self.inputs + other.inputs,
            self.cross + other.cross,
            self.input_sum + other.input_sum,
            self.target_sum + other.target_sum,
            self.target_square + other.target_square,
        )

    def error(self, rows: F64, bias: F64) -> F64:
        """Mean squared error of rows [G, R, K] with a bias [G, R] against the wanted outputs."""
        linear = np.einsum("grk,gk->gr", rows, self.input_sum)
        square = np.einsum("grk,gkj,grj->gr", rows, self.inputs, rows, optimize=True)
        cross = np.einsum("grk,grk->gr", rows, self.cross)
        total = self.target_square - 2.0 * cross + square
        total += 2.0 * bias * (linear - self.target_sum) + self.count * bias**2
        return np.maximum(total, 0.0) / self.count

    def centred(self) -> tuple[F64, F64]:
        """Covariances of the inputs and with the wanted outputs, [G, K, K] and [G, R, K].

        A free bias takes care of the means.
        """
        mean, target = self.input_sum / self.count, self.target_sum / self.count
        inputs = self.inputs / self.count - mean[:, :, None] * mean[:, None, :]
        return inputs, self.cross / self.count - target[:, :, None] * mean[:, None, :]

    def plain(self) -> tuple[F64, F64]:
        """The same without taking means away, for layers that have no bias."""
        return self.inputs / self.count, self.cross / self.count

    def bias(self, rows: F64) -> F64:
        """The bias with the least error for rows [G, R, K], [G, R]."""
        return (self.target_sum - np.einsum("grk,gk->gr", rows, self.input_sum)) / self.count


def supports(node: ir.Node) -> bool:
    """Whether a layer has one matrix of weights a group, as all but stacked products have."""
    weight = weight_of(node)
    array = None if weight is None else constant(weight)
    return array is not None and array.size > 0 and (node.op_type == "Conv" or array.ndim == 2)


def groups_of(node: ir.Node) -> int:
    """Groups of a convolution, 1 for products."""
    return int_attribute(node, "group", 1) if node.op_type == "Conv" else 1


def to_rows(node: ir.Node, array: npt.NDArray[Number]) -> npt.NDArray[Number]:
    """A weight as [G, R, K]: one row of inputs an output channel."""
    op = record(node)
    assert op is not None
    assert op.rule.weight_axis is not None
    axis = op.rule.weight_axis(node) or 0
    rows = np.moveaxis(array, axis, 0)
    return rows.reshape(groups_of(node), rows.shape[0] // groups_of(node), -1)


def from_rows(node: ir.Node, rows: npt.NDArray[Number], like: F32) -> npt.NDArray[Number]:
    """The way back from `to_rows`."""
    op = record(node)
    assert op is not None
    assert op.rule.weight_axis is not None
    axis = op.rule.weight_axis(node) or 0
    shape = np.moveaxis(like, axis, 0).shape
    return np.ascontiguousarray(np.moveaxis(rows.reshape(shape), 0, axis))


def column_parts(node: ir.Node, x: F32, target: F32) -> Iterator[tuple[F32, F32]]:
    """Inputs [G, K, P] of a layer's positions and its wanted outputs [G, R, P], part by part."""
    if node.op_type != "Conv":
        yield x.reshape(-1, x.shape[-1]).T[None], target.reshape(-1, target.shape[-1]).T[None]
        return
    weight = weight_of(node)
    array = None if weight is None else constant(weight)
    assert array is not None
    groups = groups_of(node)
    sample = 4 * array[0].size * groups * max(1, target[0, 0].size)
    step = max(1, COLUMN_BYTES // sample)
    for start in range(0, x.shape[0], step):
        wanted = target[start : start + step]
        split = wanted.reshape(wanted.shape[0], groups, wanted.shape[1] // groups, -1)
        rows = split.transpose(1, 2, 0, 3).reshape(groups, split.shape[2], -1)
        yield _columns(node, x[start : start + step], wanted.shape[2:], array.shape[2:]), rows


def _sums(columns: F32, rows: F32) -> Moments:
    x, t = np.ascontiguousarray(columns, np.float32), np.ascontiguousarray(rows, np.float32)
    turned = x.transpose(0, 2, 1)
    return Moments(
        x.shape[2],
        np.matmul(x, turned).astype(np.float64),
        np.matmul(t, turned).astype(np.float64),
        x.sum(axis=2, dtype=np.float64),
        t.sum(axis=2, dtype=np.float64),
        np.einsum("grp,grp->gr", t, t, dtype=np.float64),
    )


def _columns(node: ir.Node, x: F32, output: tuple[int, ...], kernel: tuple[int, ...]) -> F32:
    """What each output position of a convolution multiplies with its weights, [G, K, positions]."""
    spatial = len(kernel)
    attrs = conv_attributes(node, spatial)
    strides, dilations = _ints(attrs["strides"]), _ints(attrs["dilations"])
    reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True)]
    needed = [(o - 1) * s + r for o, s, r in zip(output, strides, reach, strict=True)]
    before = _before(str(attrs["auto_pad"]), _ints(attrs["pads"]), needed, x.shape[2:])
    sides = [
        (first, max(0, size - first - given))
        for first, size, given in zip(before, needed, x.shape[2:], strict=True)
    ]
    padded = np.pad(x, ((0, 0), (0, 0), *sides))
    padded = padded[(..., *(slice(0, size) for size in needed))]
    axes = tuple(range(2, 2 + spatial))
    windows = np.lib.stride_tricks.sliding_window_view(padded, reach, axis=axes)
    steps = (*(slice(None, None, s) for s in strides), *(slice(None, None, d) for d in dilations))
    windows = windows[(slice(None), slice(None), *steps)]
    groups = groups_of(node)
    split = windows.reshape(x.shape[0], groups, x.shape[1] // groups, *windows.shape[2:])
    order = (1, 2, *range(3 + spatial, 3 + 2 * spatial), 0, *range(3, 3 + spatial))
    depth = x.shape[1] // groups * int(np.prod(kernel))
    return split.transpose(order).reshape(groups, depth, -1)


def _before(auto_pad: str, pads: list[int], needed: list[int], given: tuple[int, ...]) -> list[int]:
    """Padding before the first element of each axis."""
    if auto_pad == "NOTSET":
        return pads[: len(needed)]
    if auto_pad == "VALID":
        return [0] * len(needed)
    missing = [max(0, size - side) for size, side in zip(needed, given, strict=True)]
    return [(total + (auto_pad == "SAME_LOWER")) // 2 for total in missing]


def _ints(value: object) -> list[int]:
    assert isinstance(value, tuple)
    return [int(number) for number in value]
