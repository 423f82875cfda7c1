"""bias-correction: each channel gets back the mean that quantization took from it."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from operator import add
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.calibrate.source import Data
from onnxptq.methods.held_out import output_db
from onnxptq.methods.landing import Landing
from onnxptq.methods.layerwise import Pairs, Wanted, each, free_bias, layers_of
from onnxptq.methods.method import Context
from onnxptq.methods.moments import column_parts, to_rows
from onnxptq.methods.ready import ready
from onnxptq.methods.weights import channel_rows, weight_array
from onnxptq.ops.nodes import constant
from onnxptq.quant import F32, SMALLEST_SCALE
from onnxptq.recipe import Recipe, Step, TensorQuant
from onnxptq.rewrite.place import Layout, lay_out, regions_of
from onnxptq.rewrite.regions import weight_of
from onnxptq.rewrite.weights import fit_scales, weight_codes
from onnxptq.spec import to_text

F64 = npt.NDArray[np.float64]

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Of the correction that are tried on samples that did not choose it."""


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


@dataclass(frozen=True)
class BiasCorrection:
    """Make up for the mean error of each output channel, in its bias or in its weights' codes.

    kind=output goes through the layers in the order of the network: each is shown its inputs as the
    quantized layers before it give them, and its int32 bias takes up the mean difference to the
    float network's output; in front of a residual sum also what the other branch is off by. Each
    channel takes the share of that which serves the held-out samples best, behind the Relu or Clip
    and the ends of the codes that follow; a layer with which the network's outputs come no nearer
    to float keeps its bias. It belongs behind all that chooses weights, and needs no more than a
    hundred samples.

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
        layout = lay_out(ctx.model, regions_of(ctx.model, recipe))
        best_db, corrected = output_db(recipe, ctx), 0
        for node, done in each(layers_of(ctx.model, recipe), ctx, self.name):
            if free_bias(node) is None:
                continue
            pairs = Pairs(node, recipe, ctx, Wanted.of(node, recipe, done))
            tried = _corrected(_Layer.of(node, recipe, layout), recipe, ctx, pairs)
            tried = fit_scales(ctx.model, tried)
            found_db = output_db(tried, ctx)
            # What helps a layer can harm the network: where many inputs are clipped, its error goes
            # the same way in all channels, and later layers do not average it out.
            if found_db > best_db:
                recipe, best_db, corrected = tried, found_db, corrected + 1
        return recipe.with_step(Step(self.name, numbers={"layers": float(corrected)}))

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


def _corrected(layer: "_Layer", recipe: Recipe, ctx: Context, pairs: Pairs) -> Recipe:
    """The recipe in which one layer's outputs have the means of the float ones, where that helps.

    Each channel takes the share of the correction that leaves the least error behind its clamp.
    """
    data = ctx.samples(BiasCorrection.name)
    before = layer.bias
    best = _sums(layer.node, pairs, data).bias(layer.rows)
    judge = data if ctx.held_out is None else ctx.held_out
    tried = np.stack([before + share * (best - before) for share in SHARES])
    errors = layer.errors(tried, pairs.of(judge))
    found = np.take_along_axis(tried, errors.argmin(axis=0)[None], axis=0)[0]
    real = found.reshape(layer.shape).astype(np.float32)
    return replace(recipe, biases={**recipe.biases, layer.bias_name: real})


@dataclass(frozen=True, slots=True, eq=False)
class _Layer:
    """A layer of G groups of R rows whose bias is its own.

    Attributes:
        node: The layer.
        rows: Its weights as the codes have them, [G, R, K].
        bias: The bias it has, [G, R].
        bias_name: Of the bias in the model.
        shape: Of the bias in the model.
        landing: Where its outputs go.
    """

    node: ir.Node
    rows: F64
    bias: F64
    bias_name: str
    shape: tuple[int, ...]
    landing: Landing

    @classmethod
    def of(cls, node: ir.Node, recipe: Recipe, layout: Layout) -> "_Layer":
        weight, bias = weight_of(node), free_bias(node)
        assert weight is not None
        assert bias is not None
        array, given = constant(weight), constant(bias)
        assert array is not None
        assert given is not None
        params = recipe.tensors[str(weight.name)].params
        codes = weight_codes(array, params, recipe.codes.get(str(weight.name)))
        rows = to_rows(node, params.dequantize(codes).astype(np.float64))
        real = recipe.biases.get(str(bias.name), given).reshape(rows.shape[:2])
        landing = Landing.of(node, recipe, layout)
        return cls(node, rows, real.astype(np.float64), str(bias.name), given.shape, landing)

    def errors(self, biases: F64, pairs: Iterable[tuple[F32, F32]]) -> F64:
        """Squared error that each of some biases [S, G, R] leaves where outputs land, [S, G, R]."""
        rows, tried = self.rows.astype(np.float32), biases.astype(np.float32)
        total = np.zeros(biases.shape)
        for x, target in pairs:
            for columns, wanted in column_parts(self.node, x, target):
                products, aim = np.matmul(rows, columns), self.landing.wanted(wanted)
                for number, bias in enumerate(tried):
                    off = self.landing.found(products + bias[..., None]) - aim
                    total[number] += np.einsum("grp,grp->gr", off, off, dtype=np.float64)
        return total


def _sums(node: ir.Node, pairs: Pairs, data: Data) -> Sums:
    return reduce(add, (Sums.of(node, x, target) for x, target in pairs.of(data)))
