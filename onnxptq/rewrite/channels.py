"""Channel scales and shifts of a recipe, worked into weights and biases: nothing at run time."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NoReturn

import numpy as np
import onnx_ir as ir

from onnxptq.errors import SpecError
from onnxptq.graph.text import where
from onnxptq.ops.nodes import int_attribute, ints_attribute, string_attribute
from onnxptq.passes.affine import Linear, linear
from onnxptq.passes.edit import F64
from onnxptq.quant import F32
from onnxptq.recipe import Recipe
from onnxptq.rewrite.segments import RECTIFIERS, Segment, segment_of


def with_channels(model: ir.Model, recipe: Recipe) -> ir.Model:
    """The model in which each value v named in the recipe is v / scale + shift, channel by channel.

    The layer that makes the value has rows and bias divided and the shift added to its bias; in
    the layers that read it, the columns are multiplied and W (scale * shift) taken off the bias.
    Between them may stand what passes factors on: Relu and the like, pools, data movers. So the
    outputs of the model stay what they were, up to float32 rounding.

    A negative shift behind a Relu (bias absorption) is exact only for values that reached
    -shift before it. That cannot be seen here: whoever writes it has measured it.

    Args:
        model: The prepared float model.
        recipe: Decisions made for it; only its channel scales and shifts matter here.

    Returns:
        A copy with other initializers; the same model if the recipe moves no channels.

    Raises:
        SpecError: An entry does not fit, or cannot be exact; names the value and says why.

    Source:
        Nagel et al. 2019 (arXiv:1906.04721), sections 4.1 and 4.1.3.
    """
    names = sorted({*recipe.channel_scales, *recipe.channel_shifts})
    if not names:
        return model
    moved = model.clone()
    values = {value.name: value for node in moved.graph for value in node.outputs}
    layers: dict[str, Linear] = {}
    named: dict[str, str] = {}
    for name in names:
        if name not in values:
            raise SpecError(f"value {name!r}: the model has none of that name to scale")
        segment = segment_of(values[name])
        other = named.setdefault(str(segment.maker.name), name)
        if other != name:
            raise SpecError(
                f"value {name!r}: its channels are scaled by the entry {other!r} already"
            )
        _move(segment, layers, *_numbers(name, segment, recipe))
    for node in moved.graph:
        found = layers.get(str(node.name))
        if found is not None:
            _layer(node).update(found.weight, found.bias)
    return moved


def same_channels(first: Recipe, second: Recipe) -> bool:
    """Whether two recipes move the same channels by the same numbers."""
    return not _differing(first, second)


def moved_values(model: ir.Model, before: Recipe, after: Recipe) -> list[str]:
    """Names of all values that hold something else after a change of channels.

    Args:
        model: The prepared float model, no channels moved.
        before: The one recipe.
        after: The other one.
    """
    values = {value.name: value for node in model.graph for value in node.outputs}
    changed: dict[str, None] = {}
    for name in _differing(before, after):
        changed.update(dict.fromkeys(str(value.name) for value in segment_of(values[name]).values))
    return list(changed)


def _differing(first: Recipe, second: Recipe) -> list[str]:
    """The entries that are in one recipe only, or not the same in both."""
    names: set[str] = set()
    for one, other in (
        (first.channel_scales, second.channel_scales),
        (first.channel_shifts, second.channel_shifts),
    ):
        names |= {name for name in (*one, *other) if not np.array_equal(*_both(name, one, other))}
    return sorted(names)


def _both(name: str, one: Mapping[str, F32], other: Mapping[str, F32]) -> tuple[F32, F32]:
    """The numbers of an entry, of which there are none where it is absent."""
    none = np.zeros(0, np.float32)
    return one.get(name, none), other.get(name, none)


def shift_obstacle(segment: Segment) -> str | None:
    """Why no shift at all can be exact in a segment; None if those below 0 can."""
    for node in segment.passed:
        if node.op_type == "Pad" or (node.op_type == "AveragePool" and _pads(node)):
            return f"{where(node)} pads with zeros, which are not shifted"
    for node in (segment.maker, *(reader.layer for reader in segment.readers)):
        if node.op_type == "MatMul":
            return f"{where(node)} has no bias"
    for reader in segment.readers:
        if _layer(reader.layer).pads:
            return f"{where(reader.layer)} pads with zeros, which are not shifted"
    return None


def _numbers(name: str, segment: Segment, recipe: Recipe) -> tuple[F64, F64]:
    """Scale and shift of a segment, [C] each, checked."""

    def refuse(reason: str) -> NoReturn:
        raise SpecError(f"value {name!r}: {reason}")

    def vector(kind: str, given: F32 | None, default: float) -> F64:
        if given is None:
            return np.full(segment.channels, default)
        if given.shape != (segment.channels,) or not np.isfinite(given).all():
            refuse(
                f"channel {kind} are of shape {list(given.shape)}, "
                f"expected {segment.channels} finite numbers, one a channel"
            )
        return given.astype(np.float64)

    scale = vector("scales", recipe.channel_scales.get(name), 1.0)
    shift = vector("shifts", recipe.channel_shifts.get(name), 0.0)
    if (scale <= 0).any():
        refuse(f"channel scale {float(scale.min()):.4g} is not above 0")
    if not shift.any():
        return scale, shift
    obstacle = shift_obstacle(segment)
    if obstacle:
        refuse(f"its channels cannot be shifted: {obstacle}")
    rectifier = next((node for node in segment.passed if node.op_type in RECTIFIERS), None)
    if rectifier is not None and (shift > 0).any():
        refuse(
            f"its channels cannot be shifted up: {where(rectifier)} changes what is below 0 before "
            f"and above it afterwards"
        )
    return scale, shift


def _move(segment: Segment, layers: dict[str, Linear], scale: F64, shift: F64) -> None:
    """Note the new numbers of the layers around a segment in `layers`."""
    maker = _known(segment.maker, layers)
    layers[str(segment.maker.name)] = replace(
        maker, weight=maker.scale_outputs(1 / scale), bias=maker.bias / scale + shift
    )
    for reader in segment.readers:
        layer = _known(reader.layer, layers)
        factor = np.repeat(scale, reader.repeat)
        bias = layer.bias
        if shift.any():
            bias = bias - layer.response(factor * np.repeat(shift, reader.repeat))
        layers[str(reader.layer.name)] = replace(
            layer, weight=layer.scale_inputs(factor), bias=bias
        )


def _known(node: ir.Node, layers: dict[str, Linear]) -> Linear:
    found = layers.get(str(node.name))
    return _layer(node) if found is None else found


def _layer(node: ir.Node) -> Linear:
    found = linear(node)
    assert found is not None, "segments are made of layers"
    return found


def _pads(pool: ir.Node) -> bool:
    """Whether zeros outside of a pool's input may take part in its averages."""
    return (
        any(ints_attribute(pool, "pads", ()))
        or string_attribute(pool, "auto_pad", "NOTSET") not in ("NOTSET", "VALID")
        or int_attribute(pool, "ceil_mode", 0) == 1
    )
