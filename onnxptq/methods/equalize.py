"""equalize: channels scaled so that none is coarse because another one is large."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from onnxptq.calibrate.stats import ChannelStats
from onnxptq.errors import SpecError
from onnxptq.methods.balance import (
    Costs,
    Limits,
    absorbed,
    chains,
    factors,
    feels_columns,
    has_own_scales,
)
from onnxptq.methods.method import Context
from onnxptq.methods.trials import (
    HELPS_DB,
    Judge,
    Plan,
    Trial,
    is_stored,
    refuse_codes,
    warn_of_lost_ranges,
)
from onnxptq.passes.edit import F64
from onnxptq.recipe import Recipe, Step
from onnxptq.rewrite.segments import Segment, find_segments

MAX_CHAINS = 32
"""Up to so many chains are also tried one by one; each costs two passes over a few samples."""


@dataclass(frozen=True)
class Equalize:
    """Scale channels between layers, so that the small ones get as many codes as the large ones.

    The layer that makes a value divides each channel by a factor, those that read it multiply: the
    float network stays what it is, and nothing is left to do at run time. Where weights have one
    scale in all, either rows and columns are balanced or the stored values and columns, whichever
    does better. Bias absorption also takes off what a channel never falls below. What the samples
    held out say does not help, together or chain by chain, is undone. It changes weights, so it
    comes before the methods that choose ranges and codes.

    Attributes:
        iterations: Rounds over all chains; fewer where the factors stand still.
        lowest: Smallest factor, relative to the middle one of its segment.
        highest: Largest one.
        absorb: Whether channels may be shifted too.

    Source:
        Nagel et al. 2019, data-free quantization (arXiv:1906.04721), sections 4.1 and 4.1.3.
    """

    name: ClassVar[str] = "equalize"
    runs_model: ClassVar[bool] = True

    iterations: int = 20
    lowest: float = 0.1
    highest: float = 10.0
    absorb: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.iterations <= 1000:
            raise SpecError(f"{self.name}: iterations must be 1 to 1000")
        if not 0 < self.lowest <= 1 <= self.highest <= 1e6:
            raise SpecError(f"{self.name}: lowest must be above 0 to 1, highest 1 to 1000000")

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with channel scales and shifts, and ranges undecided where they changed.

        Raises:
            SpecError: Codes or biases were chosen already, for weights that would change.
            CalibrationError: There are no calibration data.
        """
        ctx.samples(self.name)
        refuse_codes(self.name, recipe)
        found, reasons = find_segments(ctx.model)
        segments = [segment for segment in found if is_stored(segment, recipe)]
        if not segments:
            ctx.remark(f"{self.name}: no channels that could be scaled{_why(reasons)}")
            return recipe.with_step(Step(self.name, numbers={"chains": 0.0}))
        plans = self._plans(recipe, ctx, segments)
        groups = chains(segments)
        one_by_one = len(groups) if 1 < len(groups) <= MAX_CHAINS else 0
        ctx.progress.start(self.name, 1 + len(plans) + one_by_one)
        try:
            judge = Judge.of(recipe, ctx, segments, self)
            before = judge.trial({})
            after = _best(judge, before, plans, groups if one_by_one else [])
        finally:
            ctx.progress.finish()
        if not after.plan:
            ctx.remark(
                f"{self.name}: scaled channels brought the output no nearer to float "
                f"({before.db:.2f} dB on the samples held out); nothing is changed"
            )
        changed = judge.changed(recipe, after.plan)
        warn_of_lost_ranges(self.name, recipe, changed, ctx.progress)
        return changed.with_step(Step(self.name, numbers=_numbers(before, after, groups)))

    def _plans(self, recipe: Recipe, ctx: Context, segments: list[Segment]) -> list[Plan]:
        """What may help, all channels scaled at once; the last ones are shifted too."""
        limits = Limits(self.iterations, self.lowest, self.highest)
        seen = _measured(segments, ctx)
        balanced = [factors(costs, limits) for costs in _costs(segments, recipe, seen)]
        plans: list[Plan] = [
            {name: (scale, np.zeros(scale.size)) for name, scale in scales.items()}
            for scales in balanced
        ]
        shifts = self._shifts(segments, ctx, seen) if self.absorb else {}
        if shifts:
            plans += [
                {n: (s, -shifts[n] / s if n in shifts else np.zeros(s.size)) for n, s in p.items()}
                for p in balanced
            ]
        return plans

    def _shifts(
        self, segments: list[Segment], ctx: Context, seen: Mapping[str, ChannelStats]
    ) -> dict[str, F64]:
        """How much to take off the unscaled channels, where that is more than 0."""
        found: dict[str, F64] = {}
        for segment in segments:
            norm = ctx.norms.get(str(segment.maker.name))
            amount = absorbed(segment, seen[str(segment.values[0].name)], norm)
            if amount is not None and amount.any():
                found[segment.name] = amount
        return found


def _best(judge: Judge, before: Trial, plans: list[Plan], groups: list[tuple[str, ...]]) -> Trial:
    """The best of no plan and the whole ones; of few chains, those that do harm are left out."""
    best, whole = before, before
    for plan in filter(judge.keeps_float, plans):
        trial = judge.trial(plan)
        if whole is before or trial.db > whole.db:
            whole = trial
        if trial.db > best.db + HELPS_DB:
            best = trial
    for group in groups if whole is not before else []:
        turned = {name: numbers for name, numbers in best.plan.items() if name not in group}
        if len(turned) == len(best.plan):
            turned |= {name: whole.plan[name] for name in group}
        trial = judge.trial(turned)
        if trial.db > best.db + HELPS_DB:
            best = trial
    return best


def _numbers(before: Trial, after: Trial, groups: list[tuple[str, ...]]) -> dict[str, float]:
    scaled = sum(any(name in after.plan for name in group) for group in groups)
    shifted = sum(int(np.count_nonzero(shift)) for _, shift in after.plan.values())
    return {
        "chains": float(len(groups)),
        "chains_scaled": float(scaled),
        "channels_shifted": float(shifted),
        "tried_db_before": round(before.db, 3),
        "tried_db": round(after.db, 3),
    }


def _why(reasons: list[str]) -> str:
    if not reasons:
        return ""
    others = f"; and so for {len(reasons) - 1} more values" if len(reasons) > 1 else ""
    return f": {reasons[0]}{others}"


def _measured(segments: list[Segment], ctx: Context) -> dict[str, ChannelStats]:
    """What was seen of the channels of each segment's first and last value, by the value's name."""
    names = dict.fromkeys(
        name for s in segments for name in (str(s.values[0].name), _last_by_channel(s))
    )
    found = {name: stats.channels for name, stats in ctx.measured(list(names), list(names)).items()}
    return {name: channels for name, channels in found.items() if channels is not None}


def _last_by_channel(segment: Segment) -> str:
    """The last value before a Flatten makes several numbers of a channel."""
    shaped = (v for v in segment.values if v.shape is not None and len(v.shape) > 1)
    fitting = [v for v in shaped if v.shape is not None and v.shape[1] == segment.channels]
    return str((fitting or segment.values)[-1 if fitting else 0].name)


def _costs(
    segments: list[Segment], recipe: Recipe, seen: Mapping[str, ChannelStats]
) -> list[list[Costs]]:
    """Rows against columns, where rows share a scale; and stored values against columns."""
    by_rows: list[Costs] = []
    by_values: list[Costs] = []
    for segment in segments:
        channels = seen[_last_by_channel(segment)]
        reach = np.maximum(np.abs(channels.min), np.abs(channels.max))
        columns = any(feels_columns(recipe, reader) for reader in segment.readers)
        own = has_own_scales(recipe, segment.maker)
        by_rows.append(Costs(segment, reach if own else None, columns))
        by_values.append(Costs(segment, reach, columns))
    return [by_values] if all(c.reach is not None for c in by_rows) else [by_rows, by_values]
