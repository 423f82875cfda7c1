"""aciq: activations clipped where, by a Laplace or Gauss law, clipping and rounding balance."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np

from onnxptq.calibrate.ports import Array
from onnxptq.calibrate.stats import TensorStats
from onnxptq.methods import clip_constants
from onnxptq.methods.channel_clips import with_clips
from onnxptq.methods.clip_constants import PRIORS, Constants, Prior
from onnxptq.methods.method import Context
from onnxptq.methods.minmax import cover
from onnxptq.methods.mse import grid_error
from onnxptq.methods.ranges import Choose, set_each
from onnxptq.quant import QParams, QuantSpec
from onnxptq.recipe import Recipe
from onnxptq.rewrite.clamps import clamp_of
from onnxptq.rewrite.place import lay_out, regions_of
from onnxptq.spec import to_text

PER_PASS = 16
"""Values that are held in memory together while they are measured."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean of a value, its mean distance from that, and its standard deviation."""

    mean: float
    deviation: float
    sigma: float

    @classmethod
    def of(cls, x: Array) -> "Spread":
        """That of one batch."""
        flat = x.astype(np.float64).reshape(-1)
        mean = float(flat.mean())
        sigma = float(flat.std(ddof=1)) if flat.size > 1 else 0.0
        return cls(mean, float(np.abs(flat - mean).mean()), sigma)

    def unit(self, prior: Prior) -> float:
        """What the clip constants of a prior are multiples of."""
        return self.deviation if prior == "laplace" else self.sigma


@dataclass(frozen=True)
class Aciq:
    """Clip each activation where the errors of clipping and of rounding balance.

    Assumes a Gauss or Laplace law with the measured spread; the best clip is then a constant times
    that spread, and the constant depends on the number of bits alone. Behind a Relu or Clip that
    vanishes into the codes, the spread is that of the value in front of it, averaged over batches,
    and the range begins at 0. Nothing is covered that was never seen.

    With per_channel=true each channel is clipped where its own spread says. One grid serves them
    all: the layer in front divides the channels by their clips, relative to the middle one, and
    those behind multiply, where nothing in between forbids it. That costs readers other than
    depthwise ones precision of weights, so the samples held out decide where it is done: nowhere,
    in front of depthwise layers, or everywhere. It changes weights, so it comes before the methods
    that choose their ranges.

    Attributes:
        clip: "laplace", "gauss", or "best": of both and of the whole range seen, the one with the
            least squared error on the histogram.
        constants: "exact": optima of the codes as they are; "published": the paper's, which take
            rounding for uniform noise and cost up to 4 % more error at 2 bits behind a Relu.
        per_channel: Whether channels may have clips of their own, by the exact constants, and by
            Laplace's law where clip is "best".

    Source:
        Banner et al. 2018 (arXiv:1810.05723), section 3; placement and the choice among laws as in
        the authors' code (methods.md 2).
    """

    name: ClassVar[str] = "aciq"
    runs_model: ClassVar[bool] = True

    clip: Literal["laplace", "gauss", "best"] = "best"
    constants: Constants = "exact"
    per_channel: bool = False

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with every free activation clipped.

        Raises:
            SpecError: With per_channel, codes or biases were chosen already.
            CalibrationError: With per_channel, there are no calibration data.
        """
        if self.per_channel:
            recipe = with_clips(recipe, ctx, self._law(), replace(self, per_channel=False))
            ctx = ctx.following(recipe)
        return self._clipped(recipe, ctx)

    def _law(self) -> Prior:
        return "laplace" if self.clip == "best" else self.clip

    def _clipped(self, recipe: Recipe, ctx: Context) -> Recipe:
        before = _before_clamps(recipe, ctx)
        measured = _measure(sorted({name for names in before.values() for name in names}), ctx)
        rectified: dict[str, Spread] = {}
        for name, sources in before.items():
            seen = ctx.stats.get(name)
            if seen is not None and seen.min >= 0.0 and seen.count > seen.zeros:
                known = [measured[source] for source in sources if source in measured]
                rectified[name] = _mean(known) if known else from_positives(seen)

        def choose_for(name: str) -> Choose:
            return lambda stats, spec: self.choose(stats, spec, rectified.get(name))

        return set_each(recipe, ctx, choose_for, to_text(self))

    def choose(self, stats: TensorStats, spec: QuantSpec, rectified: Spread | None) -> QParams:
        """Parameters of one activation.

        Args:
            stats: Its statistics.
            spec: Its format.
            rectified: Spread in front of the Relu or Clip that it comes from; None without one.
        """
        priors: tuple[Prior, ...] = PRIORS if self.clip == "best" else (self.clip,)
        found = [
            QParams.from_range(*self.range_of(stats, spec.bits, prior, rectified), spec)
            for prior in priors
        ]
        if self.clip != "best":
            return found[0]
        found.append(cover(stats, spec))
        return min(found, key=lambda params: grid_error(stats, params, 2.0))

    def range_of(
        self, stats: TensorStats, bits: int, prior: Prior, rectified: Spread | None
    ) -> tuple[float, float]:
        """The real range [lo, hi] that a law asks for, inside of what was seen, 0 included."""
        if rectified is not None:
            constant = (
                clip_constants.fused_relu(prior, bits)
                if self.constants == "exact"
                else clip_constants.published(prior, bits + 1)
            )
            hi = max(rectified.mean, 0.0) + constant * rectified.unit(prior)
            return 0.0, _inside(hi, stats.max)
        spread = Spread(stats.mean, stats.mad, math.sqrt(stats.variance))
        if self.constants == "exact":
            # Values sit in the middle of their cells, so the range ends half a cell further in.
            constant = clip_constants.mid_rise(prior, bits) * (1.0 - 0.5**bits)
        else:
            constant = clip_constants.published(prior, bits)
        half = constant * spread.unit(prior)
        lo = max(stats.min, spread.mean - half)
        hi = _inside(lo + 2.0 * half, stats.max)
        return min(lo, 0.0), max(hi, 0.0)


def _inside(hi: float, highest: float) -> float:
    """The upper end, or the highest value seen where the law reaches past that or says nothing."""
    return hi if 0.0 < hi < highest or highest <= 0.0 else highest


def from_positives(stats: TensorStats) -> Spread:
    """The spread in front of a Relu as its output tells of it, if the mean there was 0.

    Of a Laplace law, what lies above 0 has the mean b; of a Gauss law, the mean square sigma^2.
    """
    share = stats.count / (stats.count - stats.zeros)
    square = (stats.variance + stats.mean**2) * share
    return Spread(0.0, stats.mean * share, math.sqrt(square))


def _before_clamps(recipe: Recipe, ctx: Context) -> dict[str, list[str]]:
    """Free activation to the values in front of the clamps at 0 that vanish into its codes.

    What only passes values on shares the parameters of what it reads, hence the list.
    """
    folded = lay_out(ctx.model, regions_of(ctx.model, recipe)).folded
    found: dict[str, list[str]] = {}
    for name, node in folded.items():
        source, tensor = node.inputs[0], recipe.tensors.get(name)
        if source is not None and tensor is not None and clamp_of(node).lo == 0.0:
            found.setdefault(tensor.tied_to or name, []).append(str(source.name))
    return found


def _measure(names: list[str], ctx: Context) -> Mapping[str, Spread]:
    """Spreads of values of the float model, averaged over batches; none without batches."""
    if ctx.batches is None:
        return {}
    seen: dict[str, list[Spread]] = {name: [] for name in names}
    for start in range(0, len(names), PER_PASS):
        part = names[start : start + PER_PASS]
        for values in ctx.float_values(ctx.batches, part):
            for name in part:
                seen[name].append(Spread.of(values[name]))
    return {name: _mean(spreads) for name, spreads in seen.items() if spreads}


def _mean(spreads: list[Spread]) -> Spread:
    rows = np.array([(s.mean, s.deviation, s.sigma) for s in spreads])
    mean, deviation, sigma = rows.mean(axis=0)
    return Spread(float(mean), float(deviation), float(sigma))
