"""Ranges that reach above a Clip: brought down to it, so that no window is needed behind Q."""

import math

import numpy as np
import onnx_ir as ir

from onnxptq.recipe import Recipe
from onnxptq.rewrite.clamps import clamp_of
from onnxptq.rewrite.place import Layout, lay_out, regions_of
from onnxptq.rewrite.regions import record


def fit_ceilings(model: ir.Model, recipe: Recipe) -> Recipe:
    """Let the highest code of what a ReLU6 gives mean 6 at most.

    A search may choose a little more, which wastes the codes above and costs a Clip
    (EfficientNet-Lite0: 3 of them, 0.8 % of its time in onnxruntime). Only values that start at 0
    are touched, alone or moved about.
    """
    layout = lay_out(model, regions_of(model, recipe))
    for name, clamp in layout.folded.items():
        params = recipe.tensors[name].params
        ceiling = clamp_of(clamp).hi
        starts_at_zero = int(params.zero_point) == int(params.code_lo)
        if math.isinf(ceiling) or not starts_at_zero or float(params.hi) <= ceiling:
            continue
        if _alone(name, recipe, layout):
            steps = int(params.code_hi) - int(params.zero_point)
            root = recipe.tensors[name].tied_to or name
            lower = params.with_scale(np.float32(ceiling / steps))
            recipe = recipe.with_params({root: lower}, recipe.tensors[root].set_by)
    return recipe


def _alone(name: str, recipe: Recipe, layout: Layout) -> bool:
    """Whether the values that share the range are this one, moved."""
    root = recipe.tensors[name].tied_to or name
    for other, tensor in recipe.tensors.items():
        if other == name or (tensor.tied_to or other) != root:
            continue
        producer = layout.values[other].producer()
        op = None if producer is None else record(producer)
        if op is None or not op.rule.tied or other in layout.folded:
            return False
    return True
