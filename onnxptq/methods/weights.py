"""weights-minmax and weights-mse: scales of constant weights, one an output channel."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.errors import ModelError
from onnxptq.kernels import numeric
from onnxptq.methods.method import Context
from onnxptq.methods.mse import require_power
from onnxptq.quant import F32, SMALLEST_SCALE, QParams, QuantSpec
from onnxptq.recipe import Recipe, TensorQuant
from onnxptq.spec import to_text

SHRINKS = np.linspace(1.0, 0.05, 96).astype(np.float32)
"""Factors on the scale that covers all: 1 % apart as in BRECQ, but further down, for 2 bits."""

Fit = Callable[[F32, QuantSpec], tuple[F32, npt.NDArray[np.int32]]]


@dataclass(frozen=True)
class WeightsMinMax:
    """Scale each output channel so that its largest weight just fits."""

    name: ClassVar[str] = "weights-minmax"

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with all weights covered."""
        return _set_weights(recipe, ctx, _cover, to_text(self))


@dataclass(frozen=True)
class WeightsMse:
    """Give each output channel the scale, and below 8 bits the grid, with the least |error|^p.

    8 bits use -127..127. Below, a channel takes the codes -2^(b-1)..2^(b-1)-1, or the same shifted
    up by one where that has less error. Zero point is always 0.

    Attributes:
        p: Power; 2 is the mean square, above it large errors count more.

    Source:
        Li et al. 2021, BRECQ (arXiv:2102.05426), for the shrinking scales; p as for activations.
    """

    name: ClassVar[str] = "weights-mse"

    p: float = 2.4

    def __post_init__(self) -> None:
        require_power(self.p, self.name)

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with all weights on their best grids."""
        return _set_weights(recipe, ctx, self.fit, to_text(self))

    def fit(self, rows: F32, spec: QuantSpec) -> tuple[F32, npt.NDArray[np.int32]]:
        """Scale and lowest code of each row of weights [C, K]."""
        grids = weight_grids(spec)
        # One more shrink lets the lowest code reach the largest weight, as weights-minmax may.
        lowest_fits = np.float32(grids[0, 1] / -grids[0, 0])
        shrinks = np.append(SHRINKS, lowest_fits)
        scales = np.empty(rows.shape[0], np.float32)
        chosen = np.empty(rows.shape[0], np.int32)
        numeric.search_weights(rows, shrinks, grids, self.p, scales, chosen)
        return scales, grids[chosen, 0]


@dataclass(frozen=True)
class WeightsAsymmetric:
    """Give each output channel a zero point, so that its smallest and largest weight just fit.

    One step finer where a channel's weights lie to one side of 0, but onnxruntime's convolutions
    with weight zero points take about 1.5 times as long, which is said aloud.

    Source:
        Jacob et al. 2018 (arXiv:1712.05877), section 2.1.
    """

    name: ClassVar[str] = "weights-asymmetric"

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with all weights covered, zero points included."""
        ctx.progress.warn(
            "weights-asymmetric: onnxruntime runs convolutions with weight zero points about 1.5 "
            "times slower (benchmarks/choices.py)"
        )
        chosen = {
            tensor.value: _between(weight_array(ctx.model, tensor.value), tensor.params.spec)
            for tensor in recipe.weights()
        }
        return recipe.with_params(chosen, to_text(self))


def _between(array: F32, spec: QuantSpec) -> QParams:
    rows = channel_rows(array, spec.axis)
    lo = np.minimum(rows.min(axis=1, initial=0.0), 0.0).astype(np.float64)
    hi = np.maximum(rows.max(axis=1, initial=0.0), 0.0).astype(np.float64)
    first, last = -(spec.levels // 2), spec.levels // 2 - 1
    scales = np.where(hi > lo, np.maximum((hi - lo) / (last - first), float(SMALLEST_SCALE)), 1.0)
    zero_points = np.clip(np.rint(first - lo / scales), first, last)
    shape = () if spec.axis is None else (rows.shape[0],)
    return QParams(
        spec,
        scales.astype(np.float32).reshape(shape),
        zero_points.astype(np.int32).reshape(shape),
        np.full(shape, first, np.int32),
    )


def weight_grids(spec: QuantSpec) -> npt.NDArray[np.int32]:
    """Lowest and highest code of each grid a channel may take, the preferred one first, [G, 2]."""
    lowest = spec.default_code_lo
    highest = min(lowest + spec.levels - 1, spec.container_max)
    grids = [(lowest, highest)]
    if spec.bits < 8:
        grids.append((lowest + 1, highest + 1))
    return np.asarray(grids, np.int32)


def _cover(rows: F32, spec: QuantSpec) -> tuple[F32, npt.NDArray[np.int32]]:
    lo = np.minimum(rows.min(axis=1, initial=0.0), 0.0)
    hi = np.maximum(rows.max(axis=1, initial=0.0), 0.0)
    params = QParams.from_range(lo, hi, spec)
    return params.scale, params.code_lo


def _set_weights(recipe: Recipe, ctx: Context, fit: Fit, set_by: str) -> Recipe:
    def params_of(tensor: TensorQuant) -> QParams:
        return _params(weight_array(ctx.model, tensor.value), tensor.params.spec, fit)

    weights = recipe.weights()
    with ThreadPoolExecutor(ctx.jobs) as pool:
        found = list(pool.map(params_of, weights))
    names = [tensor.value for tensor in weights]
    return recipe.with_params(dict(zip(names, found, strict=True)), set_by)


def _params(array: F32, spec: QuantSpec, fit: Fit) -> QParams:
    rows = channel_rows(array, spec.axis)
    scales, code_lo = fit(rows, spec)
    scales = np.where(scales > 0, np.maximum(scales, SMALLEST_SCALE), np.float32(1))
    shape = () if spec.axis is None else (rows.shape[0],)
    scales = scales.astype(np.float32).reshape(shape)
    return QParams(spec, scales, np.zeros(shape, np.int32), code_lo.reshape(shape))


def weight_array(model: ir.Model, name: str) -> F32:
    """The values of an initializer.

    Raises:
        ModelError: The model has no such initializer, or it holds NaN or inf.
    """
    value = model.graph.initializers.get(name)
    if value is None or value.const_value is None:
        raise ModelError(f"weight {name!r} of the recipe is not a constant of this model")
    array = value.const_value.numpy().astype(np.float32, copy=False)
    if not np.isfinite(array).all():
        bad = int((~np.isfinite(array)).sum())
        raise ModelError(f"weight {name!r} holds {bad} NaN or inf; repair the model")
    return array


def channel_rows(array: F32, axis: int | None) -> F32:
    """One row a channel, contiguous, [C, K]; a single row if there is no axis."""
    if axis is None:
        return np.ascontiguousarray(array).reshape(1, -1)
    moved = np.moveaxis(array, axis, 0)
    return np.ascontiguousarray(moved).reshape(moved.shape[0], -1)
