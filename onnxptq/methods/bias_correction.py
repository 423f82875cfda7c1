"""bias-correction: each channel gets back the mean that quantization took from it."""

from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.calibrate.source import Data
from onnxptq.methods.layerwise import Pairs, Wanted, free_bias, layers_of
from onnxptq.methods.method import Context
from onnxptq.methods.moments import column_parts, to_rows
from onnxptq.methods.ready import ready
from onnxptq.methods.weights import channel_rows, weight_array
from onnxptq.ops.nodes import constant
from onnxptq.quant import F32, SMALLEST_SCALE
from onnxptq.recipe import Recipe, TensorQuant
from onnxptq.rewrite.regions import weight_of
from onnxptq.rewrite.weights import fit_scales, weight_codes
from onnxptq.spec import to_text

F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Sums:
    """Sums over all output positions of a layer with G groups of R rows, K inputs a row.

    Attributes:
        count: Positions.
        inputs: Sum of the inputs, [G, K].
        wanted: Sum of the wanted outputs, [G, R].
    """

    count: int
    inputs: F64
    wanted: F64

    @classmethod
    def of(cls, node: ir.Node, x: F32, target: F32) -> "Sums":
        """Those of one batch."""
        found = (
            cls(
                columns.shape[2],
                columns.sum(axis=2, dtype=np.float64),
                rows.sum(axis=2, dtype=np.float64),
            )
            for columns, rows in column_parts(node, x, target)
        )
        return reduce(add, found)

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(
            self.count + other.count, self.inputs + other.inputs, self.wanted + other.wanted
        )

    def bias(self, weights: F64) -> F64:
        """The bias at which weights [G, R, K] give the wanted outputs on average, [G, R]."""
        return (self.wanted - np.einsum("grk,gk->gr", weights, self.inputs)) / self.count

    def prefers(self, bias: F64, other: F64, weights: F64) -> npt.NDArray[np.bool_]:
        """Where a bias gives less squared error than another, [G, R]: it is nearer to the best."""
        best = self.bias(weights)
        return np.abs(bias - best) < np.abs(other - best)


@dataclass(frozen=True)
class BiasCorrection:
    """Make up for the mean error of each output channel, in its bias or in its weights' codes.

    kind=output goes through the layers in the order of the network: each is shown its inputs as the
    quantized layers before it give them, and its int32 bias takes up the mean difference to the
    float network's output; in front of a residual sum also what the other branch is off by. A
    channel for which that does not help on the held-out samples keeps its bias. It belongs behind
    all that chooses weights, and needs no more than a hundred samples.

    kind=weights needs no data: the codes of a channel are moved by one, those that were rounded
    furthest first, until their sum is that of the real weights to half a step.

    Attributes:
        kind: "output" or "weights".
        variance: With kind=weights, first stretch each scale so that the weights keep their
            standard deviation; the authors have this off.

    Source:
        Banner et al. 2018 (arXiv:1810.05723), section 5, equations 12 and 13, and Nagel et al. 2019
        (arXiv:1906.04721), section 4.2; forms that stay on the grid as in methods.md 4.1 and 4.2.
    """

    name: ClassVar[str] = "bias-correction"

    kind: Literal["output", "weights"] = "output"
    variance: bool = False

    @property
    def runs_model(self) -> bool:
        """Whether it needs calibration data."""
        return self.kind == "output"

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with corrected biases, or with corrected codes.

        Raises:
            CalibrationError: kind is output and there are no calibration data.
        """
        if self.kind == "output":
            return self._outputs(recipe, ctx)
        recipe = ready(recipe, ctx)
        for tensor in recipe.weights():
            if tensor.params.spec.axis is not None and not tensor.params.zero_point.any():
                recipe = self._weights(tensor, recipe, ctx)
        return fit_scales(ctx.model, recipe)

    def _outputs(self, recipe: Recipe, ctx: Context) -> Recipe:
        ctx.samples(self.name)
        recipe = ready(recipe, ctx)
        layers = layers_of(ctx.model, recipe)
        done: set[str] = set()
        ctx.progress.start(self.name, len(layers))
        try:
            for node in layers:
                if free_bias(node) is not None:
                    wanted = Wanted.of(node, recipe, done)
                    recipe = _with_mean(node, recipe, ctx, wanted)
                    recipe = fit_scales(ctx.model, recipe)
                done.add(str(node.name))
                ctx.progress.advance(1)
        finally:
            ctx.progress.finish()
        return recipe

    def _weights(self, tensor: TensorQuant, recipe: Recipe, ctx: Context) -> Recipe:
        params, name = tensor.params, tensor.value
        array = weight_array(ctx.model, name)
        stored = weight_codes(array, params, recipe.codes.get(name))
        rows = channel_rows(array, params.spec.axis).astype(np.float64)
        codes = _rows(stored, params.spec.axis)
        scale = params.scale.astype(np.float64)
        if self.variance:
            stretched = np.maximum(scale * stretch(rows, codes * scale[:, None]), SMALLEST_SCALE)
            params = params.with_scale(stretched)
            scale = params.scale.astype(np.float64)
        low, high = recipe.code_ends(name)
        moved = with_sums(rows / scale[:, None], codes, (low, high))
        shape = np.moveaxis(stored, params.spec.axis or 0, 0).shape
        restored = np.moveaxis(moved.astype(np.int8).reshape(shape), 0, params.spec.axis or 0)
        changed = replace(tensor, params=params, set_by=f"{tensor.set_by},{to_text(self)}")
        return replace(
            recipe,
            tensors={**recipe.tensors, name: changed},
            codes={**recipe.codes, name: np.ascontiguousarray(restored)},
        )


def _rows(codes: npt.NDArray[np.int8], axis: int | None) -> F64:
    moved = np.moveaxis(codes, axis or 0, 0)
    return moved.reshape(moved.shape[0], -1).astype(np.float64)


def stretch(real: F64, quantized: F64) -> F64:
    """Standard deviation of each real row over that of its quantized one, [C]; 1 where that is 0.

    Source:
        Banner et al. 2018, equation 12.
    """
    spread = quantized.std(axis=1)
    return np.where(spread > 0.0, real.std(axis=1) / np.where(spread > 0.0, spread, 1.0), 1.0)


def with_sums(steps: F64, codes: F64, ends: tuple[npt.ArrayLike, npt.ArrayLike]) -> F64:
    """Codes [C, K] of which as few as needed are moved by one, so that the sums of rows fit.

    Those furthest from their real values move first. The sum of a row then lies within half a step
    of its real sum, unless the ends of the codes forbid it.

    Args:
        steps: Real values in units of the step, [C, K].
        codes: Their codes.
        ends: First and last code of each row, [C] each.

    Source:
        Guo et al. 2022, SQuant (arXiv:2202.07471), for the rule; methods.md 4.1, form 3.
    """
    low, high = (np.asarray(end, np.float64) for end in ends)
    moved = codes.copy()
    error = steps - codes
    total = error.sum(axis=1)
    for row in np.flatnonzero(np.abs(total) > 0.5):
        sign = np.sign(total[row])
        after = codes[row] + sign
        free = np.flatnonzero((after >= low[row]) & (after <= high[row]))
        order = free[np.argsort(-sign * error[row, free], kind="stable")]
        moved[row, order[: round(abs(total[row]))]] += sign
    return moved


def _with_mean(node: ir.Node, recipe: Recipe, ctx: Context, wanted: Wanted) -> Recipe:
    """The recipe with the bias of one layer that gives its outputs their means."""
    weight, bias = weight_of(node), free_bias(node)
    assert weight is not None
    assert bias is not None
    array, given = constant(weight), constant(bias)
    assert array is not None
    assert given is not None
    data = ctx.samples(BiasCorrection.name)
    params = recipe.tensors[str(weight.name)].params
    codes = weight_codes(array, params, recipe.codes.get(str(weight.name)))
    rows = to_rows(node, params.dequantize(codes).astype(np.float64))
    before = recipe.biases.get(str(bias.name), given).reshape(rows.shape[:2]).astype(np.float64)
    pairs = Pairs(node, recipe, ctx, wanted)
    found = _sums(node, pairs, data).bias(rows)
    if ctx.held_out is not None:
        judge = _sums(node, pairs, ctx.held_out)
        found = np.where(judge.prefers(found, before, rows), found, before)
    real = found.reshape(given.shape).astype(np.float32)
    return replace(recipe, biases={**recipe.biases, str(bias.name): real})


def _sums(node: ir.Node, pairs: Pairs, data: Data) -> Sums:
    return reduce(add, (Sums.of(node, x, target) for x, target in pairs.of(data)))
