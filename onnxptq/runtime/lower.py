"""Quantized model -> IntegerProgram: the graph that onnxruntime runs, node by node.

onnxruntime itself writes the graph that it makes of the file, with its fusions, its rewrites of
int8 to uint8, and its constants folded. What is an integer kernel there becomes an integer
instruction here; what it leaves in float becomes an island that it runs itself.
"""

import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from onnxptq import ort
from onnxptq.errors import ProgramError
from onnxptq.graph import io
from onnxptq.ops import LOWERINGS
from onnxptq.ops.fused import Emitted, Fused, NotInteger
from onnxptq.ops.moves import MOVERS
from onnxptq.ops.nodes import constant, input_at, is_constant
from onnxptq.ops.pools import emit_table
from onnxptq.program import Instr, IntegerProgram, Port, Value
from onnxptq.runtime.byte_tables import find_chain, tabulate
from onnxptq.runtime.probe import check, formula_of
from onnxptq.runtime.schedule import Step, StepKind, schedule
from onnxptq.runtime.submodel import read_values

SHAPE_READERS = ("Shape", "Size")
"""Operators that read nothing of a tensor but its shape."""
INLINED = "_inlfunc_"
"""How the names of nodes begin that onnxruntime took out of a function of the file."""
RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial",
          "Bernoulli")  # fmt: skip
"""Operators that give something else each time."""


def lower(source: Path | ir.Model) -> IntegerProgram:
    """Make the integer program of a quantized model.

    Args:
        source: A QDQ or QOperator model, ours or made by others.

    Raises:
        ModelError: The file cannot be read, or onnxruntime refuses it.
        ProgramError: Its integer arithmetic could overflow.
    """
    model = io.load(source) if isinstance(source, Path) else source
    running = ort.running_graph(source if isinstance(source, Path) else model)
    return _Lowering(running).program(io.digest(model))


@dataclass
class _Draft:
    """What one node has written so far; kept only if its lowering succeeds."""

    instrs: list[Emitted] = field(default_factory=list[Emitted])
    absorbed: list[ir.Node] = field(default_factory=list[ir.Node])


class _Lowering:
    """One run of `lower`; the `Builder` that lowerings of operators write into."""

    def __init__(self, model: ir.Model) -> None:
        self._model = model
        self._graph = model.graph
        self._numbers: dict[str, int] = {}
        self._values: list[Value] = []
        self._constants: dict[int, npt.NDArray[Any]] = {}
        self._draft = _Draft()
        self._absorbed: set[int] = set()
        self._on_host: set[str] = set()
        self._foreign: set[str] = set()
        self._tables: dict[int, tuple[ir.Value, npt.NDArray[np.integer]]] = {}
        self._seen_by_ort: dict[str, ort.Port] | None = None

    def program(self, digest: str) -> IntegerProgram:
        for value in self._graph.inputs:
            if not is_constant(value):
                self._declare(Value(str(value.name), *_range_of(_dtype_of(value))))
        steps = [step for node in self._needed() for step in self._steps(node)]
        for value in self._graph.outputs:
            self.id_of(value)
        instrs, islands = schedule(self._model, steps, self.id_of, self._values)
        inputs = [value for value in self._graph.inputs if not is_constant(value)]
        return IntegerProgram(
            inputs=tuple(self._port(value) for value in inputs),
            outputs=tuple(self._port(value) for value in self._graph.outputs),
            values=tuple(self._values),
            constants=self._constants,
            instrs=instrs,
            islands=islands,
            source_digest=digest,
            runtime=ort.version(),
        )

    # The `Builder` that operators write into.

    def id_of(self, value: ir.Value) -> int:
        """The number of a value; a constant gets one when it is first asked for."""
        name = str(value.name)
        if name not in self._numbers:
            array = constant(value)
            if array is None:
                # A new value between two instructions of one node.
                return self._declare(Value(name, "int32"))
            number = self._declare(Value(name, *_range_of(str(array.dtype), array)))
            self._constants[number] = array
        return self._numbers[name]

    def constant(self, array: npt.NDArray[Any]) -> int:
        """The number of a new constant."""
        name = f"constant_{len(self._values)}"
        number = self._declare(Value(name, *_range_of(str(array.dtype), array)))
        self._constants[number] = array
        return number

    def value(self, number: int) -> Value:
        """What is known about a value."""
        return self._values[number]

    def shape(self, value: ir.Value) -> tuple[int | None, ...] | None:
        """Its shape as far as onnxruntime infers it."""
        array = constant(value)
        if array is not None:
            return array.shape
        port = self._port_in_ort(str(value.name))
        if port.shape is None:
            return None
        return tuple(side if isinstance(side, int) else None for side in port.shape)

    def window(self, value: ir.Value, lo: int, hi: int) -> tuple[ir.Value, int, int]:
        """Take in a Clip that alone reads `value`."""
        readers = list(value.uses())
        while len(readers) == 1 and not value.is_graph_output():
            clip, position = readers[0].node, readers[0].idx
            if clip.op_type != "Clip" or position != 0:
                break
            limits = [constant(input_at(clip, place)) for place in (1, 2)]
            if any(
                limit is None and input_at(clip, place) is not None
                for place, limit in zip((1, 2), limits, strict=True)
            ):
                break
            lo = lo if limits[0] is None else max(lo, int(limits[0]))
            hi = hi if limits[1] is None else min(hi, int(limits[1]))
            lo = min(lo, hi)
            self._draft.absorbed.append(clip)
            value = clip.outputs[0]
            readers = list(value.uses())
        return value, lo, hi

    def absorb(self, nodes: Sequence[ir.Node]) -> None:
        """Take in nodes, which then have no instruction of their own."""
        self._draft.absorbed.extend(nodes)

    def table(self, node: ir.Node) -> npt.NDArray[np.integer]:
        """What onnxruntime's kernel makes of each code of the node's first input."""
        source = node.inputs[0]
        assert source is not None
        return tabulate(self._model, [node], source, self._values[self.id_of(source)].dtype)

    def computes(self, formula: str) -> bool:
        """Whether the installed onnxruntime computes by a formula."""
        return not check(formula)[1]

    def emit(self, instruction: Emitted) -> None:
        """Keep an instruction, and declare what it makes."""
        self._draft.instrs.append(instruction)
        for value, made in zip(instruction.outputs, instruction.made, strict=True):
            number = self._numbers.get(str(value.name))
            if number is None:
                self._declare(made)
            else:
                self._values[number] = made

    # The nodes.

    def _needed(self) -> list[ir.Node]:
        """Nodes that outputs depend on, in the graph's order, chains that become tables apart."""
        wanted: set[int] = set()
        pending = [value.producer() for value in self._graph.outputs]
        while pending:
            node = pending.pop()
            if node is None or id(node) in wanted or node.graph is not self._graph:
                continue
            wanted.add(id(node))
            self._find_table(node)
            table = self._tables.get(id(node))
            sources = read_values(node) if table is None else [table[0]]
            pending += [value.producer() for value in sources]
        return [node for node in self._graph if id(node) in wanted]

    def _find_table(self, node: ir.Node) -> None:
        """Tabulate the float nodes between codes and a QuantizeLinear, where they have a table."""
        chain = find_chain(node) if node.op_type == "QuantizeLinear" else None
        if chain is None:
            return
        port = self._port_in_ort(str(chain.source.name))
        if str(port.dtype) not in ("uint8", "int8") or chain.rank > len(port.shape or ()):
            return
        with contextlib.suppress(NotInteger):  # then the nodes run one by one, in float
            table = tabulate(self._model, chain.nodes, chain.source, str(port.dtype))
            self._tables[id(node)] = (chain.source, table)

    def _steps(self, node: ir.Node) -> Iterable[Step]:
        if id(node) in self._absorbed:
            return ()
        if self._is_on_host(node):
            self._on_host.update(str(value.name) for value in node.outputs)
            return (self._foreign_step(node, StepKind.HOST, "the data have no part in it"),)
        self._draft = _Draft()
        try:
            self._lower(node)
            for emitted in self._draft.instrs:
                _check_formula(emitted)
        except NotInteger as reason:
            return (self._foreign_step(node, StepKind.ISLAND, str(reason)),)
        self._absorbed.update(id(clip) for clip in self._draft.absorbed)
        instrs = tuple(self._instr(emitted, node) for emitted in self._draft.instrs)
        return (Step(StepKind.INTEGER, node, instrs),)

    def _is_on_host(self, node: ir.Node) -> bool:
        """Whether a node depends on shapes or on constants only.

        The latter are mostly weights that onnxruntime dequantizes for a float layer at each run.
        """
        if node.op_type in SHAPE_READERS:
            return True
        if node.op_type in RANDOM:
            return False
        computed = [value for value in read_values(node) if not is_constant(value)]
        return all(value.name in self._on_host for value in computed)

    def _lower(self, node: ir.Node) -> None:
        if id(node) in self._tables:
            source, table = self._tables[id(node)]
            emit_table(Fused(node, self), self.id_of(source), table)
            return
        lowering = LOWERINGS.get(node.op_type)
        if lowering is None or node.domain not in ("", "ai.onnx", "com.microsoft"):
            raise NotInteger(self._no_instruction(node))
        fused = Fused(node, self)
        if node.op_type in MOVERS and not fused.value(0).is_codes:
            self._check_real_move(node)
        lowering(fused)

    def _no_instruction(self, node: ir.Node) -> str:
        made = [self._port_in_ort(str(v.name)).dtype for v in node.outputs if v.name]
        if all(dtype is not None and dtype.kind == "f" for dtype in made):
            return f"onnxruntime runs {node.op_type} in float"
        return f"no integer instruction does {node.op_type}"

    def _check_real_move(self, node: ir.Node) -> None:
        """Real numbers are moved here only where no island makes or reads them.

        Anywhere else the move belongs to that island.
        """
        source = node.inputs[0]
        assert source is not None
        number = self.id_of(source)
        plain = self._values[number].dtype in ("float32", "int32") and number not in self._constants
        if not plain or str(source.name) in self._foreign or not _only_moved(node):
            raise NotInteger("it moves real numbers between float nodes")

    def _foreign_step(self, node: ir.Node, kind: StepKind, why: str) -> Step:
        """A step that onnxruntime runs; the types of what it makes are onnxruntime's word."""
        for value in node.outputs:
            name = str(value.name)
            if not name:
                continue
            self._foreign.add(name)
            port = self._port_in_ort(name)
            dtype = "object" if port.dtype is None else str(port.dtype)
            made = Value(name, *_range_of(dtype))
            if name in self._numbers:
                self._values[self._numbers[name]] = made
            else:
                self._declare(made)
        return Step(kind, node, (), why)

    def _instr(self, emitted: Emitted, node: ir.Node) -> Instr:
        name = ort.plain_name(str(node.name))
        if name.startswith(INLINED):
            name = str(emitted.outputs[0].name)
        return Instr(
            emitted.op,
            emitted.inputs,
            tuple(self._numbers[str(value.name)] for value in emitted.outputs),
            name,
            emitted.arrays,
            emitted.attrs,
            emitted.requant,
        )

    def _declare(self, value: Value) -> int:
        number = len(self._values)
        self._values.append(value)
        self._numbers[value.name] = number
        return number

    def _port(self, value: ir.Value) -> Port:
        shape = None
        if value.shape is not None:
            shape = tuple(map(ort.free_or_fixed, value.shape))
        return Port(str(value.name), self.id_of(value), shape)

    def _port_in_ort(self, name: str) -> ort.Port:
        """Type and shape of an inner value, as onnxruntime infers them; asked once for all."""
        if self._seen_by_ort is None:
            names = [str(v.name) for node in self._graph for v in node.outputs if v.name]
            session = ort.session(ort.with_outputs(self._model, names), threads=1, optimize=False)
            self._seen_by_ort = {port.name: port for port in (*session.inputs, *session.outputs)}
        return self._seen_by_ort[name]


def _check_formula(emitted: Emitted) -> None:
    """Where this onnxruntime computes otherwise than we prove, it does so itself, as an island."""
    name = formula_of(emitted.op, emitted.attrs, emitted.made[0].dtype)
    if name is not None and check(name)[1]:
        raise NotInteger(f"onnxruntime {ort.version()} computes its {name} by another formula")


def _only_moved(node: ir.Node) -> bool:
    """Whether what a node gives is only moved before it is quantized or leaves the graph."""
    for value in node.outputs:
        for reader in value.consumers():
            moved = reader.op_type in MOVERS and _only_moved(reader)
            if not moved and reader.op_type != "QuantizeLinear":
                return False
    return True


def _dtype_of(value: ir.Value) -> str:
    if value.dtype is None:
        raise ProgramError(f"input {value.name!r} has no element type; export the model again")
    return str(np.dtype(value.dtype.numpy()))


def _range_of(dtype: str, array: npt.NDArray[Any] | None = None) -> tuple[str, int, int]:
    """Type, and the codes that can occur: all of an 8-bit type, or those of a constant."""
    if dtype not in ("uint8", "int8"):
        return dtype, 0, 0
    if array is not None and array.size:
        return dtype, int(array.min()), int(array.max())
    ends = np.iinfo(dtype)
    return dtype, int(ends.min), int(ends.max)
