"""METHODS: every way to decide about a recipe, and `apply`, which runs a list of them."""

import time
from dataclasses import replace
from typing import Any

from onnxptq.errors import SpecError
from onnxptq.methods.aciq import Aciq
from onnxptq.methods.allocate_bits import AllocateBits
from onnxptq.methods.bias_correction import BiasCorrection
from onnxptq.methods.entropy import Entropy
from onnxptq.methods.equalize import Equalize
from onnxptq.methods.gains import HELD_OUT_DB, Gains
from onnxptq.methods.gptq import HELPS_DB, Gptq
from onnxptq.methods.method import Context, Method
from onnxptq.methods.minmax import MinMax
from onnxptq.methods.mse import Mse
from onnxptq.methods.ofm_similarity import OfmSimilarity
from onnxptq.methods.percentile import Percentile
from onnxptq.methods.provable_scales import ProvableScales
from onnxptq.methods.reconstruction.adaround import AdaRound
from onnxptq.methods.reconstruction.aquant import AQuant
from onnxptq.methods.reconstruction.brecq import Brecq
from onnxptq.methods.reconstruction.by_gradients import ByGradients
from onnxptq.methods.reconstruction.finetune import FineTune
from onnxptq.methods.reconstruction.pd_quant import PdQuant
from onnxptq.methods.reconstruction.qdrop import QDrop
from onnxptq.methods.weights import WeightsAsymmetric, WeightsMinMax, WeightsMse
from onnxptq.methods.zero_point import ZeroPoint
from onnxptq.recipe import Recipe, Step, alike
from onnxptq.spec import parse, to_text, unknown

METHODS: dict[str, type[Any]] = {
    method.name: method
    for method in (
        MinMax,
        Percentile,
        Mse,
        Entropy,
        Aciq,
        WeightsMinMax,
        WeightsMse,
        WeightsAsymmetric,
        AllocateBits,
        Equalize,
        ZeroPoint,
        OfmSimilarity,
        Gptq,
        AdaRound,
        Brecq,
        QDrop,
        PdQuant,
        AQuant,
        FineTune,
        BiasCorrection,
        ProvableScales,
    )
}

ROUNDING = (
    WeightsMinMax,
    WeightsMse,
    WeightsAsymmetric,
    Gptq,
    AdaRound,
    Brecq,
    QDrop,
    PdQuant,
    AQuant,
    FineTune,
)
"""What chooses ranges or codes of weights, and must come behind what chooses their bits."""

DEFAULT_METHODS = "mse,weights-mse"
"""Used for what the named methods leave undecided."""

_FAST = f"equalize,{DEFAULT_METHODS},zero-point,gptq"
QUALITIES = {
    "quick": DEFAULT_METHODS,
    "fast": _FAST,
    "best": f"{_FAST},qdrop{{scales=true,from-codes=true}},finetune",
}
"""Methods of each --quality: statistics alone; the model run layer by layer; blocks learned."""

LOW_BITS = 3
BEST_AT_LOW_BITS = f"equalize,{DEFAULT_METHODS},zero-point,aquant,finetune"
"""What "best" is where weights or activations have so few bits."""

LAST_METHOD = ProvableScales.name
"""Run behind all else that chooses scales, whatever methods are named."""


def parse_methods(text: str) -> tuple[Method, ...]:
    """The methods of a text like "percentile{percent=99.99},weights-mse".

    Raises:
        SpecError: An unknown method or option.
    """
    return parse(text, METHODS, "method")


def methods_of(quality: str, bits: int) -> str:
    """The methods of a --quality, for the fewest bits that weights or activations have.

    Raises:
        SpecError: There is no such quality.
    """
    if quality not in QUALITIES:
        raise unknown("quality", quality, QUALITIES)
    return BEST_AT_LOW_BITS if quality == "best" and bits <= LOW_BITS else QUALITIES[quality]


def with_budgets(text: str, **budgets: float | None) -> str:
    """The text with budgets for `ofm-similarity`, in front of what rounds weights if it lacks it.

    Args:
        text: Methods.
        **budgets: Fields of `OfmSimilarity`; those that are None change nothing.

    Raises:
        SpecError: An unknown method or option, or a budget out of range.
    """
    given: dict[str, Any] = {name: most for name, most in budgets.items() if most is not None}
    if not given:
        return text
    wanted = list(parse_methods(text))
    if not any(isinstance(method, OfmSimilarity) for method in wanted):
        places = [i for i, method in enumerate(wanted) if isinstance(method, ROUNDING)]
        wanted.insert(min(places, default=len(wanted)), OfmSimilarity(**given))
    return ",".join(
        to_text(replace(method, **given) if isinstance(method, OfmSimilarity) else method)
        for method in wanted
    )


def with_iterations(text: str, iterations: int | None) -> str:
    """The text with so many iterations for each method that learns by gradients.

    Raises:
        SpecError: An unknown method or option, none that learns, or a number out of range.
    """
    if iterations is None:
        return text
    wanted = parse_methods(text)
    if not any(isinstance(method, ByGradients) for method in wanted):
        raise SpecError("--iterations needs a method that learns by gradients, as --quality best")
    return ",".join(
        to_text(m.lasting(iterations) if isinstance(m, ByGradients) else m) for m in wanted
    )


def run_model(text: str) -> bool:
    """Whether a method of a text runs the model, and so needs data that can be read again.

    Raises:
        SpecError: An unknown method or option.
    """
    return any(getattr(method, "runs_model", False) for method in parse_methods(text))


def apply(recipe: Recipe, methods: str, ctx: Context) -> Recipe:
    """Run the methods of a text one after the other; each leaves a Step in the recipe.

    Each sees the model and its statistics with channels moved as the methods before it said. A
    method that has numbers to report leaves a Step with them, of which the rest is filled in here:
    also how near the outputs then are to float, where samples are held out. Where learning behind
    `gptq` brings nothing there, `gptq` is applied once more, as if it were the last.

    Raises:
        SpecError: An unknown method or option.
        CalibrationError: A range cannot be fitted to what was measured.
    """
    wanted = parse_methods(methods)
    gains = Gains(recipe, ctx)
    spared: tuple[Method, Recipe] | None = None
    for position, method in enumerate(wanted, 1):
        ctx = replace(ctx.following(recipe), later=wanted[position:])
        if _is_base_of(method, ctx.later):
            spared = method, recipe
        recipe = _resumed(method, recipe, ctx, gains)
    if spared is None or _learning_helped(recipe, len(spared[1].steps)):
        return recipe
    method, start = spared
    ctx.remark(
        f"what is learned behind {method.name} brings less than {HELPS_DB} dB on the samples held "
        f"out: {method.name} is made anew with them, and learning undone"
    )
    ctx = replace(ctx.following(start), later=())
    return _resumed(method, replace(start, steps=recipe.steps), ctx, gains)


def _is_base_of(method: Method, later: tuple[Method, ...]) -> bool:
    """Whether this is `gptq`, and all that follows it learns by gradients."""
    return (
        isinstance(method, Gptq) and all(isinstance(m, ByGradients) for m in later) and later != ()
    )


def _learning_helped(recipe: Recipe, base: int) -> bool:
    """Whether the methods behind the step with this number brought clearly more than luck does.

    Where they did not, the base is better made anew, from the held-out samples too, which it left
    to them to be judged on.
    """
    before, after = (
        step.numbers.get(HELD_OUT_DB) for step in (recipe.steps[base], recipe.steps[-1])
    )
    return before is None or after is None or after - before >= HELPS_DB


def _resumed(method: Method, recipe: Recipe, ctx: Context, gains: Gains) -> Recipe:
    """The recipe with one method's decisions, as an interrupted run has left it or made now."""
    key = ctx.key(recipe, to_text(method)) if getattr(method, "runs_model", False) else None
    kept = None if key is None else ctx.kept.load(key)
    if kept is not None:
        recipe = Recipe.from_json(kept)
        gains.resume(recipe)
        return recipe
    recipe = _applied(method, recipe, ctx, gains)
    if key is not None and not ctx.memo:
        ctx.kept.save(key, recipe.to_json())
    return recipe


def _applied(method: Method, recipe: Recipe, ctx: Context, gains: Gains) -> Recipe:
    """The recipe with one method's decisions and its Step."""
    begun = time.perf_counter()
    decided = method.apply(recipe, ctx)
    changed = sum(not alike(decided.tensors[name], recipe.tensors[name]) for name in recipe.tensors)
    numbers = {"tensors": float(changed)}
    for step in decided.steps[len(recipe.steps) :]:
        numbers |= step.numbers
    seconds = time.perf_counter() - begun
    numbers |= gains.after(decided, ctx)
    step = Step(to_text(method), ctx.seed, seconds, numbers)
    return replace(decided, steps=(*recipe.steps, step))


def apply_defaults(recipe: Recipe, ctx: Context) -> Recipe:
    """Let the default methods decide what is still undecided, and nothing else.

    Raises:
        CalibrationError: A range cannot be fitted to what was measured.
    """
    open_ = set(recipe.undecided())
    if not open_:
        return recipe
    decided = apply(recipe, DEFAULT_METHODS, ctx)
    tensors = {
        name: decided.tensors[name] if name in open_ else tensor
        for name, tensor in recipe.tensors.items()
    }
    return replace(decided, tensors=tensors, codes=recipe.codes, widths=recipe.widths)
