"""Steps of a lowering in an order that they can run in, float nodes gathered into islands."""

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxptq import ort
from onnxptq.ops.nodes import is_constant
from onnxptq.program import Instr, Island, Value
from onnxptq.runtime.cpu import float_block
from onnxptq.runtime.submodel import make_submodel, read_values, tensor_type


class StepKind(enum.Enum):
    """Who runs a node."""

    HOST = "host"
    INTEGER = "integer"
    ISLAND = "island"


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What became of one node.

    Attributes:
        kind: Who runs it.
        node: The node.
        instrs: Its instructions, where it is integer.
        why: Why it is not.
    """

    kind: StepKind
    node: ir.Node
    instrs: tuple[Instr, ...] = ()
    why: str = ""


def schedule(
    model: ir.Model,
    steps: Sequence[Step],
    id_of: Callable[[ir.Value], int],
    values: Sequence[Value],
) -> tuple[tuple[Instr, ...], tuple[Island, ...]]:
    """Order the steps so that as few islands as possible come out.

    Integer steps run as early as they can; when none is left that can run, all float nodes that can
    become one island for each group that hangs together.

    Args:
        model: The graph that onnxruntime runs.
        steps: In the graph's order.
        id_of: Number of a value.
        values: What is known about each.

    Returns:
        The instructions, and what island and host instructions run.
    """
    return _Scheduler(model, steps, id_of, values).run()


class _Scheduler:
    def __init__(
        self,
        model: ir.Model,
        steps: Sequence[Step],
        id_of: Callable[[ir.Value], int],
        values: Sequence[Value],
    ) -> None:
        self._model = model
        self._id_of = id_of
        self._values = values
        self._reads = [_reads(step, id_of) for step in steps]
        self._makes = [_makes(step, id_of) for step in steps]
        made = set[int]().union(*self._makes)
        pairs = zip(self._reads, self._makes, strict=True)
        self._missing = [reads & made - makes for reads, makes in pairs]
        self._steps = steps
        self._left = list(range(len(steps)))
        self._outputs = {id_of(value) for value in model.graph.outputs}
        self._instrs: list[Instr] = []
        self._islands: list[Island] = []

    def run(self) -> tuple[tuple[Instr, ...], tuple[Island, ...]]:
        while self._left:
            before = len(self._left)
            self._run_foreign(self._take(StepKind.HOST), "host")
            for position in self._take(StepKind.INTEGER):
                self._instrs += self._steps[position].instrs
            if len(self._left) == before:
                self._run_foreign(self._take(StepKind.ISLAND), "island")
            assert len(self._left) < before, "the graph has a cycle"
        return tuple(self._instrs), tuple(self._islands)

    def _take(self, kind: StepKind) -> list[int]:
        """All steps of a kind that can run now, or after one another, in the graph's order."""
        taken: list[int] = []
        left: list[int] = []
        made: set[int] = set()
        pending = {i for p in self._left for i in self._makes[p]}
        for position in self._left:
            waiting = (self._missing[position] & pending) - made
            if self._steps[position].kind is kind and not waiting:
                taken.append(position)
                made |= self._makes[position]
            else:
                left.append(position)
        self._left = left
        return taken

    def _run_foreign(self, positions: list[int], op: str) -> None:
        for group in self._groups(positions) if op == "island" else [positions]:
            if group:
                self._instrs.append(self._foreign(group, op))

    def _groups(self, positions: list[int]) -> list[list[int]]:
        """Steps that hang together over the values they pass on, in the graph's order."""
        owner: dict[int, int] = {}
        groups: dict[int, list[int]] = {}
        for position in positions:
            near = {owner[i] for i in self._reads[position] if i in owner}
            merged = sorted(p for key in near for p in groups.pop(key))
            groups[position] = [*merged, position]
            owner.update((i, position) for p in groups[position] for i in self._makes[p])
        return sorted(groups.values())

    def _foreign(self, positions: list[int], op: str) -> Instr:
        steps = [self._steps[position] for position in positions]
        nodes = [step.node for step in steps]
        makes = set[int]().union(*(self._makes[p] for p in positions))
        reads = set[int]().union(*(self._reads[p] for p in positions)) - makes
        inputs = sorted(reads)
        wanted = self._outputs.union(
            *(self._reads[p] for p in range(len(self._steps)) if p not in set(positions))
        )
        outputs = sorted(makes & wanted)
        types = {self._values[i].name: tensor_type(self._values[i].dtype) for i in inputs}
        names = [self._values[i].name for i in outputs]
        part = make_submodel(self._model, nodes, types, names)
        island = Island(
            np.frombuffer(part, np.uint8),
            tuple(ort.plain_name(str(node.name)) for node in nodes),
            tuple(node.op_type for node in nodes),
            "; ".join(dict.fromkeys(step.why for step in steps)),
            float_block() if any(node.domain == ort.BLOCKED_DOMAIN for node in nodes) else 0,
        )
        self._islands.append(island)
        attrs = {"island": len(self._islands) - 1}
        return Instr(op, tuple(inputs), tuple(outputs), str(nodes[0].name), attrs=attrs)


def _reads(step: Step, id_of: Callable[[ir.Value], int]) -> set[int]:
    if step.kind is StepKind.INTEGER:
        return {i for instr in step.instrs for i in instr.inputs if i >= 0}
    return {id_of(value) for value in read_values(step.node) if not is_constant(value)}


def _makes(step: Step, id_of: Callable[[ir.Value], int]) -> set[int]:
    if step.kind is StepKind.INTEGER:
        return {i for instr in step.instrs for i in instr.outputs}
    return {id_of(value) for value in step.node.outputs if value.name}
