"""zero-point: codes laid where those who read them see least of what they cannot hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from onnxptq.calibrate.progress import Quiet
from onnxptq.calibrate.source import Data
from onnxptq.errors import SpecError
from onnxptq.methods.balance import absorbed, merged
from onnxptq.methods.held_out import output_db
from onnxptq.methods.method import Context
from onnxptq.methods.ready import ready
from onnxptq.methods.study import first_samples, with_bits
from onnxptq.methods.weight_zeros import WHOLE, zero_points
from onnxptq.methods.windows import Readers, Tally, candidates, tally
from onnxptq.passes.edit import F64
from onnxptq.quant import QParams
from onnxptq.recipe import Recipe, Role, Step, TensorQuant
from onnxptq.rewrite.segments import Segment, find_segments
from onnxptq.rewrite.weights import fit_scales
from onnxptq.spec import to_text

MOST_TRIED = 32
"""So many shifts or windows are tried one by one; each costs two passes over a few samples."""

AT_ONCE = 8
"""Activations whose windows are tried in one run of the network: it holds what they read."""


@dataclass(frozen=True)
class ZeroPoint:
    """Move zero points of less than 8 bits to where the network's outputs suffer least.

    shifts: the channels of a value that nothing bends between the layers around it are moved to the
    middle of its range, each by its own constant, which costs nothing at run time. windows: each
    activation that has both signs takes, of about ten windows of codes, the one whose error the
    layers that read it feel least; an activation with one sign keeps its zero point at the end.
    weights: channels of weights below 8 bits take zero points of their own where the layer's
    output gains a lot; onnxruntime's convolutions then take 1.5 times as long.

    Whatever brings the outputs no nearer to float on the samples held out is undone. It belongs
    behind what chooses ranges, and in front of what chooses codes of weights.

    Attributes:
        shifts: Whether channels may be shifted.
        windows: Whether windows may be moved.
        weights: Whether weights may have zero points.
        candidates: Windows tried for an activation.
        samples: Samples that windows and weights are tried on.

    Source:
        Chen 2023, Post-Training Quantization by Adjusting Zero Points (NTHU), whose details are
        not public; methods.md 5.4, forms Z1 to Z3.
    """

    name: ClassVar[str] = "zero-point"
    runs_model: ClassVar[bool] = True

    shifts: bool = True
    windows: bool = True
    weights: bool = False
    candidates: int = 10
    samples: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.candidates <= 100:
            raise SpecError(f"{self.name}: candidates must be 1 to 100")
        if self.samples < 1:
            raise SpecError(f"{self.name}: samples must be at least 1")

    def apply(self, recipe: Recipe, ctx: Context) -> Recipe:
        """The recipe with channel shifts, ranges of activations and, if asked for, of weights.

        Raises:
            SpecError: Codes or biases were chosen already, for inputs that would change.
            CalibrationError: There are no calibration data.
        """
        data = first_samples(ctx.samples(self.name), self.samples)
        if recipe.codes or recipe.biases:
            raise SpecError(
                f"{self.name} changes what layers read, for which codes or biases were chosen "
                f"already: name it before the methods that round, as in "
                f"mse,weights-mse,{self.name},gptq"
            )
        numbers = {"shifted": 0.0, "windows": 0.0}
        decided = recipe
        if any(_is_coarse(tensor) for tensor in recipe.activations()):
            decided, numbers = self._activations(recipe, ctx, data)
        if self.weights:
            decided, rows = self._with_weight_zeros(decided, ctx.following(decided), data)
            numbers["rows_with_zero_points"] = float(rows)
        return decided.with_step(Step(self.name, numbers=numbers))

    def _activations(
        self, recipe: Recipe, ctx: Context, data: Data
    ) -> tuple[Recipe, dict[str, float]]:
        judge = _Judge.of(ready(recipe, ctx), ctx)
        best = judge.trial(judge.base)
        before = best.db
        if self.shifts:
            best = self._shifted(judge, best)
        shifted = len(best.recipe.channel_shifts) - len(recipe.channel_shifts)
        moved: list[str] = []
        if self.windows:
            best, moved = self._with_windows(judge, best, data)
        numbers = {"shifted": float(shifted), "windows": float(len(moved))}
        numbers |= {"tried_db_before": round(before, 3), "tried_db": round(best.db, 3)}
        return _only_activations(recipe, best.recipe), numbers

    def _shifted(self, judge: "_Judge", best: "_Trial") -> "_Trial":
        """With the shifts that help: all at once if they are many, else one by one."""
        single = _shifts(judge.ctx.following(best.recipe), best.recipe)
        plans = single if len(single) <= MOST_TRIED else [_all(single)]
        judge.ctx.progress.start(f"{self.name}: shifts", len(plans))
        try:
            for plan in plans:
                trial = judge.trial(plan(best.recipe))
                best = trial if trial.db > best.db else best
                judge.ctx.progress.advance(1)
        finally:
            judge.ctx.progress.finish()
        return best

    def _with_windows(
        self, judge: "_Judge", best: "_Trial", data: Data
    ) -> "tuple[_Trial, list[str]]":
        ctx = judge.ctx.following(best.recipe)
        found = self._windows(best.recipe, ctx, data)
        if not found:
            return best, []
        label = to_text(self)
        whole = judge.trial(best.recipe.with_params(found, label))
        if whole.db > best.db:
            return whole, list(found)
        moved: list[str] = []
        for name in list(found)[:MOST_TRIED]:
            trial = judge.trial(best.recipe.with_params({name: found[name]}, label))
            if trial.db > best.db:
                best = trial
                moved.append(name)
        return best, moved

    def _windows(self, recipe: Recipe, ctx: Context, data: Data) -> dict[str, QParams]:
        """The windows that their readers prefer, on samples that they were not chosen by too."""
        values = {str(v.name): v for node in ctx.model.graph for v in node.outputs}
        values |= {str(v.name): v for v in ctx.model.graph.inputs}
        open_ = [t for t in recipe.activations() if _is_coarse(t) and _has_both_signs(t, ctx)]
        found: dict[str, QParams] = {}
        ctx.progress.start(f"{self.name}: windows", len(open_))
        try:
            for start in range(0, len(open_), AT_ONCE):
                part = open_[start : start + AT_ONCE]
                grids = {t.value: self._candidates(t, ctx) for t in part}
                choices = _preferred(values, grids, ctx, data)
                if ctx.held_out is not None:
                    choices = _preferred(values, choices, ctx, ctx.held_out)
                found |= {name: pair[1] for name, pair in choices.items() if len(pair) > 1}
                ctx.progress.advance(len(part))
        finally:
            ctx.progress.finish()
        return found

    def _candidates(self, tensor: TensorQuant, ctx: Context) -> list[QParams]:
        return candidates(ctx.stats[tensor.value], tensor.params, self.candidates)

    def _with_weight_zeros(self, recipe: Recipe, ctx: Context, data: Data) -> tuple[Recipe, int]:
        ctx.progress.warn(
            f"{self.name}: onnxruntime runs convolutions with weight zero points about 1.5 times "
            f"slower (benchmarks/choices.py)"
        )
        whole = ready(recipe, ctx)
        params, total = zero_points(whole, ctx, data)
        return fit_scales(ctx.model, whole.with_params(params, to_text(self))), total


@dataclass(frozen=True, slots=True, eq=False)
class _Trial:
    """A recipe, and how near to float its outputs came on the samples held out."""

    recipe: Recipe
    db: float


@dataclass(frozen=True, slots=True, eq=False)
class _Judge:
    """Judges decisions about activations, in a network whose weights have 8 bits.

    Weights that are rounded coarsely would drown what activations bring.

    Attributes:
        base: The recipe to begin with, complete.
        wide: The same with 8-bit weights.
        ctx: The context of the method; trials say nothing to its progress.
    """

    base: Recipe
    wide: Recipe
    ctx: Context

    @classmethod
    def of(cls, base: Recipe, ctx: Context) -> "_Judge":
        bits = {tensor.value: WHOLE for tensor in base.weights()}
        return cls(base, ready(with_bits(base, bits), replace(ctx, progress=Quiet())), ctx)

    def trial(self, recipe: Recipe) -> _Trial:
        """Choose what is undecided in the recipe, and judge it."""
        ctx = replace(self.ctx, progress=Quiet()).following(recipe)
        whole = ready(recipe, ctx)
        weights = {tensor.value: tensor for tensor in self.wide.weights()}
        judged = replace(whole, tensors={**whole.tensors, **weights})
        return _Trial(whole, output_db(fit_scales(ctx.model, judged), ctx))


Plan = Callable[[Recipe], Recipe]


def _shifts(ctx: Context, recipe: Recipe) -> list[Plan]:
    """For each value whose channels can be shifted exactly, that to the middle of their ranges."""
    found, _ = find_segments(ctx.model)
    stored = [s for s in found if not s.rectified and _stored(s, recipe)]
    names = [str(segment.values[0].name) for segment in stored]
    seen = ctx.measured(names, names) if names else {}
    plans: list[Plan] = []
    for segment, name in zip(stored, names, strict=True):
        channels = seen[name].channels
        amount = None if channels is None else absorbed(segment, channels, None)
        if amount is not None and amount.any():
            plans.append(_shift(segment, -amount))
    return plans


def _shift(segment: Segment, amount: F64) -> Plan:
    def plan(recipe: Recipe) -> Recipe:
        shifted = merged(recipe, segment, np.ones(segment.channels), amount)
        tensors = dict(shifted.tensors)
        for value in segment.values:
            tensor = tensors.get(str(value.name))
            if tensor is not None and tensor.role is not Role.WEIGHT:
                unit = QParams.unit(tensor.params.spec)
                tensors[tensor.value] = replace(tensor, params=unit, set_by="")
        return replace(shifted, tensors=tensors)

    return plan


def _all(plans: list[Plan]) -> Plan:
    def plan(recipe: Recipe) -> Recipe:
        return reduce(lambda changed, one: one(changed), plans, recipe)

    return plan


def _stored(segment: Segment, recipe: Recipe) -> bool:
    tensors = (recipe.tensors.get(str(value.name)) for value in segment.values)
    return any(tensor is not None and _is_coarse(tensor) for tensor in tensors)


def _is_coarse(tensor: TensorQuant) -> bool:
    """Whether it has steps so large that it matters where they lie."""
    return tensor.params.spec.bits < WHOLE


def _has_both_signs(tensor: TensorQuant, ctx: Context) -> bool:
    stats = ctx.stats.get(tensor.value)
    return not tensor.params.spec.signed and stats is not None and stats.min < 0.0 < stats.max


def _preferred(
    values: Mapping[str, ir.Value],
    grids: Mapping[str, list[QParams]],
    ctx: Context,
    data: Data,
) -> dict[str, list[QParams]]:
    """The grid that there is, and the one the readers prefer to it if there is such a one."""
    tallies = [Tally(Readers.of(values[name]), g) for name, g in grids.items() if len(g) > 1]
    names = dict.fromkeys(name for one in tallies for name in one.readers.names)
    tally(ctx.float_values(data, list(names)), tallies)
    found: dict[str, list[QParams]] = {}
    for one in tallies:
        best = int(np.argmin(one.harm()))
        found[one.readers.value] = [one.grids[0], *([one.grids[best]] if best else [])]
    return found


def _only_activations(recipe: Recipe, decided: Recipe) -> Recipe:
    """The recipe with the other one's activations and shifts; ranges of weights stay open."""
    tensors = {
        name: tensor if tensor.role is Role.WEIGHT else decided.tensors[name]
        for name, tensor in recipe.tensors.items()
    }
    return replace(
        recipe,
        tensors=tensors,
        channel_scales=decided.channel_scales,
        channel_shifts=decided.channel_shifts,
    )
