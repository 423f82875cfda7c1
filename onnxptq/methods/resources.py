"""What each width of each weight takes: bits, bytes of the written file, milliseconds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from onnxptq.errors import ModelError, SpecError
from onnxptq.graph import io
from onnxptq.methods.knapsack import Limit, best_choice

F64 = npt.NDArray[np.float64]

TABLES = "onnxptq_unpack_"
"""Constants of the packed layout that all weights of a width share."""
ENDLESS = 1e18
LENGTH_BYTES = 8
"""By which the lengths that enclose all may grow: those of graph and metadata."""


@dataclass(frozen=True, slots=True, eq=False)
class Resource:
    """One budget.

    Attributes:
        flag: Of the command line.
        most: What the budget allows.
        base: What is taken whatever is chosen.
        costs: What each width of each weight takes, [weights, widths].
        shared: What each width needs beside, which all weights share: name to cost.
    """

    flag: str
    most: float
    base: float
    costs: F64
    shared: Sequence[Sequence[Mapping[str, float]]] = ()

    def total(self, chosen: Sequence[int]) -> float:
        """What a choice takes, one index of a width a weight."""
        parts = self.costs[np.arange(len(chosen)), list(chosen)].sum()
        return float(self.base + parts + sum(self._shared_by(chosen).values()))

    def _shared_by(self, chosen: Sequence[int]) -> dict[str, float]:
        found: dict[str, float] = {}
        for row, index in zip(self.shared, chosen, strict=False):
            found.update(row[index])
        return found

    def unions(self) -> list[dict[str, float]]:
        """Every set of shared parts that some choice needs, the cheapest first."""
        distinct = {tuple(sorted(entry.items())) for row in self.shared for entry in row}
        found = {
            tuple(sorted({item for entry in some for item in entry}))
            for size in range(len(distinct) + 1)
            for some in combinations(sorted(distinct), size)
        }
        return sorted(map(dict, found), key=lambda parts: (sum(parts.values()), sorted(parts)))

    def limit(self, parts: Mapping[str, float]) -> Limit:
        """The budget of the weights when these shared parts are in the file."""
        return Limit(self.costs, self.most - self.base - sum(parts.values()))

    def allowed(self, parts: Mapping[str, float]) -> npt.NDArray[np.bool_]:
        """Which widths need no other shared part, [weights, widths]."""
        if not self.shared:
            return np.ones(self.costs.shape, bool)
        return np.array([[set(entry) <= set(parts) for entry in row] for row in self.shared])


def choose(values: F64, resources: Sequence[Resource]) -> tuple[int, ...] | None:
    """The widths with the least sum of values within all budgets; None if there are none."""
    places = np.arange(len(values))
    return min(
        _choices(values, resources),
        key=lambda chosen: float(values[places, list(chosen)].sum()),
        default=None,
    )


def _choices(values: F64, resources: Sequence[Resource]) -> Iterator[tuple[int, ...]]:
    """The best one with each set of shared parts."""
    for every in _shared_parts(resources):
        allowed = np.logical_and.reduce(
            [one.allowed(parts) for one, parts in zip(resources, every, strict=True)]
        )
        if allowed.any(axis=1).all():
            limits = [one.limit(parts) for one, parts in zip(resources, every, strict=True)]
            chosen = best_choice(np.where(allowed, values, np.inf), limits)
            if chosen is not None:
                yield chosen


def _shared_parts(resources: Sequence[Resource]) -> Iterator[list[dict[str, float]]]:
    """The sets to try; at most one resource has shared parts."""
    sharing = [one for one in resources if one.shared]
    assert len(sharing) <= 1
    for parts in sharing[0].unions() if sharing else [{}]:
        yield [parts if one.shared else {} for one in resources]


def require_feasible(resources: Sequence[Resource]) -> None:
    """Refuse budgets that no choice meets, with the smallest that would do.

    Raises:
        SpecError: A budget is too small, alone or beside the others.
    """
    for one in resources:
        _require(one, [])
    for number, one in enumerate(resources[1:], 1):
        _require(one, resources[:number])


def _require(one: Resource, others: Sequence[Resource]) -> None:
    found = min(map(one.total, _choices(one.costs, [*others, replace(one, most=ENDLESS)])))
    if found > one.most * (1 + 1e-9):
        names = " and ".join(other.flag for other in others)
        beside = f" beside {names}" if names else ""
        raise SpecError(
            f"{one.flag} {one.most:.10g} is too small: the least possible{beside} is "
            f"{_rounded_up(one.flag, found)}"
        )


def _rounded_up(flag: str, number: float) -> str:
    """So that it can be given as it is said."""
    if flag == "--max-bytes":
        return str(int(np.ceil(number)))
    return f"{np.ceil(number * 1e4 - 1e-6) / 1e4:.4f}"


@dataclass(slots=True)
class FileSizes:
    """Bytes of one written model: all of it, and of each weight with what unpacks it."""

    total: int
    weights: dict[str, int] = field(default_factory=dict[str, int])
    tables: dict[str, dict[str, int]] = field(default_factory=dict[str, dict[str, int]])


def file_sizes(model: ir.Model, weights: Iterable[str]) -> FileSizes:
    """Measure a written model.

    Raises:
        ModelError: It is too large for one message, or a weight is not in it.
    """
    data = io.to_bytes(model)
    graph = onnx.ModelProto.FromString(data).graph
    producers = {name: node for node in graph.node for name in node.output}
    stored = {tensor.name: tensor.ByteSize() for tensor in graph.initializer}
    readers = {node.name: node for node in graph.node if node.op_type == "DequantizeLinear"}
    sizes = FileSizes(len(data))
    for weight in weights:
        node = readers.get(f"{weight}_DequantizeLinear")
        if node is None:
            raise ModelError(f"weight {weight!r} is not among the codes of the written model")
        sizes.weights[weight], sizes.tables[weight] = _owned(node, producers, stored)
    return sizes


def _owned(
    node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], stored: Mapping[str, int]
) -> tuple[int, dict[str, int]]:
    """Bytes of a node and all constants and nodes in front of it, and of the tables it shares."""
    size, tables = 0, dict[str, int]()
    pending, seen = [node], set[int]()
    while pending:
        one = pending.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        size += _field(one.ByteSize())
        for name in one.input:
            if name.startswith(TABLES):
                tables[name] = _field(stored[name])
            elif name in stored:
                size += _field(stored[name])
            elif name in producers:
                pending.append(producers[name])
    return size, tables


def _field(size: int) -> int:
    """Bytes of a message inside another: its tag, its length, itself."""
    length = max(1, -(-size.bit_length() // 7))
    return 1 + length + size


def byte_costs(
    written: Mapping[int, ir.Model], open_: Sequence[str], fixed: Iterable[str], most: float
) -> Resource:
    """The budget of bytes, from models in which all open weights have the same width.

    Args:
        written: Width to model.
        open_: Weights whose width is open.
        fixed: The other quantized weights.
        most: Bytes of the file.
    """
    names = [*open_, *fixed]
    sizes = [file_sizes(model, names) for model in written.values()]
    base, first = sizes[0].total + LENGTH_BYTES, sizes[0]
    always = {table for name in names[len(open_) :] for table in first.tables[name]}
    taken: dict[str, int] = {}
    for name in open_:
        taken.update(first.tables[name])
        base -= first.weights[name]
    base -= sum(size for table, size in taken.items() if table not in always)
    costs = [[float(one.weights[name]) for one in sizes] for name in open_]
    shared = [
        [{t: float(n) for t, n in one.tables[name].items() if t not in always} for one in sizes]
        for name in open_
    ]
    return Resource("--max-bytes", most, base, np.array(costs, np.float64), shared)
