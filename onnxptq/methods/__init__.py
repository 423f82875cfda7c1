"""METHODS: every way to decide about a recipe, and `apply`, which runs a list of them."""

import time
from dataclasses import replace
from typing import Any

from onnxptq.methods.aciq import Aciq
from onnxptq.methods.allocate_bits import AllocateBits
from onnxptq.methods.bias_correction import BiasCorrection
from onnxptq.methods.entropy import Entropy
from onnxptq.methods.equalize import Equalize
from onnxptq.methods.gptq import Gptq
from onnxptq.methods.method import Context, Method
from onnxptq.methods.minmax import MinMax
from onnxptq.methods.mse import Mse
from onnxptq.methods.percentile import Percentile
from onnxptq.methods.provable_scales import ProvableScales
from onnxptq.methods.weights import WeightsAsymmetric, WeightsMinMax, WeightsMse
from onnxptq.recipe import Recipe, Step
from onnxptq.spec import parse, to_text

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
        Gptq,
        BiasCorrection,
        ProvableScales,
    )
}

DEFAULT_METHODS = "mse,weights-mse"
"""Used for what the named methods leave undecided."""

QUALITIES = {"quick": DEFAULT_METHODS, "fast": f"{DEFAULT_METHODS},gptq"}
"""Methods of each --quality: statistics alone, or with the model run layer by layer."""

LAST_METHOD = ProvableScales.name
"""Run behind all else that chooses scales, whatever methods are named."""


def parse_methods(text: str) -> tuple[Method, ...]:
    """The methods of a text like "percentile{percent=99.99},weights-mse".

    Raises:
        SpecError: An unknown method or option.
    """
    return parse(text, METHODS, "method")


def run_model(text: str) -> bool:
    """Whether a method of a text runs the model, and so needs data that can be read again.

    Raises:
        SpecError: An unknown method or option.
    """
    return any(getattr(method, "runs_model", False) for method in parse_methods(text))


def apply(recipe: Recipe, methods: str, ctx: Context) -> Recipe:
    """Run the methods of a text one after the other; each leaves a Step in the recipe.

    Each sees the model and its statistics with channels moved as the methods before it said. A
    method that has numbers to report leaves a Step with them, of which the rest is filled in here.

    Raises:
        SpecError: An unknown method or option.
        CalibrationError: A range cannot be fitted to what was measured.
    """
    for method in parse_methods(methods):
        begun = time.perf_counter()
        ctx = ctx.following(recipe)
        decided = method.apply(recipe, ctx)
        changed = sum(decided.tensors[name] is not recipe.tensors[name] for name in recipe.tensors)
        numbers = {"tensors": float(changed)}
        for step in decided.steps[len(recipe.steps) :]:
            numbers |= step.numbers
        step = Step(to_text(method), ctx.seed, time.perf_counter() - begun, numbers)
        recipe = replace(decided, steps=(*recipe.steps, step))
    return recipe


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
