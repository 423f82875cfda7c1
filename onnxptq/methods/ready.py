"""A recipe that can be run: every range chosen, and what follows from the ranges settled."""

from dataclasses import replace

from onnxptq.methods.method import Context, Method
from onnxptq.methods.mse import Mse
from onnxptq.methods.weights import WeightsMse
from onnxptq.recipe import Recipe
from onnxptq.rewrite.ceilings import fit_ceilings
from onnxptq.rewrite.gates import fit_gates
from onnxptq.rewrite.weights import fit_scales

DEFAULTS: tuple[Method, Method] = (Mse(), WeightsMse())
"""What chooses the ranges of activations and of weights, unless told otherwise."""


def ready(recipe: Recipe, ctx: Context, by: tuple[Method, Method] = DEFAULTS) -> Recipe:
    """The recipe with ranges for what is undecided, and scales that fit.

    Args:
        recipe: Some decisions.
        ctx: The context that follows the recipe's channels.
        by: What chooses the ranges of activations and of weights.

    Raises:
        CalibrationError: A range cannot be fitted to what was measured.
    """
    open_ = set(recipe.undecided())
    if open_:
        part = {name: tensor for name, tensor in recipe.tensors.items() if name in open_}
        decided = replace(recipe, tensors=part)
        for method in by:
            decided = method.apply(decided, ctx)
        tensors = {name: decided.tensors.get(name, t) for name, t in recipe.tensors.items()}
        recipe = replace(recipe, tensors=tensors)
    for fit in (fit_ceilings, fit_gates, fit_scales):
        recipe = fit(ctx.model, recipe)
    return recipe
