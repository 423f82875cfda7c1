"""provable-scales: weight scales whose requantization is provably exact as fixed point (D4)."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.errors import SpecError
from onnxptq.formulas import BoolArray, requant_scale
from onnxptq.methods.method import Context
from onnxptq.methods.provable_averages import nudge_averages
from onnxptq.ops.nodes import constant
from onnxptq.quant import F32, SMALLEST_SCALE, QParams
from onnxptq.recipe import IntArray, Recipe
from onnxptq.requant import provable
from onnxptq.rewrite.clamps import Clamp, clamp_of, code_window
from onnxptq.rewrite.place import lay_out, regions_of
from onnxptq.rewrite.regions import activation_inputs, bias_of, weight_of
from onnxptq.rewrite.weights import fit_scales
from onnxptq.staircase import I64, INT32_MAX, INT32_MIN

F64 = npt.NDArray[np.float64]

STEPS_EACH_WAY = 32
FIRST_BATCH = 2


@dataclass(frozen=True, slots=True)
class _Use:
    """One layer that reads a weight, and the codes it gives.

    Attributes:
        x: Parameters of its input.
        y: Parameters of its output.
        window: First and last code that the Clip behind its output lets through.
        bias: Real values, one an output channel; None without.
    """

    x: QParams
    y: QParams
    window: tuple[int, int]
    bias: F32 | None

    def holds(self, scale: F32, *, inside_window: bool) -> BoolArray:
        """Whether each weight scale gives a requantization with an exact fixed-point form."""
        spec = self.y.spec
        lo, hi = self.window if inside_window else (spec.container_min, spec.container_max)
        with np.errstate(over="ignore"):
            found = requant_scale(self.x.scale, scale, self.y.scale)
        usable = np.isfinite(found)
        safe = np.where(usable, found, np.float32(1)).astype(np.float32)
        return usable & provable(safe, int(self.y.zero_point), lo, hi)

    def holds_in_reach(self, scale: F32, channel: int, low: I64, high: I64) -> BoolArray:
        """Whether each of a channel's scales does, on the accumulators that can occur.

        Args:
            scale: Weight scales to try, [n].
            channel: Output channel.
            low: For each scale, the sum of its negative codes, [n].
            high: The sum of its positive codes, [n].
        """
        spec, zero = self.x.spec, int(self.x.zero_point)
        down, up = spec.container_min - zero, spec.container_max - zero
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            found = requant_scale(self.x.scale, scale, self.y.scale)
            bias = 0.0 if self.bias is None else float(self.bias.reshape(-1)[channel])
            start = np.rint(bias / (self.x.scale * scale).astype(np.float64))
        least, most = start + high * down + low * up, start + high * up + low * down
        usable = np.isfinite(found) & (least >= INT32_MIN) & (most <= INT32_MAX)
        held = np.zeros(scale.shape, np.bool_)
        held[usable] = provable(
            found[usable],
            int(self.y.zero_point),
            *self.window,
            least[usable].astype(np.int64),
            most[usable].astype(np.int64),
        )
        return held


@dataclass(frozen=True, slots=True, eq=False)
class _Weight:
    """A weight whose scales are to be nudged.

    Attributes:
        params: Its parameters.
        value: Its real values.
        codes: Codes that a method chose, which stay; None if real values are rounded to nearest.
    """

    params: QParams
    value: ir.Value
    codes: IntArray | None = None

    def sums(self, channel: int, scale: F32) -> tuple[I64, I64]:
        """Sum of the negative and of the positive codes of a channel at each scale, [n] each."""
        if self.codes is not None:
            fixed = np.take(self.codes, channel, axis=self.params.spec.axis).astype(np.int64)
            ends = np.minimum(fixed, 0).sum(), np.maximum(fixed, 0).sum()
            return np.full(scale.size, ends[0]), np.full(scale.size, ends[1])
        array = constant(self.value)
        assert array is not None
        row = np.take(array, channel, axis=self.params.spec.axis).reshape(-1).astype(np.float32)
        zero = self.params.zero_point[channel]
        lo, hi = self.params.code_lo[channel] - zero, self.params.code_hi[channel] - zero
        codes = np.clip(np.rint(row / scale[:, None]), lo, hi).astype(np.int64)
        return np.minimum(codes, 0).sum(axis=1), np.maximum(codes, 0).sum(axis=1)


@dataclass(frozen=True)
class ProvableScales:
    """Nudge weight scales until integers alone give the codes that onnxruntime computes in float32.

    An output channel is requantized by (acc * M + R) >> S wherever one such form equals the float
    formula on all accumulators, which depends on a few digits of its scale. Each channel takes the
    nearest scale for which there is one. It belongs behind all else that chooses scales, and is run
    there by default. Codes that a method chose stay as they are. Layers whose bias has stored
    codes, or without output codes, are left. A global average pool has no weights: the scale of its
    output is nudged.

    Attributes:
        nudge: Largest relative change of a scale.
    """

    name: ClassVar[str] = "provable-scales"

    nudge: float = 1e-3

    def __post_init__(self) -> None:
        if not 0 <= self.nudge <= 0.1:
            raise SpecError(f"{self.name}: nudge is {self.nudge}, it must be 0 to 0.1")

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with weight scales nudged."""
        changes = np.concatenate(list(_batches(self.nudge, both=True)))
        recipe = nudge_averages(ctx.model, recipe, changes)
        uses = _uses(ctx.model, recipe)
        values = ctx.model.graph.initializers
        weights = {
            name: _Weight(recipe.tensors[name].params, values[name], recipe.codes.get(name))
            for name in uses
        }
        free = recipe
        for name, layers in uses.items():
            free = _with_scale(free, name, self._nudged(weights[name], layers, both=True))
        # Where bias and accumulator fill int32, a scale may only grow.
        fitted = fit_scales(ctx.model, free)
        for name, layers in uses.items():
            after = _scale(free, name)
            bound = _scale(fitted, name) != after
            if bound.any():
                raised = self._nudged(weights[name], layers, both=False)
                free = _with_scale(free, name, np.where(bound, raised, after))
        return free

    def _nudged(self, weight: _Weight, layers: list[_Use], *, both: bool) -> F32:
        """The nearest scale of each channel that holds, [C]; the old one where there is none.

        What holds for the whole container and all accumulators is preferred. Next come the window
        of codes alone, and then the accumulators that can occur, which is all that there is for
        channels with tiny weights beside a large bias.
        """
        scale = weight.params.scale.reshape(-1)
        chosen = scale.copy()
        open_ = np.arange(scale.size)
        for inside_window in (False, True) if any(map(_is_narrow, layers)) else (False,):
            for batch in _batches(self.nudge, both=both):
                tried = _moved(scale[open_, None], batch)
                holds = _all_hold(tried, layers, inside_window=inside_window)
                done = holds.any(axis=1)
                chosen[open_[done]] = tried[done, holds[done].argmax(axis=1)]
                open_ = open_[~done]
        if weight.params.spec.axis is not None:
            for channel in open_.tolist():
                chosen[channel] = self._nudged_in_reach(weight, channel, layers, both=both)
        return chosen

    def _nudged_in_reach(
        self, weight: _Weight, channel: int, layers: list[_Use], *, both: bool
    ) -> np.float32:
        scale = weight.params.scale[channel]
        for batch in _batches(self.nudge, both=both):
            tried = _moved(scale, batch)
            low, high = weight.sums(channel, tried)
            held = [use.holds_in_reach(tried, channel, low, high) for use in layers]
            fine = np.logical_and.reduce(held)
            if fine.any():
                return np.float32(tried[fine.argmax()])
        return scale


def _moved(scale: F32 | np.float32, changes: F64) -> F32:
    moved = np.asarray(scale, np.float64) * (1 + changes)
    return np.maximum(moved.astype(np.float32), SMALLEST_SCALE)


def _all_hold(tried: F32, layers: list[_Use], *, inside_window: bool) -> BoolArray:
    """Which of the scales [n, K] hold for every layer that reads the weight, [n, K]."""
    flat = tried.reshape(-1)
    holds = np.ones(flat.size, np.bool_)
    for layer in layers:
        rest = np.flatnonzero(holds)
        holds[rest] = layer.holds(flat[rest], inside_window=inside_window)
    return holds.reshape(tried.shape)


def _batches(nudge: float, *, both: bool) -> Iterator[F64]:
    """Relative changes, the smallest first, in batches that double: few channels need many."""
    steps = np.arange(1, STEPS_EACH_WAY + 1, dtype=np.float64) * (nudge / STEPS_EACH_WAY)
    ordered = np.stack([steps, -steps], axis=1).reshape(-1) if both else steps
    yield np.zeros(1, np.float64)
    start, size = 0, FIRST_BATCH
    while start < ordered.size and nudge > 0:
        yield ordered[start : start + size]
        start, size = start + size, 2 * size


def _is_narrow(layer: _Use) -> bool:
    spec = layer.y.spec
    return layer.window != (spec.container_min, spec.container_max)


def _uses(model: ir.Model, recipe: Recipe) -> dict[str, list[_Use]]:
    """Weight name to the layers with quantized outputs that read it, of those free to change."""
    layout = lay_out(model, regions_of(model, recipe))
    clamped = {id(clamp.inputs[0]): name for name, clamp in layout.folded.items()}
    uses: dict[str, list[_Use]] = {}
    stored: set[str] = set()
    for node in model.graph:
        weight = weight_of(node) if layout.regions.holds(node) else None
        if weight is None:
            continue
        bias, name = bias_of(node), str(weight.name)
        if bias is not None and str(bias.name) in recipe.codes:
            stored.add(name)
        made = clamped.get(id(node.outputs[0]), str(node.outputs[0].name))
        if made not in recipe.tensors or made not in layout.values:
            continue
        real_bias = None if bias is None else recipe.biases.get(str(bias.name), constant(bias))
        source = next(iter(activation_inputs(node)))
        x, y = recipe.tensors[str(source.name)].params, recipe.tensors[made].params
        clamp = layout.folded.get(made)
        limits = Clamp(-np.inf, np.inf) if clamp is None else clamp_of(clamp)
        uses.setdefault(name, []).append(_Use(x, y, code_window(y, limits), real_bias))
    return {name: layers for name, layers in uses.items() if name not in stored}


def _scale(recipe: Recipe, name: str) -> F32:
    return recipe.tensors[name].params.scale.reshape(-1)


def _with_scale(recipe: Recipe, name: str, scale: F32) -> Recipe:
    """A recipe with other steps for one weight; who chose its range does not change."""
    tensor = recipe.tensors[name]
    if (scale == tensor.params.scale.reshape(-1)).all():
        return recipe
    params = tensor.params.with_scale(scale.reshape(tensor.params.scale.shape))
    return replace(recipe, tensors={**recipe.tensors, name: replace(tensor, params=params)})
