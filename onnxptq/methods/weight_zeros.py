"""Zero points for rows of weights, by what the layer's output is off by."""

from dataclasses import dataclass, replace
from functools import reduce
from operator import add

import numpy as np
import onnx_ir as ir

from onnxptq.calibrate.source import Data
from onnxptq.methods.layerwise import layers_of
from onnxptq.methods.method import Context
from onnxptq.methods.moments import Moments, to_rows
from onnxptq.ops.nodes import constant
from onnxptq.passes.edit import F64
from onnxptq.quant import SMALLEST_SCALE, QParams
from onnxptq.recipe import Recipe, TensorQuant
from onnxptq.rewrite.regions import activation_inputs, weight_of

REACH = 8
"""Zero points tried on either side of the one there is: all of them up to 4 bits."""
SHRINKS = np.linspace(1.0, 0.5, 11)
"""Shares of the scale at which the codes just cover a row; the best one is refined."""
WHOLE = 8
"""Bits at which no zero point pays."""
MUST_GAIN = 0.05
"""Share of the error below which a zero point is not worth its time."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """Weights [K] of one output channel, and how they are stored."""

    weights: F64
    scale: float
    zero: int
    ends: tuple[int, int]

    def error(self, moments: F64) -> float:
        """Mean square by which the layer's output is off, on inputs of covariance [K, K]."""
        return float(_errors(self, np.array([self.scale]), self.zero, moments)[0][0])


def with_zero(row: Row, fit: F64, held: F64) -> Row:
    """The row with another zero point and scale, where that takes off a good part of its error.

    Args:
        row: As it is.
        fit: Covariance of the inputs that it is chosen by, [K, K].
        held: The same of the inputs that must confirm it.

    Source:
        methods.md 5.4, form Z2.
    """
    zeros = range(max(row.ends[0], row.zero - REACH), min(row.ends[1], row.zero + REACH) + 1)
    best = min((_with_scale(row, zero, fit) for zero in zeros), key=lambda one: one.error(fit))
    gains = best.error(held) < (1 - MUST_GAIN) * row.error(held)
    return best if gains and best.zero != row.zero else row


def _with_scale(row: Row, zero: int, moments: F64) -> Row:
    """The row with this zero point, and the scale with the least error for it."""
    low, high = row.ends[0] - zero, row.ends[1] - zero
    above = row.weights.max(initial=0.0) / high if high > 0 else 0.0
    below = row.weights.min(initial=0.0) / low if low < 0 else 0.0
    cover = max(above, below)
    if cover <= float(SMALLEST_SCALE):
        return row
    scales = cover * SHRINKS
    errors, fitted = _errors(row, scales, zero, moments)
    start = int(np.argmin(errors))
    refined = np.array([scales[start], fitted[start]])
    errors, _ = _errors(row, refined, zero, moments)
    return replace(row, scale=float(refined[int(np.argmin(errors))]), zero=zero)


def _errors(row: Row, scales: F64, zero: int, moments: F64) -> tuple[F64, F64]:
    """The error at each scale [S], and the scale that suits the codes found there best, [S]."""
    low, high = row.ends[0] - zero, row.ends[1] - zero
    steps = np.clip(np.rint(row.weights / scales[:, None]), low, high)
    moved = scales[:, None] * steps - row.weights
    errors = np.einsum("sk,sk->s", moved @ moments, moved)
    seen = steps @ moments
    power = np.einsum("sk,sk->s", seen, steps)
    fitted = np.divide(seen @ row.weights, power, out=scales.copy(), where=power > 0)
    return errors, np.where(fitted > float(SMALLEST_SCALE), fitted, scales)


def zero_points(recipe: Recipe, ctx: Context, data: Data) -> tuple[dict[str, QParams], int]:
    """New parameters of the weights below 8 bits that gain by zero points, and of how many rows.

    Args:
        recipe: Decisions, complete.
        ctx: Follows the recipe's channels; the samples held out confirm each zero point.
        data: Samples that they are chosen by.
    """
    params: dict[str, QParams] = {}
    total = 0
    layers = [node for node in layers_of(ctx.model, recipe) if _may_gain(node, recipe)]
    ctx.progress.start("zero points of weights", len(layers))
    try:
        for node in layers:
            parts = [data, data if ctx.held_out is None else ctx.held_out]
            fit, held = (_covariances(node, ctx, part) for part in parts)
            name = str(_weight(node).name)
            found, rows = _with_zeros(node, recipe.tensors[name], (fit, held))
            params |= {name: found} if rows else {}
            total += rows
            ctx.progress.advance(1)
    finally:
        ctx.progress.finish()
    return params, total


def _may_gain(node: ir.Node, recipe: Recipe) -> bool:
    spec = recipe.tensors[str(_weight(node).name)].params.spec
    return spec.axis is not None and spec.bits < WHOLE


def _weight(node: ir.Node) -> ir.Value:
    weight = weight_of(node)
    assert weight is not None
    return weight


def _covariances(node: ir.Node, ctx: Context, data: Data) -> F64:
    """Of the inputs that a layer has in float, [G, K, K]."""
    x, y = str(next(iter(activation_inputs(node))).name), str(node.outputs[0].name)
    values = ctx.float_values(data, [x, y])
    return reduce(add, (Moments.of(node, batch[x], batch[y]) for batch in values)).centred()[0]


def _with_zeros(
    node: ir.Node, tensor: TensorQuant, covariances: tuple[F64, F64]
) -> tuple[QParams, int]:
    """Scale and zero point of each row, and how many rows took another one."""
    array, params = constant(_weight(node)), tensor.params
    assert array is not None
    rows = to_rows(node, array.astype(np.float64))
    scale, zero = params.scale.copy(), params.zero_point.copy()
    for index in range(zero.size):
        group, row = divmod(index, rows.shape[1])
        ends = (int(params.code_lo[index]), int(params.code_hi[index]))
        known = Row(rows[group, row], float(scale[index]), int(zero[index]), ends)
        found = with_zero(known, *(part[group] for part in covariances))
        scale[index], zero[index] = found.scale, found.zero
    moved = int(np.count_nonzero(zero != params.zero_point))
    return replace(params, scale=scale, zero_point=zero), moved
