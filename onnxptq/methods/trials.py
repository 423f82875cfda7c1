"""Plans that scale and shift channels, tried on the samples held out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from onnxptq.calibrate.progress import Progress, Quiet
from onnxptq.errors import SpecError
from onnxptq.methods.balance import merged
from onnxptq.methods.held_out import float_distance, output_db
from onnxptq.methods.method import Context, Method
from onnxptq.methods.ready import DEFAULTS, ready
from onnxptq.passes.edit import F64
from onnxptq.quant import QParams
from onnxptq.recipe import Recipe
from onnxptq.rewrite.regions import weight_of
from onnxptq.rewrite.segments import Segment

FLOAT_TOLERANCE = 1e-4
"""Of the largest output: float32 rounding in another order stays a hundred times below it."""

HELPS_DB = 0.2
"""A gain below this is as likely to be luck: any other rounding of all weights moves the output of
ResNet-20 by as much."""

Plan = Mapping[str, tuple[F64, F64]]
"""Scale and shift by the name of the segment."""


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A plan that was tried: what it says, and how near to float it came."""

    plan: Plan
    db: float


@dataclass(frozen=True, slots=True, eq=False)
class Judge:
    """Tries plans on the samples held out, against the recipe without any.

    Attributes:
        base: The recipe without a plan, with all ranges chosen.
        ctx: The context of that recipe; it says nothing, since each trial would say it again.
        segments: All segments by name.
        progress: Told of each trial.
        method: Whose plans they are.
        by: What chooses the ranges that a plan makes void.
    """

    base: Recipe
    ctx: Context
    segments: Mapping[str, Segment]
    progress: Progress
    method: str
    by: tuple[Method, Method]

    @classmethod
    def of(
        cls,
        recipe: Recipe,
        ctx: Context,
        segments: Iterable[Segment],
        method: Method,
        by: tuple[Method, Method] = DEFAULTS,
    ) -> "Judge":
        """That of a method, whose recipe may have undecided ranges."""
        by_name = {segment.name: segment for segment in segments}
        quiet = replace(ctx, progress=Quiet())
        return cls(ready(recipe, quiet, by), quiet, by_name, ctx.progress, method.name, by)

    def trial(self, plan: Plan) -> Trial:
        """How well a plan does."""
        recipe = self.changed(self.base, plan)
        ctx = self.ctx.following(recipe)
        self.progress.advance(1)
        return Trial(plan, output_db(ready(recipe, ctx, self.by), ctx))

    def keeps_float(self, plan: Plan) -> bool:
        """Whether the float network still computes the same for the samples learned from."""
        moved = self.ctx.following(self.changed(self.base, plan))
        data = moved.samples(self.method)
        before, after = self.ctx.float_outputs(data), moved.float_outputs(data)
        return float_distance(before, after) <= FLOAT_TOLERANCE

    def changed(self, recipe: Recipe, plan: Plan) -> Recipe:
        """The recipe with the channels of a plan, without the ranges that it makes void."""
        stale: set[str] = set()
        for name, (scale, shift) in plan.items():
            segment = self.segments[name]
            recipe = merged(recipe, segment, scale, shift)
            stale |= {str(value.name) for value in segment.values}
            for layer in (segment.maker, *(reader.layer for reader in segment.readers)):
                stale |= {str(weight.name) for weight in [weight_of(layer)] if weight is not None}
        tensors = dict(recipe.tensors)
        for name in stale & tensors.keys():
            params = tensors[name].params
            channels = None if params.spec.axis is None else params.scale.size
            unit = QParams.unit(params.spec, channels)
            tensors[name] = replace(tensors[name], params=unit, set_by="")
        return replace(recipe, tensors=tensors)


def refuse_codes(method: str, recipe: Recipe) -> None:
    """Refuse a recipe whose codes or biases were chosen for weights that a plan would change.

    Raises:
        SpecError: There are some.
    """
    if recipe.codes or recipe.biases:
        raise SpecError(
            f"{method} changes the weights, for which codes or biases were chosen already: "
            f"name it before the methods that round, as in {method},mse,weights-mse,gptq"
        )


def warn_of_lost_ranges(method: str, before: Recipe, after: Recipe, progress: Progress) -> None:
    """Say how many ranges that were chosen a plan has made void."""
    void = set(after.undecided()) - set(before.undecided())
    if void:
        progress.warn(
            f"{method}: {len(void)} tensors lose the ranges that were chosen before; name it first"
        )


def is_stored(segment: Segment, recipe: Recipe) -> bool:
    """Whether anything that scaling changes is stored as codes."""
    return any(value.name in recipe.tensors for value in segment.values)
