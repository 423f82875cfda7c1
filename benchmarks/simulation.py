"""Quantization as papers simulate it: a float graph that rounds each channel on a grid of its own.

No runtime executes this in integers; it shows what per-channel activations would be worth.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.calibrate.source import Data
from onnxptq.calibrate.taps import FloatTaps
from onnxptq.methods import clip_constants
from onnxptq.methods.allocation import by_bins
from onnxptq.methods.clip_constants import Prior
from onnxptq.methods.weights import channel_rows, weight_array
from onnxptq.recipe import Recipe, Role
from onnxptq.rewrite.clamps import clamp_of
from onnxptq.rewrite.place import lay_out, regions_of
from onnxptq.rewrite.regions import record

Array = npt.NDArray[Any]
F64 = npt.NDArray[np.float64]

PER_PASS = 24
"""Values that are held in memory together."""
WIDTHS = (0, 8)
"""A channel of 0 bits is 0 (authors' code)."""
ALLOCATED_UP_TO = 4
"""Nominal bits to which widths are allocated (authors' code)."""


@dataclass(frozen=True, slots=True, eq=False)
class Spreads:
    """What was seen of each channel of a value, all [C]: extremes, and means over batches."""

    low: F64
    high: F64
    mean: F64
    deviation: F64
    sigma: F64

    @classmethod
    def of(cls, x: Array) -> "Spreads":
        rows = by_channel(x)
        mean = rows.mean(axis=1)
        deviation = np.abs(rows - mean[:, None]).mean(axis=1)
        return cls(rows.min(axis=1), rows.max(axis=1), mean, deviation, rows.std(axis=1, ddof=1))

    def unit(self, law: Prior) -> F64:
        """What the clip constants of a law are multiples of."""
        return self.deviation if law == "laplace" else self.sigma

    @classmethod
    def over(cls, batches: Iterable["Spreads"]) -> "Spreads":
        parts = list(batches)
        return cls(
            np.min([part.low for part in parts], axis=0),
            np.max([part.high for part in parts], axis=0),
            np.mean([part.mean for part in parts], axis=0),
            np.mean([part.deviation for part in parts], axis=0),
            np.mean([part.sigma for part in parts], axis=0),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Steps of channels, and their first and last code where real 0 has the code 0, all [C]."""

    scale: F64
    low: F64
    high: F64

    @classmethod
    def between(cls, lo: F64, hi: F64, widths: Array) -> "Grid":
        """2^width codes over [lo, hi], widened to contain 0."""
        lo, hi = np.minimum(lo, 0.0), np.maximum(hi, 0.0)
        last = 2.0**widths - 1.0
        scale = np.where((hi > lo) & (last > 0), (hi - lo) / np.maximum(last, 1.0), 1.0)
        zero = np.clip(np.rint(-lo / scale), 0.0, last)
        return cls(scale, -zero, last - zero)

    @classmethod
    def picked(cls, grids: Sequence["Grid"], places: Array) -> "Grid":
        """Of each channel the grid with the number that `places` has for it."""
        channels = np.arange(places.size)
        parts = [np.stack(part)[places, channels] for part in zip(*map(_parts, grids), strict=True)]
        return cls(parts[0], parts[1], parts[2])

    def rounded(self, rows: F64) -> F64:
        """Rows [C, K] on the grid."""
        codes = np.rint(rows / self.scale[:, None])
        return np.clip(codes, self.low[:, None], self.high[:, None]) * self.scale[:, None]


def _parts(grid: Grid) -> tuple[F64, F64, F64]:
    return grid.scale, grid.low, grid.high


def by_channel(x: Array) -> F64:
    """[N, C, ...] as [C, all else]."""
    return np.moveaxis(x, 1, 0).reshape(x.shape[1], -1).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Arm:
    """Which parts of the paper are on; none of them is its naive baseline.

    Attributes:
        aciq: Each channel of an activation is clipped where Laplace's law says, as in the paper.
        best: That, or where Gauss's law says, or nowhere, by the error of the calibration data.
    """

    aciq: bool = False
    best: bool = False
    allocate_activations: bool = False
    allocate_weights: bool = False
    correct_bias: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Measured:
    """A model's values: which are rounded, and what was seen of them.

    Attributes:
        after: Value name to what was seen of it.
        before: The same of the value in front of the Relu or Clip that it comes from.
    """

    after: Mapping[str, Spreads]
    before: Mapping[str, Spreads]


def measure(model: ir.Model, recipe: Recipe, data: Data) -> Measured:
    """What each channel of the recipe's activations holds on these data."""
    sources = _sources(model, recipe)
    taps = sorted({*sources, *(name for name in sources.values() if name)})
    seen: dict[str, list[Spreads]] = {name: [] for name in taps}
    for start in range(0, len(taps), PER_PASS):
        part = taps[start : start + PER_PASS]
        for values in FloatTaps(model, part).values(data):
            for name in part:
                seen[name].append(Spreads.of(values[name]))
    found = {name: Spreads.over(parts) for name, parts in seen.items()}
    before = {name: found[source] for name, source in sources.items() if source}
    return Measured({name: found[name] for name in sources}, before)


def _sources(model: ir.Model, recipe: Recipe) -> dict[str, str]:
    """Values that are rounded, to the value in front of their clamp at 0; "" without one.

    What only passes on numbers that are rounded already is not rounded again.
    """
    layout = lay_out(model, regions_of(model, recipe))
    found: dict[str, str] = {}
    for name, value in layout.values.items():
        tensor, producer = recipe.tensors.get(name), value.producer()
        op = None if producer is None else record(producer)
        clamp = layout.folded.get(name)
        moves = op is not None and op.rule.tied and layout.regions.holds(producer)
        if tensor is None or tensor.role is Role.CONSTANT or (moves and clamp is None):
            continue
        rectifies = clamp is not None and clamp_of(clamp).lo == 0.0
        found[name] = str(clamp.inputs[0].name) if rectifies else ""  # type: ignore[union-attr]
    return found


def activation_grids(
    model: ir.Model, recipe: Recipe, measured: Measured, data: Data, arm: Arm
) -> dict[str, Grid]:
    """The grid of each channel of all values that are rounded."""
    candidates = {
        name: _candidates(measured, name, recipe.tensors[name].params.spec.bits, arm)
        for name in measured.after
    }
    open_ = {name: grids for name, grids in candidates.items() if len(grids) > 1}
    return {name: grids[0] for name, grids in candidates.items()} | _nearest(model, data, open_)


def _candidates(measured: Measured, name: str, bits: int, arm: Arm) -> list[Grid]:
    """Grids that an arm may choose from for a value."""
    after, before = measured.after[name], measured.before.get(name)
    widths = np.full(after.low.shape, bits)
    if arm.allocate_activations and bits <= ALLOCATED_UP_TO:
        widths = by_bins(after.sigma, bits, WIDTHS)
    whole = Grid.between(after.low, after.high, widths)
    if not (arm.aciq or arm.best) or bits == 8:
        return [whole]
    laplace = _clipped(after, before, widths, "laplace")
    return [laplace, _clipped(after, before, widths, "gauss"), whole] if arm.best else [laplace]


def _clipped(after: Spreads, before: Spreads | None, widths: Array, law: Prior) -> Grid:
    """Grids that end where a law says, by the paper's constants."""
    one_sided = before is not None
    constant = np.array([clip_constants.published(law, int(bits) + one_sided) for bits in widths])
    if before is not None:
        hi = np.maximum(before.mean, 0.0) + constant * before.unit(law)
        return Grid.between(np.zeros_like(hi), np.minimum(hi, after.high), widths)
    half = constant * after.unit(law)
    lo = np.maximum(after.low, after.mean - half)
    return Grid.between(lo, np.minimum(lo + 2 * half, after.high), widths)


def _nearest(model: ir.Model, data: Data, candidates: Mapping[str, list[Grid]]) -> dict[str, Grid]:
    """Of the grids of each value, channel by channel, that of least squared error on the data."""
    names = sorted(candidates)
    errors = {
        name: np.zeros((len(candidates[name]), candidates[name][0].scale.size)) for name in names
    }
    for start in range(0, len(names), PER_PASS):
        part = names[start : start + PER_PASS]
        for values in FloatTaps(model, part).values(data):
            for name in part:
                rows = by_channel(values[name])
                for place, grid in enumerate(candidates[name]):
                    errors[name][place] += np.square(grid.rounded(rows) - rows).sum(axis=1)
    return {name: Grid.picked(candidates[name], errors[name].argmin(axis=0)) for name in names}


def rounded_weight(array: Array, axis: int | None, bits: int, arm: Arm) -> Array:
    """A weight as the paper rounds it: each channel between its extremes."""
    rows = channel_rows(array, axis).astype(np.float64)
    widths = np.full(rows.shape[0], bits)
    if arm.allocate_weights and bits <= ALLOCATED_UP_TO:
        widths = by_bins(rows.std(axis=1), bits, WIDTHS)
    found = Grid.between(rows.min(axis=1), rows.max(axis=1), widths).rounded(rows)
    if arm.correct_bias:
        # The paper's shift of the weights, off the grid; without its scaling, as in the README.
        found = found + (rows - found).mean(axis=1, keepdims=True)
    moved = np.moveaxis(array, axis or 0, 0)
    return np.moveaxis(found.reshape(moved.shape), 0, axis or 0).astype(np.float32)


def simulated(model: ir.Model, recipe: Recipe, grids: Mapping[str, Grid], arm: Arm) -> ir.Model:
    """The float model with rounded weights, and nodes that round each channel of activations."""
    written = model.clone()
    for tensor in recipe.weights():
        spec = tensor.params.spec
        array = weight_array(model, tensor.value)
        rounded = rounded_weight(array, spec.axis, spec.bits, arm)
        written.graph.initializers[tensor.value].const_value = ir.tensor(
            np.ascontiguousarray(rounded), name=tensor.value
        )
    values = {value.name: value for node in written.graph for value in node.outputs}
    values |= {value.name: value for value in written.graph.inputs}
    for name, grid in grids.items():
        _insert(written.graph, values[name], grid)
    return written


def _insert(graph: ir.Graph, value: ir.Value, grid: Grid) -> None:
    """Let the readers of a value read it rounded: Div, Round, Max, Min, Mul."""
    readers = list(value.uses())
    rank = len(value.shape) if value.shape is not None else 4

    def constant(what: str, numbers: F64) -> ir.Value:
        array = numbers.reshape(1, -1, *[1] * (rank - 2)).astype(np.float32)
        made = ir.val(f"{value.name}_{what}", const_value=ir.tensor(array))
        graph.register_initializer(made)
        return made

    scale = constant("step", grid.scale)
    steps = (
        ("Div", [scale]),
        ("Round", []),
        ("Max", [constant("low", grid.low)]),
        ("Min", [constant("high", grid.high)]),
        ("Mul", [scale]),
    )
    current, nodes = value, list[ir.Node]()
    for op_type, others in steps:
        output = ir.val(f"{value.name}_{op_type}", dtype=ir.DataType.FLOAT, shape=value.shape)
        name = f"{value.name}_simulated_{op_type}"
        nodes.append(ir.node(op_type, [current, *others], outputs=[output], name=name))
        current = output
    for use in readers:
        use.node.replace_input_with(use.idx, current)
    producer = value.producer()
    if producer is None:
        graph.insert_before(next(iter(graph)), nodes)
    else:
        graph.insert_after(producer, nodes)
