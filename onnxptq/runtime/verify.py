"""Verify: the executor against onnxruntime, tensor by tensor and bit by bit, and the certificate.

Three readings of onnxruntime are compared with: the outputs of the untouched file, as a user's
session gives them; every tensor of codes of the graph that such a session runs; and each node of
that graph by itself, on codes drawn from all that can occur.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq import ort
from onnxptq.calibrate.progress import Progress, Silent
from onnxptq.errors import CalibrationError
from onnxptq.program import IntegerProgram
from onnxptq.runtime.certify import Certificate, certify
from onnxptq.runtime.execute import Executor
from onnxptq.runtime.generated import generated_feeds
from onnxptq.runtime.lower import lower
from onnxptq.runtime.pieces import Pieces, compared_names
from onnxptq.runtime.shares import IslandShare, island_shares

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]

SHOWN = 4
"""Values of the first difference that are shown."""
SEED = 0
"""Of made-up inputs."""
THREADS = (1, 2)
"""onnxruntime is asked with each of these."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The first tensor that differs, in the order in which things are computed.

    Attributes:
        node: The node that makes it.
        tensor: Its name in the graph that onnxruntime runs, or of the output.
        count: How many of its elements differ.
        indices: Places of the first few.
        expected: What onnxruntime has there.
        found: What the executor has there.
    """

    node: str
    tensor: str
    count: int
    indices: tuple[tuple[int, ...], ...]
    expected: tuple[float, ...]
    found: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Verification:
    """The answer of `verify`.

    Attributes:
        bit_exact: No element differs.
        elements: How many elements were compared, of all tensors and outputs.
        tensors: How many tensors inside of the network they come from.
        mismatches: How many differ.
        first_difference: The first tensor that does.
        certificate: What was proved.
        islands: What runs in float between codes.
        not_compared: Tensors of codes of the program that onnxruntime's graph does not have.
    """

    bit_exact: bool
    elements: int
    tensors: int
    mismatches: int
    first_difference: Difference | None
    certificate: Certificate
    islands: tuple[IslandShare, ...]
    not_compared: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether everything is equal and proved."""
        return self.bit_exact and self.certificate.holds


def verify(
    source: Path | ir.Model,
    batches: Iterable[Feeds] | None = None,
    *,
    samples: int = 2,
    program: IntegerProgram | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Run a quantized model in onnxruntime and in the executor, and compare.

    Args:
        source: A quantized model, ours or made by others.
        batches: What to feed; None for made-up inputs that reach both ends of every input's codes.
        samples: How many sets of made-up inputs, and how many batches progress is shown for.
        program: Its program, if it was lowered before; it is compared with `source` all the same.
        progress: Told of each batch.

    Raises:
        ModelError: The file cannot be read or onnxruntime refuses it.
        ProgramError: Its integer arithmetic could overflow, or shapes do not fit.
        CalibrationError: The batches hold nothing.
    """
    program = lower(source) if program is None else program
    if batches is None:
        batches = generated_feeds(program, samples, np.random.default_rng(SEED))
    oracle, executor, tally = _Oracle(source, program), Executor(program), _Tally(program)
    progress = Silent() if progress is None else progress
    arrays: dict[str, Array] = {}
    fed: Feeds = {}
    progress.start("verifying", samples)
    try:
        for feeds in batches:
            fed = feeds
            arrays = executor.trace(feeds)
            outputs = executor.run(None, feeds)
            tally.codes(oracle.codes(feeds), arrays)
            for expected in oracle.outputs(feeds):
                tally.outputs(expected, outputs)
            progress.advance()
    finally:
        progress.finish()
    if not arrays:
        raise CalibrationError("the data hold no sample to verify with")
    rng = np.random.default_rng(SEED)
    for expected, found in Pieces(oracle.graph, program).compared(fed, arrays, rng):
        tally.codes(expected, found)
    known = {
        i: arrays[value.name] for i, value in enumerate(program.values) if value.name in arrays
    }
    shapes = {number: array.shape for number, array in known.items()}
    return tally.answer(
        certify(program, shapes), island_shares(program, known), oracle.not_compared
    )


class _Oracle:
    """onnxruntime, as a user runs it, and looked into."""

    def __init__(self, source: Path | ir.Model, program: IntegerProgram) -> None:
        self._plain = [ort.session(source, threads=threads) for threads in THREADS]
        self.graph = ort.running_graph(source)
        present = {value.name for node in self.graph.graph for value in node.outputs}
        codes = {value.name for value in program.values if value.is_codes}
        names = compared_names(program)
        self.not_compared = tuple(n for n in names if n in codes and n not in present)
        self._names = [name for name in names if name in present]
        tapped = ort.with_outputs(self.graph, self._names)
        self._looked_into = ort.session(tapped, threads=1, optimize=False)

    def outputs(self, feeds: Feeds) -> Iterator[Mapping[str, Array]]:
        """What sessions of the untouched file give, with each number of threads."""
        for session in self._plain:
            yield session.run(feeds)

    def codes(self, feeds: Feeds) -> Mapping[str, Array]:
        """What integer instructions make, in the order in which they make it."""
        return self._looked_into.run(feeds, self._names)


class _Tally:
    """Counts, and the first difference."""

    def __init__(self, program: IntegerProgram) -> None:
        self._ports = [port.name for port in program.outputs]
        self._nodes = {
            program.values[number].name: instr.node
            for instr in program.instrs
            for number in instr.outputs
        }
        self._order = {name: place for place, name in enumerate(self._nodes)}
        self._elements = self._mismatches = 0
        self._tensors: set[str] = set()
        self._first: Difference | None = None

    def codes(self, expected: Mapping[str, Array], found: Mapping[str, Array]) -> None:
        for name, array in expected.items():
            self._tensors.add(name)
            self._compare(name, array, found[name])

    def outputs(self, expected: Mapping[str, Array], found: Sequence[Array]) -> None:
        for name, array in zip(self._ports, found, strict=True):
            self._compare(name, expected[name], array)

    def _compare(self, name: str, expected: Array, found: Array) -> None:
        self._elements += expected.size
        if expected.shape != found.shape or expected.dtype != found.dtype:
            places = np.ones(expected.shape, np.bool_)
            found = np.resize(found, expected.shape)
        else:
            places = _bits(expected) != _bits(found)
        count = int(places.sum())
        if not count:
            return
        self._mismatches += count
        if self._first is None or self._place(name) < self._place(self._first.tensor):
            indices = np.argwhere(places)[:SHOWN]
            self._first = Difference(
                self._nodes.get(name, ""),
                name,
                count,
                tuple(tuple(int(i) for i in index) for index in indices),
                tuple(float(expected[tuple(index)]) for index in indices),
                tuple(float(found[tuple(index)]) for index in indices),
            )

    def _place(self, name: str) -> int:
        return self._order.get(name, len(self._order))

    def answer(
        self, certificate: Certificate, islands: tuple[IslandShare, ...], missing: tuple[str, ...]
    ) -> Verification:
        return Verification(
            self._mismatches == 0,
            self._elements,
            len(self._tensors),
            self._mismatches,
            self._first,
            certificate,
            islands,
            missing,
        )


def _bits(array: Array) -> Array:
    """Numbers as integers of the same bits, so that -0 is not 0 and NaN is itself."""
    if array.dtype.kind not in "f":
        return array
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
