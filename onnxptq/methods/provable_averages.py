"""Scales of global average pools whose requantization is provably exact as fixed point."""

import math
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.formulas import global_average_scale
from onnxptq.quant import F32, QParams
from onnxptq.recipe import Recipe
from onnxptq.requant import provable
from onnxptq.rewrite.place import regions_of


def nudge_averages(model: ir.Model, recipe: Recipe, changes: npt.NDArray[np.float64]) -> Recipe:
    """Nudge the output scales of global average pools, and of what is tied to them.

    Such a pool has no weights whose scales could be nudged. How many pixels it sums must be known.

    Args:
        model: The prepared float model.
        recipe: Decisions with all ranges chosen.
        changes: Relative changes to try, the best first.
    """
    regions = regions_of(model, recipe)
    for node in model.graph:
        if node.op_type != "GlobalAveragePool" or not regions.holds(node):
            continue
        pixels = _pixels(node)
        read, made = (recipe.tensors.get(_name(value)) for value in (node.inputs[0], *node.outputs))
        if pixels is None or read is None or made is None:
            continue
        tried = (made.params.scale * (1 + changes)).astype(np.float32)
        holds = np.flatnonzero(_hold(tried, read.params, made.params, pixels))
        if holds.size and tried[holds[0]] != made.params.scale:
            recipe = _rescaled(recipe, made.tied_to or made.value, float(tried[holds[0]]))
    return recipe


def _name(value: ir.Value | None) -> str:
    return "" if value is None else str(value.name)


def _pixels(node: ir.Node) -> int | None:
    source = node.inputs[0]
    sides = None if source is None or source.shape is None else list(source.shape)[2:]
    if sides is None or not all(isinstance(side, int) for side in sides):
        return None
    return math.prod(int(str(side)) for side in sides)


def _hold(scale: F32, x: QParams, y: QParams, pixels: int) -> npt.NDArray[np.bool_]:
    spec, zero = x.spec, int(x.zero_point)
    ends = (pixels * (spec.container_min - zero), pixels * (spec.container_max - zero))
    low, high = (np.full(scale.size, end) for end in ends)
    found = global_average_scale(x.scale, scale, pixels)
    container = (y.spec.container_min, y.spec.container_max)
    return provable(found, int(y.zero_point), *container, low, high)


def _rescaled(recipe: Recipe, root: str, scale: float) -> Recipe:
    """Other steps for a value and all that share its parameters; who chose its range stays."""
    changed = {
        name: replace(tensor, params=tensor.params.with_scale(scale))
        for name, tensor in recipe.tensors.items()
        if root in (name, tensor.tied_to)
    }
    return replace(recipe, tensors={**recipe.tensors, **changed})
