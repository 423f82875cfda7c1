"""What equalization computes: a factor and a shift for each channel between two layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from onnxptq.calibrate.stats import ChannelStats
from onnxptq.ops.nodes import int_attribute
from onnxptq.passes import Norm
from onnxptq.passes.affine import Linear, linear
from onnxptq.passes.edit import F64, is_op
from onnxptq.quant import F32
from onnxptq.recipe import Recipe
from onnxptq.rewrite.channels import shift_obstacle
from onnxptq.rewrite.regions import weight_of
from onnxptq.rewrite.segments import Reader, Segment

STANDS_STILL = 1e-3
"""Relative change of a factor below which rounding feels no more of it."""

DEVIATIONS = 3.0
"""Nagel et al. 2019, section 4.1.3: what is absorbed lies so many deviations below the mean."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long factors are sought, and how far they may go.

    Attributes:
        iterations: Rounds over all segments.
        lowest: Smallest factor, as a share of the segment's middle one.
        highest: Largest one.
    """

    iterations: int
    lowest: float
    highest: float


@dataclass(frozen=True, slots=True, eq=False)
class Costs:
    """What a large number in a channel of a segment costs those who store it.

    Attributes:
        segment: The segment.
        reach: Largest |value| of each channel that is stored, [C]; None where the maker's rows,
            which have one scale in all, are to be balanced instead.
        columns: Whether a large column costs the readers anything: not a depthwise one with a
            scale for each channel.
    """

    segment: Segment
    reach: F64 | None
    columns: bool


def factors(costs: Sequence[Costs], limits: Limits) -> dict[str, F64]:
    """The factors by which to divide each segment's channels, [C] each, by its name.

    A factor is the root of what the channel costs in front, over what it costs behind: the range
    of the maker's rows (or of the stored values) and that of the readers' columns. A layer between
    two segments has a part in both, so this is repeated until nothing moves. Channels without any
    weight on one side keep the factor 1. Factors are relative to the middle one of the segment:
    what all channels share changes nothing.

    Source:
        Nagel et al. 2019 (arXiv:1906.04721), section 4.1, equation 11.
    """
    layers = _layers([cost.segment for cost in costs])
    found = {cost.segment.name: np.ones(cost.segment.channels) for cost in costs}
    for _ in range(limits.iterations):
        moved = 0.0
        for cost in costs:
            name = cost.segment.name
            total = _factor(cost, found[name], layers, limits)
            change = total / found[name]
            found[name] = total
            _scale(cost.segment, change, layers)
            moved = max(moved, float(np.abs(np.log(change)).max(initial=0.0)))
        if moved < STANDS_STILL:
            break
    return found


def absorbed(segment: Segment, seen: ChannelStats, norm: Norm | None) -> F64 | None:
    """How much to take off each channel of the unscaled segment, [C]; None where nothing can be.

    Behind a Relu it is what lies three deviations below the mean, if nothing that was seen came
    that low, so that the Relu still changes nothing. With nothing between the layers that bends,
    it is the middle of what was seen.

    Args:
        segment: The segment.
        seen: Of the maker's output, before any Relu.
        norm: Of the BatchNorm that the maker was; its beta and gamma come before what was seen.

    Source:
        Nagel et al. 2019 (arXiv:1906.04721), section 4.1.3, equation 15.
    """
    if shift_obstacle(segment) is not None:
        return None
    if not segment.rectified:
        return (seen.min + seen.max) / 2
    mean, deviation = seen.mean, np.sqrt(seen.variance)
    if norm is not None:
        mean, deviation = norm.beta.astype(np.float64), np.abs(norm.gamma).astype(np.float64)
    floor = np.maximum(mean - DEVIATIONS * deviation, 0.0)
    return np.where(floor < seen.min, floor, 0.0)


def has_own_scales(recipe: Recipe, layer: ir.Node) -> bool:
    """Whether the channels of a layer's weight do not feel each other's range."""
    weight = weight_of(layer)
    tensor = None if weight is None else recipe.tensors.get(str(weight.name))
    return tensor is None or tensor.params.spec.axis is not None


def feels_columns(recipe: Recipe, reader: Reader) -> bool:
    """Whether a reader's codes suffer from an input channel with large weights."""
    weight = weight_of(reader.layer)
    stored = weight is not None and weight.name in recipe.tensors
    return stored and not (is_depthwise(reader.layer) and has_own_scales(recipe, reader.layer))


def is_depthwise(layer: ir.Node) -> bool:
    """Whether a layer has one input channel for each output channel."""
    found = linear(layer) if is_op(layer, "Conv") else None
    groups = int_attribute(layer, "group", 1)
    return found is not None and groups == found.inputs == found.channels


def chains(segments: Sequence[Segment]) -> list[tuple[str, ...]]:
    """Names of segments that belong together: those that depthwise layers link, in order."""
    groups: dict[str, list[str]] = {}
    for segment in segments:
        before = next(
            (
                other.name
                for other in segments
                if any(r.layer is segment.maker and is_depthwise(r.layer) for r in other.readers)
            ),
            None,
        )
        home = next((key for key, names in groups.items() if before in names), segment.name)
        groups.setdefault(home, []).append(segment.name)
    return [tuple(names) for names in groups.values()]


def merged(recipe: Recipe, segment: Segment, scale: F64, shift: F64) -> Recipe:
    """The recipe in which a segment is scaled and shifted, after what it says of it already."""
    scales, shifts = dict(recipe.channel_scales), dict(recipe.channel_shifts)
    for value in segment.values:
        name = str(value.name)
        before = scales.pop(name, None)
        moved = shifts.pop(name, None)
        shift = shift if moved is None else moved.astype(np.float64) / scale + shift
        scale = scale if before is None else scale * before.astype(np.float64)
    scales[segment.name] = _float32(scale)
    if shift.any():
        shifts[segment.name] = _float32(shift)
    return replace(recipe, channel_scales=scales, channel_shifts=shifts)


def _float32(numbers: F64) -> F32:
    return np.asarray(numbers, np.float32)


def _layers(segments: Sequence[Segment]) -> dict[str, Linear]:
    """The layers around segments by name, with their weights."""
    nodes = [s.maker for s in segments] + [r.layer for s in segments for r in s.readers]
    found = {str(node.name): linear(node) for node in nodes}
    return {name: layer for name, layer in found.items() if layer is not None}


def _factor(cost: Costs, total: F64, layers: Mapping[str, Linear], limits: Limits) -> F64:
    """The factor of each channel after one more round, [C]; 1 where one side is all zero."""
    segment = cost.segment
    rows = layers[str(segment.maker.name)].output_ranges()
    front = rows if cost.reach is None else cost.reach / total
    back = np.zeros(segment.channels)
    for reader in segment.readers:
        columns = layers[str(reader.layer.name)].input_ranges()
        back = np.maximum(back, columns.reshape(segment.channels, reader.repeat).max(axis=1))
    alive = (front > 0) & (back > 0)
    if not alive.any():
        return total
    wanted = np.log(front[alive])
    if cost.columns:
        wanted = (wanted - np.log(back[alive])) / 2
    wanted += np.log(total[alive])
    moved = np.ones(segment.channels)
    moved[alive] = np.clip(np.exp(wanted - wanted.mean()), limits.lowest, limits.highest)
    return moved


def _scale(segment: Segment, factor: F64, layers: dict[str, Linear]) -> None:
    """Work a factor into the layers' weights."""
    maker = layers[str(segment.maker.name)]
    layers[str(segment.maker.name)] = replace(maker, weight=maker.scale_outputs(1 / factor))
    for reader in segment.readers:
        layer = layers[str(reader.layer.name)]
        weight = layer.scale_inputs(np.repeat(factor, reader.repeat))
        layers[str(reader.layer.name)] = replace(layer, weight=weight)
