"""Weight and bias codes, and weight scales that leave room for the bias in int32."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.errors import ProgramError
from onnxptq.graph.text import where
from onnxptq.ops.nodes import constant
from onnxptq.quant import F32, SMALLEST_SCALE, QParams
from onnxptq.recipe import IntArray, Recipe
from onnxptq.rewrite.place import regions_of
from onnxptq.rewrite.regions import activation_inputs, bias_of, record, weight_of

INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class BiasCodes:
    """A bias as the integer kernels add it: int32 at exactly float32(s_x * s_w), zero point 0."""

    scale: F32
    codes: npt.NDArray[np.int32]
    axis: int | None


def weight_codes(
    array: npt.NDArray[np.floating], params: QParams, stored: IntArray | None
) -> npt.NDArray[np.int8]:
    """The codes a method stored, else the weight rounded to nearest; shape of the weight."""
    codes = params.quantize(array) if stored is None else stored.reshape(array.shape)
    return codes.astype(np.int8)


def bias_codes(bias: F32, x: QParams, weight: QParams, layer: ir.Node) -> BiasCodes:
    """Round a bias to int32 codes.

    Args:
        bias: Real values, [C] or [1, C].
        x: Parameters of the layer's input.
        weight: Parameters of its weight.
        layer: For the error message.

    Raises:
        ProgramError: A code leaves int32; `fit_scales` prevents that.
    """
    scale = np.asarray(x.scale * weight.scale, np.float32)
    steps = np.rint(bias.reshape(-1).astype(np.float64) / scale)
    worst = float(np.abs(steps).max(initial=0))
    if not worst <= INT32_MAX:
        raise ProgramError(
            f"{where(layer)}: its bias needs the code {worst:.3g} > 2^31-1 at scale "
            f"{float(scale.min()):.3g}; raise the scale of its weight or keep it in float"
        )
    return BiasCodes(scale, steps.astype(np.int32), None if scale.ndim == 0 else 0)


def fit_scales(model: ir.Model, recipe: Recipe) -> Recipe:
    """Raise weight scales until bias and accumulator fit into int32 together.

    A channel whose weights are all zero has no scale of its own: it gets the smallest one that
    holds its bias. Raising a scale costs that channel resolution only where its weights are tiny
    beside its bias.

    Args:
        model: The prepared float model.
        recipe: Decisions with all ranges chosen.

    Returns:
        The recipe with the scales of the affected channels raised, the rest untouched.
    """
    regions = regions_of(model, recipe)
    changed: dict[str, QParams] = {}
    for node in model.graph:
        weight = weight_of(node) if regions.holds(node) else None
        if weight is None:
            continue
        name = str(weight.name)
        params = changed.get(name, recipe.tensors[name].params)
        source = next(iter(activation_inputs(node)))
        fitted = _fit(node, params, recipe.tensors[str(source.name)].params, recipe)
        if fitted is not params:
            changed[name] = fitted
    tensors, codes = dict(recipe.tensors), dict(recipe.codes)
    for name, params in changed.items():
        before = tensors[name].params
        tensors[name] = replace(tensors[name], params=params)
        if name in codes:
            # Fewer of the longer steps make the same weight.
            codes[name] = params.quantize(before.dequantize(codes[name]))
    return replace(recipe, tensors=tensors, codes=codes)


def _fit(node: ir.Node, params: QParams, x: QParams, recipe: Recipe) -> QParams:
    weight, bias = weight_of(node), bias_of(node)
    assert weight is not None
    array, real_bias = constant(weight), None if bias is None else constant(bias)
    assert array is not None
    if bias is not None:
        real_bias = recipe.biases.get(str(bias.name), real_bias)
    channels = params.scale.size
    dead = _per_channel(np.abs(array), params, channels).max(axis=1, initial=0) == 0
    needed = np.zeros(channels)
    if real_bias is not None:
        codes = weight_codes(array, params, recipe.codes.get(str(weight.name)))
        sizes = np.abs(codes.astype(np.int64) - params.along(params.zero_point, codes.ndim))
        sums = _per_channel(sizes, params, channels).sum(axis=1)
        if params.spec.axis is None:
            op = record(node)
            assert op is not None
            axis = op.rule.weight_axis(node) if op.rule.weight_axis else 0
            whole = np.moveaxis(sizes, axis or 0, 0)
            sums = whole.reshape(whole.shape[0], -1).sum(axis=1).max(keepdims=True)
        room = INT32_MAX - sums * _reach(x)
        worst = np.abs(real_bias.reshape(-1).astype(np.float64))
        worst = worst.max(keepdims=True) if params.spec.axis is None else worst
        # A hair more than needed: the float32 product of the scales may round down.
        needed = worst / (np.maximum(room, 1) * float(x.scale)) * (1 + 2.0**-20)
    scale = params.scale.reshape(-1)
    smallest = np.maximum(needed, float(SMALLEST_SCALE))
    fitted = np.where(dead & (needed > 0), smallest, np.maximum(scale, needed)).astype(np.float32)
    if (fitted == scale).all():
        return params
    return params.with_scale(fitted.reshape(params.scale.shape))


def _per_channel(
    array: npt.NDArray[np.generic], params: QParams, channels: int
) -> npt.NDArray[np.generic]:
    axis = params.spec.axis
    moved = array if axis is None else np.moveaxis(array, axis, 0)
    return moved.reshape(channels, -1)


def _reach(x: QParams) -> int:
    """The largest |code - zero point| of an input."""
    zero = int(x.zero_point)
    return max(abs(int(x.code_lo) - zero), abs(int(x.code_hi) - zero))
