"""A clip for each channel, where the layers around a value can be scaled to let one grid do."""

import numpy as np

from onnxptq.calibrate.stats import ChannelStats
from onnxptq.methods import clip_constants
from onnxptq.methods.balance import Costs, Limits, factors, feels_columns
from onnxptq.methods.clip_constants import Prior
from onnxptq.methods.method import Context, Method
from onnxptq.methods.trials import (
    HELPS_DB,
    Judge,
    Plan,
    Trial,
    is_stored,
    refuse_codes,
    warn_of_lost_ranges,
)
from onnxptq.methods.weights import WeightsMse
from onnxptq.passes.edit import F64
from onnxptq.recipe import Recipe, Step
from onnxptq.rewrite.segments import Segment, find_segments

LIMITS = Limits(iterations=1, lowest=1 / 16, highest=16.0)
"""Factors further from the middle one would only serve channels that say next to nothing."""


def with_clips(recipe: Recipe, ctx: Context, prior: Prior, clip: Method) -> Recipe:
    """The recipe in which channels are divided by their clips, where that helps.

    Args:
        recipe: Without codes or biases; ranges that channels make void are undecided afterwards.
        ctx: With calibration data.
        prior: The law that channels follow.
        clip: Chooses the one clip of a value whose channels are scaled.

    Raises:
        SpecError: Codes or biases were chosen already.
        CalibrationError: There are no calibration data.
    """
    ctx.samples(clip.name)
    refuse_codes(clip.name, recipe)
    found, _ = find_segments(ctx.model)
    segments = [segment for segment in found if is_stored(segment, recipe)]
    plans = _plans(segments, recipe, ctx, prior)
    if not plans:
        ctx.remark(f"{clip.name}: no channels that could have clips of their own")
        return recipe.with_step(Step(clip.name, numbers={"scaled": 0.0}))
    base = clip.apply(recipe, ctx)
    judge = Judge.of(base, ctx, segments, clip, (clip, WeightsMse()))
    best = _best(judge, plans)
    changed = judge.changed(recipe, best.plan)
    warn_of_lost_ranges(clip.name, recipe, changed, ctx.progress)
    return changed.with_step(Step(clip.name, numbers={"scaled": float(len(best.plan))}))


def _plans(segments: list[Segment], recipe: Recipe, ctx: Context, prior: Prior) -> list[Plan]:
    """All segments scaled, and only those whose readers do not feel it."""
    names = [str(segment.values[0].name) for segment in segments]
    seen = ctx.measured(names, names) if names else {}
    costs: list[Costs] = []
    for segment, name in zip(segments, names, strict=True):
        channels = seen[name].channels
        if channels is not None:
            reach = _reach(channels, prior, _bits(segment, recipe), rectified=segment.rectified)
            costs.append(Costs(segment, reach, columns=False))
    scales = factors(costs, LIMITS)
    everywhere = {name: (scale, np.zeros(scale.size)) for name, scale in scales.items()}
    free = {
        segment.name
        for segment in segments
        if not any(feels_columns(recipe, reader) for reader in segment.readers)
    }
    only_free = {name: both for name, both in everywhere.items() if name in free}
    differs = 0 < len(only_free) < len(everywhere)
    return [plan for plan, worth in ((everywhere, bool(scales)), (only_free, differs)) if worth]


def _bits(segment: Segment, recipe: Recipe) -> int:
    """Bits of the first value of a segment that is stored."""
    stored = (recipe.tensors.get(str(value.name)) for value in segment.values)
    return next(tensor.params.spec.bits for tensor in stored if tensor is not None)


def _reach(channels: ChannelStats, prior: Prior, bits: int, *, rectified: bool) -> F64:
    """Where each channel is clipped, [C]; 0 for one that is always 0."""
    unit = channels.mad if prior == "laplace" else np.sqrt(channels.variance)
    if rectified:
        top = np.maximum(channels.mean, 0.0) + clip_constants.fused_relu(prior, bits) * unit
        return np.clip(top, 0.0, np.maximum(channels.max, 0.0))
    half = np.abs(channels.mean) + clip_constants.mid_rise(prior, bits) * unit
    return np.minimum(half, np.maximum(np.abs(channels.min), np.abs(channels.max)))


def _best(judge: Judge, plans: list[Plan]) -> Trial:
    """The best of these plans, none of them where they help too little."""
    best = judge.trial({})
    for plan in filter(judge.keeps_float, plans):
        trial = judge.trial(plan)
        if trial.db > best.db + HELPS_DB:
            best = trial
    return best
