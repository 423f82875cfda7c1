"""Windows of codes for an activation, judged by what the layers that read it make of them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq.calibrate.ports import Array
from onnxptq.calibrate.stats import TensorStats
from onnxptq.methods.layerwise import free_bias
from onnxptq.methods.moments import column_parts, supports, to_rows
from onnxptq.methods.mse import Mse, ends_of, grid_error
from onnxptq.ops.nodes import constant
from onnxptq.quant import QParams
from onnxptq.rewrite.regions import activation_inputs, weight_of

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

POWERS = (1.6, 2.0, 2.4, 3.2, 4.0)
"""The best window of each: the lower the power, the more is clipped."""

NEAR = 6
"""Zero points on either side of the one that the activation has."""


def candidates(stats: TensorStats, params: QParams, count: int) -> list[QParams]:
    """The window that there is, and about `count` others worth a look.

    They are the best ones for each of `POWERS`, and for single zero points near the one there is.
    """
    spec, zero = params.spec, int(params.zero_point)
    first, last = ends_of(spec)
    found = [Mse(p).choose_at(stats, spec, (first, last)) for p in POWERS]
    search = Mse()
    near = [
        search.choose_at(stats, spec, (at, at))
        for at in range(max(first, zero - NEAR), min(last, zero + NEAR) + 1)
    ]
    near.sort(key=lambda grid: grid_error(stats, grid, search.p))
    distinct: dict[tuple[float, int], QParams] = {}
    for grid in (params, *found, *near):
        distinct.setdefault((float(grid.scale), int(grid.zero_point)), grid)
    return list(distinct.values())[: 1 + count]


@dataclass(frozen=True, slots=True, eq=False)
class Readers:
    """Who reads the codes of a value.

    Attributes:
        value: Name of the value.
        layers: Layers with a matrix of weights, by the name of their output.
        others: Whether anything else reads it, which then feels the error as it is.
    """

    value: str
    layers: Mapping[str, ir.Node]
    others: bool

    @classmethod
    def of(cls, value: ir.Value) -> "Readers":
        """Those of a value of the float model."""
        nodes = [use.node for use in value.uses()]
        layers = [n for n in nodes if supports(n) and next(activation_inputs(n)) is value]
        others = len(layers) < len(nodes) or not layers
        return cls(str(value.name), {str(n.outputs[0].name): n for n in layers}, others)

    @property
    def names(self) -> list[str]:
        """The values that must be known to judge a window."""
        return [self.value, *self.layers]


class Tally:
    """What each of some windows costs the readers of a value, summed up batch by batch."""

    def __init__(self, readers: Readers, grids: Sequence[QParams]) -> None:
        self.readers = readers
        self.grids = grids
        self._signal: dict[str, _Power] = {}
        self._noise: list[dict[str, _Power]] = [{} for _ in grids]

    def add(self, values: Mapping[str, Array]) -> None:
        """Count one batch of the values that `Readers.names` names."""
        x, layers = values[self.readers.value], self.readers.layers
        for name, layer in layers.items():
            _add(self._signal, name, _by_channel(layer, values[name]))
        if self.readers.others:
            _add(self._signal, "", _as_row(x))
        for grid, noise in zip(self.grids, self._noise, strict=True):
            error = x - grid.round_trip(x)
            for name, layer in layers.items():
                for rows in _responses(layer, error, values[name]):
                    _add(noise, name, rows)
            if self.readers.others:
                _add(noise, "", _as_row(error))

    def harm(self) -> F64:
        """Noise to signal that each grid leaves in the readers' outputs, summed over them, [grids].

        A mean that a channel of a layer is off by does not count where its bias can take it up.
        """
        return np.array([self._noise_to_signal(noise) for noise in self._noise], np.float64)

    def _noise_to_signal(self, noise: Mapping[str, "_Power"]) -> float:
        total = 0.0
        for name, power in noise.items():
            layer = self.readers.layers.get(name)
            movable = layer is not None and free_bias(layer) is not None
            signal = self._signal[name].total(without_mean=movable)
            total += power.total(without_mean=movable) / max(signal, 1e-300)
        return total


def tally(batches: Iterable[Mapping[str, Array]], tallies: Sequence[Tally]) -> None:
    """Let all see all batches."""
    for values in batches:
        for one in tallies:
            one.add(values)


@dataclass(slots=True)
class _Power:
    """Sums of rows over positions, [..., P] each."""

    count: int = 0
    sums: F64 | float = 0.0
    squares: F64 | float = 0.0

    def add(self, rows: F32) -> None:
        self.count += rows.shape[-1]
        self.sums = self.sums + rows.sum(axis=-1, dtype=np.float64)
        self.squares = self.squares + np.square(rows, dtype=np.float64).sum(axis=-1)

    def total(self, *, without_mean: bool) -> float:
        """Mean squares of all rows, summed."""
        mean = np.square(self.sums / self.count) if without_mean else 0.0
        return float(np.maximum(self.squares / self.count - mean, 0.0).sum())


def _add(powers: dict[str, _Power], name: str, rows: F32) -> None:
    powers.setdefault(name, _Power()).add(rows)


def _responses(layer: ir.Node, error: F32, wanted: F32) -> Iterator[F32]:
    """What a layer makes of an error in its input, bias aside, [G, R, P] part by part."""
    weight = weight_of(layer)
    array = None if weight is None else constant(weight)
    assert array is not None
    rows = to_rows(layer, array.astype(np.float32))
    for columns, _ in column_parts(layer, error, wanted):
        yield np.matmul(rows, columns)


def _by_channel(layer: ir.Node, wanted: F32) -> F32:
    """Outputs of a layer as [channels, positions]."""
    axis = 1 if layer.op_type == "Conv" else -1
    return np.moveaxis(wanted, axis, 0).reshape(wanted.shape[axis], -1)


def _as_row(x: Array) -> F32:
    return x.reshape(1, -1)
